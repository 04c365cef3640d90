"""Points: what one resolved configuration asks for, which of them share an engine, and what they are compared with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from sweep.config import ModelConfig, SweepConfig
from sweep.engines import EngineConfig
from sweep.errors import ConfigError
from sweep.transforms import Identity, Pipeline, Span, Stage

# Overrides of these say where or how a sweep runs, not what is compared in it.
NOT_AXES = ("sweep", "tracking", "scoring", "verbose", "hydra", "plugins")

# Of a number in a name: the sums of a range are 1.1300000000000001 and the like.
DIGITS = 12

UNTRANSFORMED = Pipeline((Stage(Identity(), Span()),))

Value = str | float

_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True)


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What decides which engine is needed.  Points with equal specs share one."""

    model: ModelConfig
    engine: EngineConfig


@dataclass(frozen=True)
class Point:
    """One resolved configuration.

    Attributes:
        config: the configuration.
        axes: the keys that were swept, with this point's value of each.
        is_control: whether other points are compared with this one.
    """

    config: SweepConfig
    axes: tuple[tuple[str, Value], ...] = ()
    is_control: bool = False

    @property
    def name(self) -> str:
        """The swept values only, each under the last part of its key: `factor=1.2`."""
        keys = [key for key, _ in self.axes]
        leaves = [key.rsplit(".", 1)[-1] for key in keys]
        short = [leaf if leaves.count(leaf) == 1 else key for key, leaf in zip(keys, leaves, strict=True)]
        swept = ", ".join(f"{key}={_show(value, DIGITS)}" for key, (_, value) in zip(short, self.axes, strict=True))
        if self.is_control:
            return f"control ({swept})" if swept else "control"
        return swept or self.config.transform.name

    @property
    def overrides(self) -> str:
        """The swept values as they are typed: `transform.factor=1.2`."""
        return " ".join(f"{key}={_show(value)}" for key, value in self.axes) or "no overrides"

    @property
    def role(self) -> str:
        """The value of the tag `sweep.role`."""
        return "control" if self.is_control else "point"

    @property
    def engine_spec(self) -> EngineSpec:
        """What decides which engine this point needs."""
        return EngineSpec(self.config.model, self.config.engine)

    @cached_property
    def control_key(self) -> str:
        """Equal for the points that are compared with the same control: all but the transform and its seed."""
        config = self.config
        return _hash_of(config.model, config.prompts, config.sampling, config.engine)

    @cached_property
    def key(self) -> str:
        """Equal for points whose generations are the same."""
        return _hash([self.control_key, self.config.transform.config(), self.config.seed])

    def parameters(self) -> dict[str, Any]:
        """Return what determines the point's generations, each under its override name."""
        config = self.config
        flat: dict[str, Any] = {"transform": config.transform.name, "engine": config.engine.name, "seed": config.seed}
        for group in ("model", "prompts", "sampling", "engine"):
            values = asdict(getattr(config, group))
            flat |= {f"{group}.{key}": value for key, value in values.items() if key != "items" and value is not None}
        return flat | config.transform.parameters()


def make_points(jobs: Sequence[tuple[Sequence[str], SweepConfig]], varied: Sequence[str] = ()) -> list[Point]:
    """Return the points of some jobs, each given by its task overrides and its configuration.

    Args:
        jobs: the jobs.
        varied: the keys that are varied, if jobs that are not among these differ in them; else those in which these
            differ, or all if none do.

    Raises:
        ConfigError: a configuration is wrong.
    """
    configs = [config for _, config in jobs]
    shared = [(c.sweep, c.tracking, c.scoring) for c in configs]
    if any(own != shared[0] for own in shared):
        raise ConfigError("sweep.*, tracking.* and scoring.* belong to the whole sweep; they cannot be swept.")
    values = [_axis_values(overrides) for overrides, _ in jobs]
    given_keys = [key.lstrip("+").replace("/", ".") for key in varied]
    swept = given_keys or ([key for key in values[0] if len({job.get(key) for job in values}) > 1] if values else [])
    keys = swept or [key for job in values for key in job]
    # Values of one key are all numbers or all texts, `null` among numbers being the latter.
    numeric = {key for key in keys if all(isinstance(_number(job[key]), float) for job in values if key in job)}
    points = []
    for config, job in zip(configs, values, strict=True):
        given = [(key, job[key]) for key in dict.fromkeys(keys) if key in job]
        axes = tuple((key, _number(value) if key in numeric else value) for key, value in given)
        points.append(Point(config, axes))
    return points


def with_controls(points: Iterable[Point], known: Collection[str] = ()) -> list[Point]:
    """Return the points in the order of their swept values, with a control before those that are compared with it.

    An untransformed point that was asked for is the control itself.  Controls whose `control_key` is `known` have been
    generated already.
    """
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(point.control_key, []).append(point)
    ordered = []
    for key, members in groups.items():
        group = _by_strength(members)
        if key in known:
            ordered += group
            continue
        given = next((point for point in group if point.config.transform.is_identity), None)
        axes = _common_axes(group) if len(groups) > 1 else ()
        control = given or Point(replace(group[0].config, transform=UNTRANSFORMED, seed=0), axes)
        ordered += [replace(control, is_control=True), *(point for point in group if point is not given)]
    return ordered


def _by_strength(points: Sequence[Point]) -> list[Point]:
    """Return points along their axes, numbers ascending, texts in the order of the command line."""
    given = dict.fromkeys(value for point in points for _, value in point.axes if isinstance(value, str))
    ranks = {text: rank for rank, text in enumerate(given)}

    def place(point: Point) -> list[tuple[bool, float]]:
        return [(True, ranks[v]) if isinstance(v, str) else (False, v) for _, v in point.axes]

    return sorted(points, key=place)


def _common_axes(points: Sequence[Point]) -> tuple[tuple[str, Value], ...]:
    """Return the swept values that a control shares with all its points; they tell several controls apart."""
    shared = set(points[0].axes).intersection(*(point.axes for point in points))
    return tuple(axis for axis in points[0].axes if axis in shared and not axis[0].startswith("transform"))


def _axis_values(overrides: Sequence[str]) -> dict[str, str]:
    """Return the overrides that say what is compared, by key."""
    pairs = (override.partition("=") for override in overrides)
    # A group that goes to another package is a step of a composition, which the steps' own keys tell apart.
    values = {key.lstrip("+~").replace("/", "."): value for key, _, value in pairs if "@" not in key}
    return {key: value for key, value in values.items() if key.split(".")[0] not in NOT_AXES}


def _number(text: str) -> Value:
    try:
        return float(text)
    except ValueError:
        return text


def _show(value: Value, digits: int | None = None) -> str:
    if not isinstance(value, float):
        return value
    if value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return repr(value) if digits is None else repr(float(f"{value:.{digits}g}"))


# Sections of configurations are shared by all points that agree in them; kept, lest their ids be used again.
_hashed: dict[int, tuple[Any, str]] = {}
_combined: dict[tuple[int, ...], str] = {}


def _hash_of(*sections: Any) -> str:
    """Return a hash of sections, the same object for the same ones."""
    key = tuple(map(id, sections))
    if key not in _combined:
        for section in sections:
            if id(section) not in _hashed:
                _hashed[id(section)] = section, _hash(asdict(section))
        _combined[key] = _hash([_hashed[part][1] for part in key])
    return _combined[key]


def _hash(value: Any) -> str:
    return hashlib.sha256(_canonical(value).encode()).hexdigest()


def _canonical(value: Any) -> str:
    return _JSON.encode(value)
