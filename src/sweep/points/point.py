"""Points: resolved configurations with their names, their swept values and their controls."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from sweep.config.overrides import Override, axis_key
from sweep.config.schema import SweepConfig
from sweep.core.section import value_digest
from sweep.engines import EngineConfig
from sweep.errors import ConfigError
from sweep.inputs.config import ModelConfig
from sweep.transforms import Identity, Pipeline, Span, Stage

# Significant digits of a number in a name. The sums of a range are values such as 1.1300000000000001.
DIGITS = 12

UNTRANSFORMED = Pipeline((Stage(Identity(), Span()),))

Value = str | float

_STEP = re.compile(r"transform\.\d+\.name")


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """A model and an engine configuration. Points with equal specs share an engine, also if their adapters differ."""

    model: ModelConfig
    engine: EngineConfig


@dataclass(frozen=True)
class Point:
    """One resolved configuration.

    Attributes:
        config: the configuration.
        axes: the swept keys with this point's values.
        is_control: whether other points are compared with this one.
    """

    config: SweepConfig
    axes: tuple[tuple[str, Value], ...] = ()
    is_control: bool = False

    @property
    def name(self) -> str:
        """The swept values under the last part of their keys, as in `factor=1.2`."""
        keys = [key for key, _ in self.axes]
        leaves = [key.rsplit(".", 1)[-1] for key in keys]
        short = [leaf if leaves.count(leaf) == 1 else key for key, leaf in zip(keys, leaves, strict=True)]
        swept = ", ".join(f"{key}={as_text(value, DIGITS)}" for key, (_, value) in zip(short, self.axes, strict=True))
        if self.is_control:
            return f"control ({swept})" if swept else "control"
        return swept or self.config.transform.name

    @property
    def overrides(self) -> str:
        """The swept values as overrides, as in `transform.factor=1.2`."""
        return " ".join(f"{key}={as_text(value)}" for key, value in self.axes) or "no overrides"

    @property
    def role(self) -> str:
        """The value of the tag `sweep.role`."""
        return "control" if self.is_control else "point"

    @property
    def engine_spec(self) -> EngineSpec:
        """The engine that this point needs."""
        return EngineSpec(self.config.model.base, self.config.engine)

    @cached_property
    def control_key(self) -> str:
        """Hash of the configuration without transform and seed. Equal for points that share a control."""
        config = self.config
        sections = config.model, config.prompts, config.sampling, config.engine
        return value_digest([section.content_digest for section in sections])

    @cached_property
    def key(self) -> str:
        """Hash of the configuration that decides generations. Equal for equal configurations.

        Points with equal file contents under different paths have different keys. See `Fingerprints.distinct`.
        """
        return value_digest([self.control_key, self.config.transform.config(), self.config.seed])

    def parameters(self) -> dict[str, Any]:
        """Return the parameters that determine the point's generations, by override key."""
        config = self.config
        flat: dict[str, Any] = {"transform": config.transform.name, "engine": config.engine.name, "seed": config.seed}
        for group in ("model", "prompts", "sampling", "engine"):
            values = asdict(getattr(config, group))
            args = values.pop("args", {})
            values |= {f"args.{key}": value for key, value in args.items()}
            flat |= {f"{group}.{key}": value for key, value in values.items() if key != "items" and value is not None}
        return flat | config.transform.parameters()


def make_points(jobs: Sequence[tuple[Sequence[Override], SweepConfig]], varied: Sequence[str] = ()) -> list[Point]:
    """Return one point per job.

    Args:
        jobs: the overrides and the configuration of each job.
        varied: the swept keys, where the jobs are only one batch of a sweep. If empty, the swept keys are those in
            which the jobs differ, or all overridden keys if they do not differ.

    Raises:
        ConfigError: jobs differ in a section that belongs to the whole sweep.
    """
    configs = [config for _, config in jobs]
    common = [(c.sweep, c.tracking, c.scoring, c.report) for c in configs]
    if any(sections != common[0] for sections in common):
        raise ConfigError(
            "sweep.*, tracking.*, scoring.* and report.* belong to the whole sweep. They cannot be swept."
        )
    values = [{override.axis: override for override in overrides if override.is_axis} for overrides, _ in jobs]
    swept = [axis_key(key) for key in varied] or [key for key in _all_keys(values) if _differ(key, values)]
    # Points that do not differ are named by the transform's parameters, not by every override. The names of unswept
    # steps of a composition add nothing: their parameters have keys of their own.
    keys = swept or [key for job in values for key in job if key.startswith("transform.") and not _STEP.fullmatch(key)]
    # The values of a key are either all numbers or all strings. A `null` among numbers makes them strings.
    texts = {key for key in keys if any(job[key].number is None for job in values if key in job)}
    points = []
    for config, job in zip(configs, values, strict=True):
        swept_here = [(key, job[key]) for key in dict.fromkeys(keys) if key in job]
        axes = ((key, o.text if o.number is None or key in texts else o.number) for key, o in swept_here)
        points.append(Point(config, tuple(axes)))
    return points


def _all_keys(jobs: Sequence[Mapping[str, Override]]) -> list[str]:
    """Return the keys of all jobs in the order of the command: points with different transforms have different keys."""
    keys: list[str] = []
    for typed in dict.fromkeys(map(tuple, jobs)):
        place = 0
        for key in typed:
            if key not in keys:
                keys.insert(place, key)
            place = keys.index(key) + 1
    return keys


def _differ(key: str, jobs: Sequence[Mapping[str, Override]]) -> bool:
    """Return whether jobs have different values of a key, or only some have one."""
    return len({job[key].text if key in job else None for job in jobs}) > 1


def with_controls(points: Iterable[Point], done_controls: Collection[str] = ()) -> list[Point]:
    """Return the points in the order of their swept values, with each control before its points.

    An untransformed point of the sweep serves as the control itself.

    Args:
        points: the points of the sweep.
        done_controls: `control_key` of the controls that were already generated and are left out.
    """
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(point.control_key, []).append(point)
    ordered = []
    for key, members in groups.items():
        group = _sorted_by_axes(members)
        if key in done_controls:
            ordered += group
            continue
        untransformed = next((point for point in group if point.config.transform.is_identity), None)
        axes = common_axes(group) if len(groups) > 1 else ()
        control = untransformed or Point(replace(group[0].config, transform=UNTRANSFORMED, seed=0), axes)
        ordered += [replace(control, is_control=True), *(point for point in group if point is not untransformed)]
    return ordered


def _sorted_by_axes(points: Sequence[Point]) -> list[Point]:
    """Return points sorted by their axes: numbers ascending, then strings in the order of the command line."""
    texts = dict.fromkeys(value for point in points for _, value in point.axes if isinstance(value, str))
    ranks = {text: rank for rank, text in enumerate(texts)}

    def sort_key(point: Point) -> list[tuple[bool, float]]:
        return [(True, ranks[v]) if isinstance(v, str) else (False, v) for _, v in point.axes]

    return sorted(points, key=sort_key)


def common_axes(points: Sequence[Point]) -> tuple[tuple[str, Value], ...]:
    """Return the swept values that a control shares with all its points. They distinguish several controls."""
    shared = set(points[0].axes).intersection(*(point.axes for point in points))
    return tuple(axis for axis in points[0].axes if axis in shared and not axis[0].startswith("transform"))


def as_text(value: Any, digits: int | None = None) -> str:
    """Return a swept value as it is typed on the command line, such as `1.2` or `100`.

    Args:
        value: the value.
        digits: number of significant digits, or None for all.
    """
    if not isinstance(value, float):
        return str(value)
    if value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return repr(value) if digits is None else repr(float(f"{value:.{digits}g}"))
