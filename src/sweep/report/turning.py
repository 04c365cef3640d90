"""Turning responses of a sweep: each series' best dose, shape and trend, and the Pareto front of effect and quality."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sweep.config.report_config import ReportConfig
from sweep.core.values import Floats
from sweep.planning.results import PointResult
from sweep.report.neutral import neutral_dose
from sweep.report.paired_differences import compared_measures
from sweep.report.replicates import Row, value_table
from sweep.report.series import Series
from sweep.scoring.pareto import front_shares, pareto_front
from sweep.scoring.registry import spec
from sweep.scoring.response import pool
from sweep.scoring.trend import Trend, page_trend
from sweep.scoring.turning import LEVEL, BestDose, best_dose, monotone_test

EFFECT = "divergence/edit_distance"
FEWEST = 3  # doses, with the control
PAIRS = 200_000_000  # compared in all resamples of a front: a second of work; more points get fewer resamples


@dataclass(frozen=True, slots=True)
class Turning:
    """How one measure responds along one series, from the lowest dose to the highest.

    Attributes:
        axis: the swept key.
        series: name of the series; empty if it is the axis' only one.
        measure: the measure.
        doses: number of doses; the control counts as one if it stands at the neutral dose.
        prompts: number of prompts with a value at each dose.
        best: the best dose; None for divergences, whose best dose is the control, and without a better direction.
        tolerance: how much worse a mean may be than the best and still count as good, in units of the measure.
        shape: see `Monotone`.
        monotone_p: p-value of a monotone response.
        trend: Page's L minus its expectation over all doses; positive if values rise.
        trend_p: its two-sided p-value.
        trend_p_below, trend_p_above: the same on one side of the neutral dose, with the control; NaN for fewer than
            three doses.
    """

    axis: str
    series: str
    measure: str
    doses: int
    prompts: int
    best: BestDose | None
    tolerance: float
    shape: str
    monotone_p: float
    trend: float
    trend_p: float
    trend_p_below: float
    trend_p_above: float

    @property
    def turns(self) -> bool:
        """Whether a monotone response is rejected."""
        return self.monotone_p < LEVEL


@dataclass(frozen=True, slots=True)
class FrontPoint:
    """A point in the plane of effect and quality.

    Attributes:
        point: its index in the sweep; of replicates, that of the first.
        effect, quality: the means.
        on_front: whether no other point with the same control has more of both.
        share: share of resamples of the prompts in which it is on the front.
    """

    point: int
    effect: float
    quality: float
    on_front: bool
    share: float


@dataclass(frozen=True, slots=True)
class Front:
    """The points by effect and quality.

    Attributes:
        effect, quality: the two measures.
        points: all rows with both, in the order of the sweep.
    """

    effect: str
    quality: str
    points: Sequence[FrontPoint] = ()


def find_turnings(
    series: Iterable[Series], row_of: Mapping[int, Row], confidence: float, report: ReportConfig
) -> list[Turning]:
    """Return the turning of every series with at least `FEWEST` doses, in every tested measure.

    Args:
        series: the series of the sweep.
        row_of: the row of each point, by the point's index.
        confidence: level of the intervals.
        report: section `report`.
    """
    return [turning for one in series for turning in _turnings(one, row_of, confidence, report.tolerance)]


def _turnings(series: Series, row_of: Mapping[int, Row], confidence: float, tolerance: float) -> Iterator[Turning]:
    by_row = {row_of[i].index: (d, row_of[i].result) for d, i in zip(series.doses, series.points, strict=True)}
    pairs = [(dose, result) for dose, result in by_row.values() if result.values]
    points = [result for _, result in pairs]
    if series.control is None or not row_of[series.control].finished or not points:
        return
    control = row_of[series.control].result
    neutral, control_is_neutral = neutral_dose(series.axis, [result.point.config.transform for result in points])
    doses = np.array([dose for dose, _ in pairs])
    stands = neutral is not None and math.isfinite(neutral) and control_is_neutral
    if stands:
        # As in the analysis of sides: the control replaces a point at the neutral dose, which is the same.
        points = [control, *(result for dose, result in pairs if dose != neutral)]
        doses = np.array([neutral, *doses[doses != neutral]])
    if len(set(doses.tolist())) < FEWEST:
        return
    prompts = len(next(iter(control.values.values())))
    for measure in compared_measures(points):
        x, table = pool(doses, value_table(measure, points, prompts))
        table = table[:, ~np.isnan(table).any(axis=0)]
        if not table.shape[1] or not np.isfinite(table).all():
            continue
        shape, trend = monotone_test(table, resamples=1000), page_trend(table)
        sides = [_side(x, table, side, neutral, trend) for side in (-1, 1)]
        allowed = _tolerance(measure, table, tolerance)
        best = _best(measure, x, table, allowed, neutral if stands else None, confidence)
        yield Turning(
            series.axis, series.name, measure, len(x), table.shape[1], best, allowed, shape.shape, shape.p,
            trend.statistic, trend.p, *sides,
        )  # fmt: skip


def _side(x: Floats, table: Floats, side: int, neutral: float | None, whole: Trend) -> float:
    """Return the p-value of a trend on one side; `whole` is the trend over all doses."""
    if neutral is None:
        return math.nan
    kept = side * x >= side * neutral
    if kept.all():
        return whole.p
    return page_trend(table[kept]).p if kept.sum() >= FEWEST else math.nan


def _oriented(measure: str, values: Floats) -> Floats | None:
    """Return values of which higher is better; None if no direction is."""
    match spec(measure).direction:
        case "higher":
            return values
        case "lower":
            return -values
    return None


def _tolerance(measure: str, table: Floats, share: float) -> float:
    low, high = spec(measure).range
    return share * (high - low if math.isfinite(high - low) else float(np.abs(table.mean(axis=1)).max()))


def _best(
    measure: str, x: Floats, table: Floats, tolerance: float, neutral: float | None, confidence: float
) -> BestDose | None:
    oriented = None if spec(measure).group.floor else _oriented(measure, table)
    if oriented is None:
        return None
    best = best_dose(x, oriented, tolerance, neutral=neutral, confidence=confidence, resamples=1000)
    mean = float(table[x == best.dose].mean())
    return BestDose(
        best.dose, best.ci_low, best.ci_high, mean, best.within_low, best.within_high,
        best.confirmed_low, best.confirmed_high,
    )  # fmt: skip


def find_front(rows: Iterable[Row], quality: str | None, report: ReportConfig) -> Front | None:
    """Return the points by effect and quality; None if they lack one of the measures.

    More of the effect is better: more divergence, or a better value of a quality measure.

    Args:
        rows: the rows of the sweep. Replicates are one point, by means over their seeds.
        quality: the measure that ranks points.
        report: section `report`.
    """
    effect = report.effect or EFFECT
    if quality is None or effect == quality:
        return None
    groups: dict[int, list[PointResult]] = {}
    for row in rows:
        if effect in row.result.values and quality in row.result.values:
            groups.setdefault(row.index if row.control is None else row.control, []).append(row.result)
    found = [point for group in groups.values() for point in _front_points(group, effect, quality)]
    return Front(effect, quality, sorted(found, key=lambda point: point.point)) if len(found) > 1 else None


def _front_points(group: Sequence[PointResult], effect: str, quality: str) -> Iterator[FrontPoint]:
    prompts = len(next(iter(group[0].values.values())))
    tables = [value_table(measure, group, prompts) for measure in (effect, quality)]
    signs = [-1 if spec(measure).direction == "lower" else 1 for measure in (effect, quality)]
    if spec(effect).group.floor:  # a divergence's direction is the one towards the control
        signs[0] = -signs[0]
    better = [sign * np.where(np.isinf(table), np.nan, table) for sign, table in zip(signs, tables, strict=True)]
    present = [~np.isnan(values).all(axis=1) for values in better]
    kept = present[0] & present[1]
    if not kept.any():
        return
    better = [values[kept] for values in better]
    means: list[Floats] = [np.asarray(np.nanmean(values, axis=1)).round(12) for values in better]
    resamples = min(1000, max(50, PAIRS // len(means[0]) ** 2))
    front, shares = pareto_front(*means), front_shares(*better, resamples=resamples)
    chosen = [result for result, keep in zip(group, kept, strict=True) if keep]
    for result, x, y, on_front, share in zip(chosen, *means, front, shares, strict=True):
        yield FrontPoint(result.index, signs[0] * float(x), signs[1] * float(y), bool(on_front), float(share))
