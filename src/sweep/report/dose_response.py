"""Data of dose–response plots, independent of the plotting library."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sweep.report.measures import measures, short_key
from sweep.report.results import SweepResults
from sweep.report.series import Series
from sweep.scoring.registry import spec

SHARES = [-0.04, 1.04]  # axis range for shares, with room for markers
ARROWS = {"above": " ↑", "below": " ↓", "all": ""}
Value = tuple[float, float, float]  # a number and its interval's lower and upper bound; NaN if missing


@dataclass(frozen=True, slots=True)
class Marker:
    """Marker of one point of the sweep.

    Attributes:
        dose: the point's value on the axis.
        mean: the measure's mean over prompts.
        name: the point's name.
        significant: whether the point differs significantly from its control.
    """

    dose: float
    mean: Value
    name: str
    significant: bool


@dataclass(frozen=True, slots=True)
class SideFindings:
    """Results on one side of the neutral dose; NaN if not found.

    Attributes:
        side: `above`, `below`, or `all`.
        rho: Spearman's rank correlation.
        first_effective: a dose; bounds are infinite if they lie beyond all tested doses.
        breaking_point: a dose, likewise.
    """

    side: str
    rho: Value
    first_effective: Value
    breaking_point: Value


@dataclass(frozen=True, slots=True)
class Line:
    """One measure of one series.

    Attributes:
        series: the points along the axis that agree in all other swept keys except seeds.
        doses: ascending.
        means: one per dose, over prompts and pooled seeds.
        markers: the points; several per dose if seeds are pooled.
        neutral: dose of the axis that changes nothing; NaN if there is none.
        control: mean of the series' control; NaN for divergences, where the control's value is the noise floor.
        floor: for a divergence, its noise floor from the control's second run; NaN if unknown.
        sides: results on each side of the neutral dose; empty for measures without dose–response analysis.
        control_name: name of the control.
    """

    series: Series
    doses: list[float]
    means: list[Value]
    markers: list[Marker]
    neutral: float
    control: float
    floor: float
    sides: list[SideFindings]
    control_name: str = "control"

    @property
    def label(self) -> str:
        """Name of the series, with the seeds that it averages over."""
        return self.series.label

    @property
    def effective(self) -> list[tuple[Value, str]]:
        """First effective doses, ascending, each with its side."""
        return _ascending((side.first_effective, side.side) for side in self.sides)

    @property
    def breaking(self) -> list[tuple[Value, str]]:
        """Breaking points, ascending, each with its side."""
        return _ascending((side.breaking_point, side.side) for side in self.sides)


@dataclass(frozen=True, slots=True)
class DoseResponse:
    """One measure along one axis: the data of one plot.

    Attributes:
        axis: the swept key.
        measure: the metric name.
        lines: one per series.
    """

    axis: str
    measure: str
    lines: list[Line]

    @property
    def dose_title(self) -> str:
        """Short name of the axis, with the seeds if all lines average over the same ones."""
        pooled = {line.series.pooling for line in self.lines}
        key = short_key(self.axis)
        return " ".join([key, *(text for text in pooled if text)]) if len(pooled) == 1 else key

    @property
    def controls(self) -> list[tuple[int | None, float, str]]:
        """Distinct means of the controls: index of a line with this control (None: all), mean, name."""
        return self._each_once([line.control for line in self.lines])

    @property
    def floor_bands(self) -> list[tuple[int | None, tuple[float, float]]]:
        """Noise-floor bands: index of a line with this control (None: all), and the band's lower and upper end."""
        floors = self._each_once([line.floor for line in self.lines])
        return [(index, self._band(floor)) for index, floor, _ in floors]

    def _each_once(self, values: Sequence[float]) -> list[tuple[int | None, float, str]]:
        if len(set(values)) == 1 and not math.isnan(values[0]):
            return [(None, values[0], "control")]
        distinct: dict[tuple[int | None, float], tuple[int | None, float, str]] = {}
        for index, (line, value) in enumerate(zip(self.lines, values, strict=True)):
            if not math.isnan(value):
                distinct.setdefault((line.series.control, value), (index, value, line.control_name))
        return list(distinct.values())

    def _band(self, floor: float) -> tuple[float, float]:
        measure = spec(self.measure)
        if measure.direction != "higher":
            return min(floor, 0.0), max(floor, 0.0)
        share = floor <= 1 and measure.range == (0.0, 1.0)
        return floor, 1.0 if share else max(floor, *self._plotted_values)

    @property
    def share(self) -> bool:
        """Whether to show the whole scale from 0 to 1. Not for divergences, where small values matter."""
        values, group = self._plotted_values, spec(self.measure).group
        return group.tested and not group.floor and min(values) >= 0 and max(values) <= 1

    @property
    def _plotted_values(self) -> list[float]:
        means = [mean for line in self.lines for mean in (*line.means, *(marker.mean for marker in line.markers))]
        return [number for mean in means for number in mean if math.isfinite(number)]

    @property
    def logarithmic(self) -> bool:
        """Whether a linear axis would squeeze most doses, or those on one side of the neutral dose, into a corner."""
        lowest, highest = min(self._doses), max(self._doses)
        inside = any(lowest < line.neutral < highest for line in self.lines)
        return lowest > 0 and highest / lowest > (8 if inside else 30)

    @property
    def digits(self) -> Sequence[int]:
        """Leading digits of the ticks of a logarithmic axis."""
        return (1, 2, 5) if max(self._doses) / min(self._doses) < 1000 else (1,)

    @property
    def _doses(self) -> list[float]:
        return [dose for line in self.lines for dose in line.doses]

    def visible_interval(self, dose: Value) -> tuple[float, float] | None:
        """Return the part of a dose's interval within the tested doses; None if it has no interval."""
        _, low, high = dose
        if math.isnan(low) or math.isnan(high):
            return None
        first, last = min(self._doses), max(self._doses)
        # Both bounds may be infinite, if no resample has such a dose.
        return min(max(low, first), last), min(max(high, first), last)


def format_doses(doses: Iterable[tuple[Value, str]]) -> str:
    """Return doses as text, with an arrow towards stronger doses: `0.5 ↓, 1.5 ↑`."""
    return ", ".join(f"{dose:.3g}{ARROWS[side]}" for (dose, _, _), side in doses)


def _ascending(doses: Iterable[tuple[Value, str]]) -> list[tuple[Value, str]]:
    return sorted((value, side) for value, side in doses if not math.isnan(value[0]))


def responses(results: SweepResults) -> list[DoseResponse]:
    """Return the plot data of every measure along every numeric axis, in the order of the points' columns."""
    records = {int(row["point"]): row for row in results.points.to_dict("records")}
    # The control of a series that pools `sampling.seed` is a row too.
    records |= {int(row["point"]): row for row in results.rows.to_dict("records") if row["role"] == "control"}
    plots = []
    series = results.series
    for axis in dict.fromkeys(one.axis for one in series):
        for measure in measures(results.points.columns):
            candidates = [_line(results, one, measure, records) for one in series if one.axis == axis]
            if lines := [line for line in candidates if line.doses]:
                plots.append(DoseResponse(axis, measure, lines))
    return plots


def is_true(mark: object) -> bool:
    """Whether a mark is set; a missing mark counts as not set."""
    return not pd.isna(mark) and bool(mark)


def _line(results: SweepResults, series: Series, measure: str, records: Mapping[int, Mapping[Any, Any]]) -> Line:
    markers = [
        Marker(dose, _mean(records[point], measure), str(records[point]["name"]), _significant(records[point], measure))
        for dose, point in zip(series.doses, series.points, strict=True)
    ]
    markers = [marker for marker in markers if math.isfinite(marker.mean[0])]
    doses, means = [marker.dose for marker in markers], [marker.mean for marker in markers]
    if series.pooled:
        pooled = _rows_of(results.pooled, series)
        pooled = pooled[(pooled["measure"] == measure) & pooled["mean"].notna()]
        doses = pooled["dose"].tolist()
        bounds = zip(pooled["mean"], pooled["ci_low"], pooled["ci_high"], strict=True)
        means = [(mean, _finite(low), _finite(high)) for mean, low, high in bounds]
    along = _rows_of(results.responses, series)
    rows = along[along["measure"] == measure].to_dict("records")
    control = math.nan if series.control is None else _mean(records[series.control], measure)[0]
    floor = float(rows[0]["floor"]) if rows else math.nan
    if spec(measure).group.floor:
        control, floor = math.nan, control if math.isnan(floor) else floor
    neutral = float(along["neutral"].iloc[0]) if len(along) else math.nan
    name = "control" if series.control is None else str(records[series.control]["name"])
    return Line(series, doses, means, markers, neutral, control, floor, [_side_findings(row) for row in rows], name)


def _rows_of(table: pd.DataFrame, series: Series) -> pd.DataFrame:
    return table[(table["axis"] == series.axis) & (table["series"] == series.name)]


def _mean(row: Mapping[Any, Any], measure: str) -> Value:
    mean, low, high = (row.get(f"{measure}{end}", math.nan) for end in ("", "/ci_low", "/ci_high"))
    return float(mean) if not pd.isna(mean) else math.nan, _finite(low), _finite(high)


def _significant(row: Mapping[Any, Any], measure: str) -> bool:
    return is_true(row.get(f"{measure}/significant", math.nan))


def _finite(bound: Any) -> float:
    return float(bound) if not pd.isna(bound) and math.isfinite(bound) else math.nan


def _side_findings(row: Mapping[Any, Any]) -> SideFindings:
    def value(name: str) -> Value:
        return float(row[name]), float(row[f"{name}/ci_low"]), float(row[f"{name}/ci_high"])

    return SideFindings(str(row["side"]), value("rho"), value("first_effective"), value("breaking_point"))
