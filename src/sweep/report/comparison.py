"""Comparison of a sweep's points with their controls or another baseline, with each other, and along their axes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from sweep.config.report_config import ReportConfig
from sweep.planning.results import PointResult
from sweep.points.point import as_text, common_axes
from sweep.report.baselines import Baselines, aligned, find_baselines, tests_against
from sweep.report.contrasts import Contrasts, find_contrasts
from sweep.report.measures import ranking_of
from sweep.report.neutral import neutral_dose
from sweep.report.paired_differences import (
    Difference,
    SignificanceLimit,
    adjust_for_multiplicity,
    compared_measures,
    significance_limits,
    value_table,
)
from sweep.report.series import Series, TreatedPoint, find_series
from sweep.report.turning import Front, Turning, find_front, find_turnings
from sweep.scoring.registry import spec
from sweep.scoring.response import Response, Side, dose_response, pool
from sweep.scoring.statistics import intervals
from sweep.storage.archive import encodable

DEFAULT = ReportConfig()
Responses = Mapping[tuple[str, Side], Response]
Mean = tuple[float, float, float, float]  # dose, mean, and the interval's lower and upper bound


@dataclass(frozen=True, slots=True)
class SeriesResponse:
    """A series with its dose–response results.

    Attributes:
        series: the points of the series.
        responses: by measure and side of the neutral dose. Empty if the series has no common control, or only one dose.
        means: by measure, each dose's mean over prompts and seeds. Only for a series that pools seeds.
    """

    series: Series
    responses: Responses = field(default_factory=dict)
    means: Mapping[str, Sequence[Mean]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Comparison:
    """All statistics over a sweep's points.

    Attributes:
        results: in the order of the sweep.
        controls: index of the control, by the index of the point.
        differences: differences to the control, or to `report.baseline`, by point index and measure.
        series: series along each numeric axis.
        neutral: doses that change nothing, which is where the control stands; by the control's index and the axis.
        confidence: level of the intervals.
        first: measures to show before others.
        limits: what the significance tests can show at most, by group of measures.
        baselines: what `differences` are differences to.
        contrasts: comparisons of `report.contrasts`.
        turnings: best dose, shape and trend of each series, by measure.
        front: the points by effect and quality; None without both measures.
    """

    results: Sequence[PointResult]
    controls: Mapping[int, int] = field(default_factory=dict)
    differences: Mapping[int, Mapping[str, Difference]] = field(default_factory=dict)
    series: Sequence[SeriesResponse] = ()
    neutral: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    confidence: float = 0.95
    first: Sequence[str] = ()
    limits: Mapping[str, SignificanceLimit] = field(default_factory=dict)
    baselines: Baselines = field(default_factory=Baselines)
    contrasts: Contrasts = field(default_factory=Contrasts)
    turnings: Sequence[Turning] = ()
    front: Front | None = None


def compare(
    results: Iterable[PointResult], confidence: float, first: Sequence[str] = (), report: ReportConfig = DEFAULT
) -> Comparison:
    """Compare all points with their controls, and analyse the responses to each swept number.

    Args:
        results: all points of the sweep, in any order.
        confidence: level of the intervals.
        first: measures to show before others.
        report: section `report`.
    """
    ordered = _with_uniform_axes(sorted(results, key=lambda result: result.index))
    groups: dict[str, list[PointResult]] = {}
    for result in ordered:
        groups.setdefault(result.point.control_key, []).append(result)
    ordered = _with_named_controls(ordered, list(groups.values()))
    by_index = {result.index: result for result in ordered}
    controls: dict[int, int] = {}
    neutral: dict[int, dict[str, float]] = {}
    for group in groups.values():
        control = next((result for result in group if result.point.is_control), None)
        if control is None:
            continue
        neutral[control.index] = dict(_neutral_doses(group))
        others = [result for result in group if result.values and result is not control] if control.values else []
        controls |= {result.index: control.index for result in others}
    baselines = find_baselines(ordered, controls, report)
    tests = dict(tests_against(baselines.of, by_index, confidence))
    entries = [
        TreatedPoint(result.index, dict(result.point.axes), controls.get(result.index))
        for result in ordered
        if not result.point.is_control and result.error is None
    ]
    baseline = None if baselines.single is None else by_index[baselines.single]
    series = [_series_response(series, by_index, confidence, baseline) for series in find_series(entries)]
    quality = ranking_of((name for result in ordered for name in result.summaries), first)
    return Comparison(
        ordered,
        controls,
        adjust_for_multiplicity(tests),
        series,
        neutral,
        confidence,
        first,
        significance_limits(tests),
        baselines,
        find_contrasts(ordered, report, confidence),
        find_turnings((described.series for described in series), by_index, confidence, report),
        find_front(ordered, controls, quality, report),
    )


def _with_uniform_axes(results: Sequence[PointResult]) -> list[PointResult]:
    """Make the values of each swept key all numbers or, if any is a text, all texts."""
    # Batches are read separately: `prompts.limit=null` and `prompts.limit=100` may come in different ones.
    texts = {key for result in results for key, value in result.point.axes if isinstance(value, str)}
    uniform = []
    for result in results:
        # Users may type bytes that are not UTF-8, which tables cannot store.
        axes = tuple((key, encodable(as_text(value)) if key in texts else value) for key, value in result.point.axes)
        same = axes == result.point.axes
        uniform.append(result if same else replace(result, point=replace(result.point, axes=axes)))
    return uniform


def _with_named_controls(results: Sequence[PointResult], groups: Sequence[Sequence[PointResult]]) -> list[PointResult]:
    """Give controls with equal names distinct names: a batch does not know the controls of other batches."""
    controls = [result for result in results if result.point.is_control]
    names = [result.point.name for result in controls]
    shared = {
        group[0].point.control_key: common_axes([r.point for r in group if not r.point.is_control])
        for group in groups
        if any(not result.point.is_control for result in group)
    }
    values: dict[str, set[object]] = {}
    for result in controls:
        for key, value in shared.get(result.point.control_key, ()):
            values.setdefault(key, set()).add(value)
    named = []
    for result in results:
        point = result.point
        if point.is_control and not point.axes and names.count(point.name) > 1:
            axes = tuple(axis for axis in shared.get(point.control_key, ()) if len(values[axis[0]]) > 1)
            result = replace(result, point=replace(point, axes=axes))
        named.append(result)
    return named


def _neutral_doses(group: Sequence[PointResult]) -> Iterator[tuple[str, float]]:
    points = [result.point for result in group if not result.point.is_control]
    for axis in dict.fromkeys(key for point in points for key, value in point.axes if isinstance(value, float)):
        dose, _ = neutral_dose(axis, [point.config.transform for point in points])
        if dose is not None:
            yield axis, dose


def _series_response(
    series: Series, results: Mapping[int, PointResult], confidence: float, baseline: PointResult | None
) -> SeriesResponse:
    """Return a series with its responses and, if it pools seeds, the pooled means.

    Its points are compared with their control, or with a baseline that is one point.
    """
    pairs = [(d, results[i]) for d, i in zip(series.doses, series.points, strict=True) if results[i].values]
    doses, points = [dose for dose, _ in pairs], [result for _, result in pairs]
    control = None if series.control is None else results[series.control]
    responses: dict[tuple[str, Side], Response] = {}
    if control is not None and len(set(doses)) > 1:
        reference = control if baseline is None or baseline is control else aligned(baseline, points[0])
        responses = dict(_responses(series.axis, doses, points, reference, confidence, reference is control))
    means = {}
    if series.pooled and len({len(next(iter(result.values.values()))) for result in points}) == 1:
        means = {name: _pooled_means(name, doses, points, confidence) for name in _all_measures(points)}
    return SeriesResponse(series, responses, means)


def _all_measures(points: Sequence[PointResult]) -> list[str]:
    return list(dict.fromkeys(name for result in points for name in result.values))


def _pooled_means(measure: str, doses: Sequence[float], points: Sequence[PointResult], confidence: float) -> list[Mean]:
    prompts = len(next(iter(points[0].values.values())))
    unique, table = pool(np.array(doses), value_table(measure, points, prompts))
    table[np.isinf(table)] = math.nan
    pooled = intervals(table, confidence, yes_or_no=spec(measure).yes_or_no)
    rows = zip(unique, pooled.mean, pooled.ci_low, pooled.ci_high, strict=True)
    return [tuple(map(float, row)) for row in rows]  # type: ignore[misc]


def _responses(
    axis: str,
    doses: Sequence[float],
    points: Sequence[PointResult],
    control: PointResult,
    confidence: float,
    is_control: bool,
) -> Iterator[tuple[tuple[str, Side], Response]]:
    """Yield a series' responses by measure and side."""
    prompts = len(next(iter(control.values.values())))
    neutral, control_is_neutral = neutral_dose(axis, [result.point.config.transform for result in points])
    for measure in compared_measures(points):
        control_values = value_table(measure, [control], prompts)[0]
        if np.isnan(control_values).all():
            continue
        # The control's divergences come from its second run, so a difference from them is a difference from the floor.
        sides = dose_response(
            doses,
            value_table(measure, points, prompts),
            control_values,
            neutral=neutral,
            control_is_neutral=control_is_neutral and is_control,
            yes_or_no=spec(measure).yes_or_no,
            confidence=confidence,
            resamples=1000,
        )
        floor = float(np.nanmean(control_values)) if spec(measure).group.floor else math.nan
        for side, response in sides.items():
            limited = response if spec(measure).group.breaks else response.without_breaking_point()
            yield (measure, side), replace(limited, floor=floor)
