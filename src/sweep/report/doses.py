"""Dose and response: what the plots of a numeric axis show, whoever draws them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from sweep.report.measures import closer_is_higher, measures, short
from sweep.results import SweepResults

SHARES = [-0.04, 1.04]  # the scale of a share, with room for markers
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
class Response:
    """A measure along an axis.  What was not found is NaN.

    Attributes:
        axis: the swept key.
        control: the control's mean; NaN for divergences, of which it has none but its second run's, the floor.
        floor: of a divergence, what a second run of the control has.
        rho: Spearman's.
        first_effective, breaking_point: doses; bounds are infinite where they lie beyond all doses.
    """

    axis: str
    measure: str
    lines: list[Line]
    control: float
    floor: float
    rho: Value
    first_effective: Value
    breaking_point: Value

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
        """Whether the doses span so much that a linear axis would crowd most of them into a corner."""
        return min(self._doses) > 0 and max(self._doses) / min(self._doses) > 30

    @property
    def _doses(self) -> list[float]:
        return [dose for line in self.lines for dose in line.doses]

    def reach(self, dose: Value) -> tuple[float, float] | None:
        """Return the part of a dose's interval that is among the doses that were tried; None if there is none."""
        _, low, high = dose
        if math.isnan(low) or math.isnan(high):
            return None
        first, last = min(self._doses), max(self._doses)
        # On the weaker side of the neutral dose, or where no resample has such a dose, both may be infinite.
        return min(max(low, first), last), min(max(high, first), last)


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
    table = results.responses
    rows = table[(table["axis"] == axis) & (table["measure"] == measure)] if len(table) else table
    row = rows.iloc[0].to_dict() if len(rows) else {}
    controls = results.points.loc[results.points["role"] == "control", measure].dropna()

    def value(name: str) -> Value:
        middle, low, high = (row.get(key, math.nan) for key in (name, f"{name}/ci_low", f"{name}/ci_high"))
        # A dose beyond all that were tried is none that could be shown.
        return float(middle) if math.isfinite(middle) else math.nan, float(low), float(high)

    control = float(controls.iloc[0]) if len(controls) == 1 else math.nan
    floor = value("floor")[0]
    if measure.startswith("divergence/"):
        control, floor = math.nan, control if math.isnan(floor) else floor
    return Response(
        axis, measure, lines, control, floor, value("rho"), value("first_effective"), value("breaking_point")
    )
