"""Dose and response: what the plots of a numeric axis show, whoever draws them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from sweep.report.measures import closer_is_higher, measures, short
from sweep.report.results import SweepResults

SHARES = [-0.04, 1.04]  # the scale of a share, with room for markers
ARROWS = {"above": " ↑", "below": " ↓", "all": ""}
Value = tuple[float, float, float]  # with the lower and the upper end of its interval; NaN where there is none


@dataclass(frozen=True, slots=True)
class Line:
    """The points along an axis that agree in all others.

    Attributes:
        label: the other axes' values; empty where there are none.
        doses: ascending.
        means: one for each dose, with its interval.
        names: of the points.
        significant: whether each differs from the control.
    """

    label: str
    doses: list[float]
    means: list[Value]
    names: list[str]
    significant: list[bool]


@dataclass(frozen=True, slots=True)
class Found:
    """What was found on one side of the neutral dose.  What was not found is NaN.

    Attributes:
        side: `above`, `below`, or `all`.
        rho: Spearman's.
        first_effective, breaking_point: doses; bounds are infinite where they lie beyond all doses.
    """

    side: str
    rho: Value
    first_effective: Value
    breaking_point: Value


@dataclass(frozen=True, slots=True)
class Response:
    """A measure along an axis.

    Attributes:
        axis: the swept key.
        neutral: the axis' dose that changes nothing; NaN if there is none.
        control: the control's mean; NaN for divergences, of which it has none but its second run's, the floor.
        floor: of a divergence, what a second run of the control has; NaN if that is not known.
        found: on each side of the neutral dose; nothing for measures whose responses are not looked for.
    """

    axis: str
    measure: str
    neutral: float
    lines: list[Line]
    control: float
    floor: float
    found: list[Found]

    @property
    def floor_band(self) -> tuple[float, float]:
        """The values that differ from the control no more than a second run of it does."""
        if not closer_is_higher(self.measure):
            return (self.floor, 0.0) if self.floor < 0 else (0.0 * self.floor, self.floor)  # NaN if the floor is
        share = self.floor <= 1 and self.measure.endswith(("agreement", "top1"))
        return self.floor, 1.0 if share else max(self.floor, *self._seen)

    @property
    def share(self) -> bool:
        """Whether it is to be seen on the whole scale from 0 to 1.  A divergence is not: small ones matter."""
        return self.measure.startswith(("quality/", "health/")) and min(self._seen) >= 0 and max(self._seen) <= 1

    @property
    def _seen(self) -> list[float]:
        return [number for line in self.lines for mean in line.means for number in mean if math.isfinite(number)]

    @property
    def logarithmic(self) -> bool:
        """Whether a linear axis would crowd most doses, or those on one side of the neutral one, into a corner."""
        least, most = min(self._doses), max(self._doses)
        return least > 0 and most / least > (8 if least < self.neutral < most else 30)

    @property
    def digits(self) -> Sequence[int]:
        """The digits that the ticks of a logarithmic axis begin with."""
        return (1, 2, 5) if max(self._doses) / min(self._doses) < 1000 else (1,)

    @property
    def effective(self) -> list[tuple[Value, str]]:
        """The first effective doses that there are, ascending, with the sides that they are on."""
        return _ascending((found.first_effective, found.side) for found in self.found)

    @property
    def breaking(self) -> list[tuple[Value, str]]:
        """The breaking points that there are, ascending, with the sides that they are on."""
        return _ascending((found.breaking_point, found.side) for found in self.found)

    @property
    def _doses(self) -> list[float]:
        return [dose for line in self.lines for dose in line.doses]

    def reach(self, dose: Value) -> tuple[float, float] | None:
        """Return the part of a dose's interval that is among the doses that were tried; None if there is none."""
        _, low, high = dose
        if math.isnan(low) or math.isnan(high):
            return None
        first, last = min(self._doses), max(self._doses)
        # Where no resample has such a dose, both may be infinite.
        return min(max(low, first), last), min(max(high, first), last)


def spoken(doses: Iterable[tuple[Value, str]]) -> str:
    """Return doses as text, each with the way in which they become stronger: `0.5 ↓, 1.5 ↑`."""
    return ", ".join(f"{dose:.3g}{ARROWS[side]}" for (dose, _, _), side in doses)


def _ascending(doses: Iterable[tuple[Value, str]]) -> list[tuple[Value, str]]:
    return sorted((value, side) for value, side in doses if not math.isnan(value[0]))


def responses(results: SweepResults) -> list[Response]:
    """Return every measure along every numeric axis, in the order of the points' columns."""
    points = results.points
    found = []
    for axis in numeric_axes(points):
        treated = points[points["role"] != "control"].assign(dose=pd.to_numeric(points[f"axis/{axis}"]))
        treated = treated[np.isfinite(treated["dose"].to_numpy(float))].sort_values("dose", kind="stable")
        others = [column for column in points.columns if column.startswith("axis/") and column != f"axis/{axis}"]
        labels = [_label(others, row) for row in treated[others].to_dict("records")]
        groups = [(label, treated[[other == label for other in labels]]) for label in dict.fromkeys(labels)]
        for measure in measures(points.columns):
            lines = [line for label, group in groups if (line := _line(label, group, measure)).doses]
            if lines:
                found.append(_response(results, axis, measure, lines))
    return found


def numeric_axes(points: pd.DataFrame) -> list[str]:
    """Return the swept keys that have at least two values, all of them numbers."""
    axes = []
    for column in (name for name in points.columns if name.startswith("axis/")):
        values = points.loc[points["role"] != "control", column].dropna()
        if column.endswith("seed"):  # a number, but no dose
            continue
        numbers = pd.to_numeric(values, errors="coerce").to_numpy(float)
        if not np.isnan(numbers).any() and len(np.unique(numbers[np.isfinite(numbers)])) > 1:
            axes.append(column.removeprefix("axis/"))
    return axes


def _label(columns: Sequence[str], row: dict[str, object]) -> str:
    return ", ".join(f"{short(c.removeprefix('axis/'))}={_text(row[c])}" for c in columns if not pd.isna(row[c]))


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def is_true(mark: object) -> bool:
    """Whether a mark is set; a missing one is not."""
    return not pd.isna(mark) and bool(mark)


def _line(label: str, group: pd.DataFrame, measure: str) -> Line:
    group = group[np.isfinite(group[measure].to_numpy(float))]
    significant = _column(group, f"{measure}/significant")
    low, high = (_column(group, f"{measure}/{end}") for end in ("ci_low", "ci_high"))
    means = [(float(m), _finite(a), _finite(b)) for m, a, b in zip(group[measure], low, high, strict=True)]
    return Line(label, group["dose"].tolist(), means, group["name"].tolist(), [is_true(mark) for mark in significant])


def _finite(bound: Any) -> float:
    return float(bound) if math.isfinite(bound) else math.nan


def _column(frame: pd.DataFrame, name: str) -> list[Any]:
    return list(frame[name]) if name in frame else [math.nan] * len(frame)


def _response(results: SweepResults, axis: str, measure: str, lines: list[Line]) -> Response:
    along = results.responses[results.responses["axis"] == axis]
    neutral = float(along["neutral"].iloc[0]) if len(along) else math.nan
    # Several controls' are in the table only: here there would be several curves, and one place for what was found.
    rows = along[along["measure"] == measure].to_dict("records") if along["control"].nunique() < 2 else []
    controls = results.points.loc[results.points["role"] == "control", measure].dropna()
    control = float(controls.iloc[0]) if len(controls) == 1 else math.nan
    floor = float(rows[0]["floor"]) if rows else math.nan
    if measure.startswith("divergence/"):
        control, floor = math.nan, control if math.isnan(floor) else floor
    return Response(axis, measure, neutral, lines, control, floor, [_found(row) for row in rows])


def _found(row: Mapping[Any, Any]) -> Found:
    def value(name: str) -> Value:
        return float(row[name]), float(row[f"{name}/ci_low"]), float(row[f"{name}/ci_high"])

    return Found(str(row["side"]), value("rho"), value("first_effective"), value("breaking_point"))
