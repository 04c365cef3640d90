"""Comparison of a sweep's points with their controls or another baseline, with each other, and along their axes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from sweep.config.combinations import unscoped, zip_groups
from sweep.config.overrides import axis_key
from sweep.config.report_config import ReportConfig
from sweep.planning.results import PointResult
from sweep.points.point import as_text, common_axes
from sweep.report.baselines import (
    Baselines,
    against,
    aligned,
    find_baselines,
    points_against,
    rows_against,
    tests_of,
)
from sweep.report.contrasts import Contrasts, find_contrasts
from sweep.report.measures import ranking_of
from sweep.report.neutral import neutral_dose
from sweep.report.paired_differences import (
    Difference,
    Margin,
    SignificanceLimit,
    adjust_for_multiplicity,
    compared_measures,
    no_margin,
    paired_tables,
    significance_limits,
)
from sweep.report.replicates import Row, find_rows, value_table
from sweep.report.series import Series, TreatedPoint, find_series
from sweep.report.turning import Front, Turning, find_front, find_turnings
from sweep.scoring.registry import spec
from sweep.scoring.response import Response, Side, dose_response
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
        means: by measure, the mean of each dose's row. Only for a series that pools seeds.
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
        rows: the rows of the tables, in which points that differ in their seeds alone are pooled.
        row_differences: the rows' differences to the rows of their controls or baselines, by the row's index and
            measure. Their q are over all rows. Equal to `differences` if nothing is pooled.
        series: series along each numeric axis.
        neutral: doses that change nothing, which is where the control stands; by the control's index and the axis.
        confidence: level of the intervals.
        first: measures to show before others.
        limits: what the significance tests of the rows can show at most, by group of measures.
        baselines: what `differences` and `row_differences` are differences to.
        contrasts: comparisons of `report.contrasts`.
        turnings: best dose, shape and trend of each series, by measure.
        front: the rows by effect and quality; None without both measures.
    """

    results: Sequence[PointResult]
    controls: Mapping[int, int] = field(default_factory=dict)
    differences: Mapping[int, Mapping[str, Difference]] = field(default_factory=dict)
    rows: Sequence[Row] = ()
    row_differences: Mapping[int, Mapping[str, Difference]] = field(default_factory=dict)
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
    results: Iterable[PointResult],
    confidence: float,
    first: Sequence[str] = (),
    margin: Margin = no_margin,
    report: ReportConfig = DEFAULT,
) -> Comparison:
    """Compare all points with their controls, and analyse the responses to each swept number.

    Args:
        results: all points of the sweep, in any order.
        confidence: level of the intervals.
        first: measures to show before others.
        margin: returns a measure's margin of equivalence.
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
    rows = find_rows(ordered, controls, confidence)
    baselines = find_baselines(ordered, rows, controls, report)
    tests = row_tests = tests_of(rows_against(baselines, rows, by_index), confidence, margin)
    if any(row.is_pooled for row in rows):
        tests = tests_of(points_against(baselines, by_index), confidence, margin)
    row_of = {member.index: row for row in rows for member in row.members}
    entries = [
        TreatedPoint(result.index, dict(result.point.axes), row_of[result.index].control)
        for result in ordered
        if not result.point.is_control and result.error is None
    ]
    zips = zip_groups(ordered[0].point.config.sweep.zip) if ordered else []
    zips = [[axis_key(unscoped(key)) for key in group] for group in zips]
    baseline = None if baselines.single is None else row_of[baselines.single]
    series = [_series_response(series, row_of, confidence, baseline) for series in find_series(entries, zips)]
    quality = ranking_of((name for result in ordered for name in result.summaries), first)
    return Comparison(
        ordered,
        controls,
        adjust_for_multiplicity(tests),
        rows,
        adjust_for_multiplicity(row_tests),
        series,
        neutral,
        confidence,
        first,
        significance_limits(row_tests),
        baselines,
        find_contrasts(ordered, report, confidence),
        find_turnings((described.series for described in series), row_of, confidence, report),
        find_front(rows, quality, report),
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
    series: Series, row_of: Mapping[int, Row], confidence: float, baseline: Row | None
) -> SeriesResponse:
    """Return a series with its responses and, if it pools seeds, the pooled means.

    Its rows are compared with their control, or with a baseline that is one row.
    """
    by_dose = {
        row_of[point].index: (dose, row_of[point])
        for dose, point in zip(series.doses, series.points, strict=True)
        if row_of[point].pairs or row_of[point].finished
    }
    doses, rows = [dose for dose, _ in by_dose.values()], [row for _, row in by_dose.values()]
    control = None if series.control is None else row_of[series.control]
    means = {name: _means(name, doses, rows) for name in _all_measures(rows)} if series.pooled else {}
    responses: dict[tuple[str, Side], Response] = {}
    if control is not None and len(set(doses)) > 1:
        is_control = baseline is None or baseline is control
        if baseline is not None and not is_control:
            reference = aligned(baseline.result, rows[0].result)
            control, rows = Row(reference, (reference,)), [against(row, reference) for row in rows]
        responses = dict(_responses(series.axis, doses, rows, control, confidence, is_control))
    return SeriesResponse(series, responses, means)


def _all_measures(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.result.values))


def _means(measure: str, doses: Sequence[float], rows: Sequence[Row]) -> list[Mean]:
    found = [(dose, row.result.summaries.get(measure)) for dose, row in zip(doses, rows, strict=True)]
    return [(dose, mean.mean, mean.ci_low, mean.ci_high) for dose, mean in found if mean is not None]


def _responses(
    axis: str, doses: Sequence[float], rows: Sequence[Row], control: Row, confidence: float, is_control: bool
) -> Iterator[tuple[tuple[str, Side], Response]]:
    """Yield a series' responses by measure and side."""
    prompts = len(next(iter(control.result.values.values())))
    neutral, control_is_neutral = neutral_dose(axis, [row.result.point.config.transform for row in rows])
    seeds = {member.index for member in control.finished}
    for measure in compared_measures([row.result for row in rows]):
        control_values = value_table(measure, [control.result], prompts)[0]
        if np.isnan(control_values).all():
            continue
        values, own_controls = paired_tables(measure, rows, prompts)
        for position, row in enumerate(rows):
            # With a failed seed, the row has other controls than the series. Its difference from them is kept.
            if {other.index for _, other in row.pairs} != seeds:
                values[position] += control_values - own_controls[position]
        # The control's divergences come from its second run, so a difference from them is a difference from the floor.
        sides = dose_response(
            doses,
            values,
            control_values,
            neutral=neutral,
            control_is_neutral=control_is_neutral and is_control,
            yes_or_no=spec(measure).may_be_yes_or_no,
            confidence=confidence,
            resamples=1000,
        )
        floor = float(np.nanmean(control_values)) if spec(measure).group.floor else math.nan
        for side, response in sides.items():
            limited = response if spec(measure).group.breaks else response.without_breaking_point()
            yield (measure, side), replace(limited, floor=floor)
