"""Point selectors: find the points that a text such as `factor=1.2` names, and pair points of two selections."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from sweep.config.report_config import ReportConfig
from sweep.errors import ConfigError
from sweep.points.point import DIGITS, Point, Value, as_text
from sweep.util.validators import did_you_mean

CONTROL = "control"  # names every point's own control
BASELINE, CONTRASTS = "report.baseline", "report.contrasts"


@dataclass(frozen=True, slots=True)
class SelectablePoint:
    """A point as selectors see it.

    Attributes:
        index: its position in the sweep.
        name: its name.
        axes: its swept values by key.
        control: index of its control; None if there is none.
        is_control: whether it is a control.
    """

    index: int
    name: str
    axes: Mapping[str, Value]
    control: int | None
    is_control: bool


@dataclass(frozen=True, slots=True)
class Selection:
    """The points that a selector names.

    Attributes:
        text: the selector.
        points: the points, in the order of the sweep.
        keys: the swept keys that it names; empty if it gives a name or a number.
    """

    text: str
    points: Sequence[SelectablePoint]
    keys: frozenset[str] = frozenset()

    @property
    def single(self) -> SelectablePoint | None:
        """The point, if it is the only one."""
        return self.points[0] if len(self.points) == 1 else None

    def partner(self, point: SelectablePoint, keys: frozenset[str] = frozenset()) -> SelectablePoint | None:
        """Return the selected point to compare a point with; None if there is none.

        It is the only selected point. Of several, it is the point's control, or the one that agrees with the point in
        all swept keys except those that the selector names.

        Args:
            point: any point of the sweep.
            keys: further keys in which both may differ.
        """
        named = self.keys | keys
        others = [self.single] if self.single else [p for p in self.points if _agree(p, point, named)]
        return next((other for other in others if other.index != point.index), None)


def _agree(selected: SelectablePoint, point: SelectablePoint, named: frozenset[str]) -> bool:
    if selected.is_control != point.is_control and not named:
        return selected.index == point.control or point.index == selected.control
    keys = (selected.axes.keys() | point.axes.keys()) - named
    return selected.is_control == point.is_control and all(selected.axes.get(k) == point.axes.get(k) for k in keys)


def selectable(points: Iterable[tuple[int, Point]]) -> list[SelectablePoint]:
    """Return points of a sweep as selectors see them.

    Args:
        points: each point with its position in the sweep.
    """
    points = list(points)
    controls = {point.control_key: index for index, point in points if point.is_control}
    return [
        SelectablePoint(index, point.name, dict(point.axes), controls.get(point.control_key), point.is_control)
        for index, point in points
    ]


def select(text: str, points: Sequence[SelectablePoint], key: str) -> Selection:
    """Return the points that a text names: by name, by number, or by swept values such as `factor=1.2 seed=0`.

    Args:
        text: the text. `control` names all controls.
        points: all points of the sweep.
        key: configuration key, for the error.

    Raises:
        ConfigError: no point matches; names those that exist.
    """
    text = text.strip()
    found = [point for point in points if point.is_control] if text == CONTROL else []
    found = found or [point for point in points if point.name == text]
    if not found and text.isdecimal():
        found = [point for point in points if point.index == int(text)]
    if found:
        return Selection(text, found)
    values = _values(text, points)
    found = [point for point in points if values and all(_has(point, k, v) for k, v in values.items())]
    if not found:
        raise ConfigError(f"{key}: there is no point {text!r}. {did_you_mean(text, [p.name for p in points])}")
    return Selection(text, found, frozenset(values))


def pairs(first: Selection, second: Selection) -> Iterator[tuple[SelectablePoint, SelectablePoint]]:
    """Yield the pairs of points that a contrast of two selections compares.

    Of several points on both sides, those are paired that agree in all swept keys that neither selector names. A single
    point is compared with each of the other side.
    """
    if first.single and not second.single:
        single = first.single
        own = second.partner(single, first.keys)
        others = [own] if own is not None else [point for point in second.points if point.index != single.index]
        yield from ((single, other) for other in others)
        return
    for point in first.points:
        if (other := second.partner(point, first.keys)) is not None:
            yield point, other


def check_selectors(report: ReportConfig, points: Iterable[tuple[int, Point]]) -> None:
    """Refuse a baseline or a contrast of points that the sweep does not have.

    Raises:
        ConfigError: names the key, the text and the points that exist.
    """
    if report.baseline is None and not report.contrasts:
        return
    candidates = selectable(points)
    if report.baseline is not None:
        baseline = select(report.baseline, candidates, BASELINE)
        if not any(baseline.partner(point) for point in candidates):
            raise ConfigError(f"{BASELINE}: no other point can be compared with {report.baseline!r}.")
    for first, second in report.pairs:
        if not any(pairs(*(select(text, candidates, CONTRASTS) for text in (first, second)))):
            raise ConfigError(
                f"{CONTRASTS}: {first!r} and {second!r} have no two points in common that agree in all other keys."
            )


def _values(text: str, points: Sequence[SelectablePoint]) -> dict[str, str]:
    """Return the swept values that a text gives, by key; empty if it is not a list of `key=value`."""
    keys = list(dict.fromkeys(key for point in points for key in point.axes))
    leaves = [key.rsplit(".", 1)[-1] for key in keys]
    full = {leaf: key for leaf, key in zip(leaves, keys, strict=True) if leaves.count(leaf) == 1}
    full |= {key: key for key in keys}
    if not full:
        return {}
    # Values may contain blanks and commas, so only a known key begins a new one.
    known = "|".join(re.escape(name) for name in sorted(full, key=len, reverse=True))
    before, *parts = re.split(rf"(?:^|[\s,]+)({known})=", text)
    if before.strip() or not parts:
        return {}
    return {full[name]: value.strip() for name, value in zip(parts[::2], parts[1::2], strict=True)}


def _has(point: SelectablePoint, key: str, text: str) -> bool:
    if key not in point.axes:
        return False
    value = point.axes[key]
    if isinstance(value, str):
        return value in (text, text.strip("'\""))
    try:
        return as_text(float(text), DIGITS) == as_text(value, DIGITS)
    except ValueError:
        return False
