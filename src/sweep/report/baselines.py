"""Baselines: which point each point is compared with, its control or the one of `report.baseline`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from sweep.config.report_config import ReportConfig
from sweep.core.values import Floats
from sweep.errors import ConfigError
from sweep.planning.results import PointResult
from sweep.report.paired_differences import DifferenceTest, Margin, compared_measures, difference_tests
from sweep.report.point_selectors import BASELINE, select, selectable
from sweep.report.replicates import Row, shared_control_key


@dataclass(frozen=True, slots=True)
class Baselines:
    """Reference points and rows of a sweep's comparisons.

    Attributes:
        of: index of the point that each point is compared with, by the point's index.
        rows: index of the row that each row is compared with, by the row's index.
        name: the baseline in words; empty: the points' controls.
        single: index of the baseline's row, if it is one row for the whole sweep; None also if it is the controls.
        note: why `report.baseline` is not used; empty if it is.
    """

    of: Mapping[int, int] = field(default_factory=dict)
    rows: Mapping[int, int] = field(default_factory=dict)
    name: str = ""
    single: int | None = None
    note: str = ""

    @property
    def word(self) -> str:
        """Word for the reference in a sentence: `control` or `baseline`."""
        return "baseline" if self.name else "control"

    @property
    def word_of_responses(self) -> str:
        """Word for the reference of dose-responses: `control` or `baseline`."""
        return "control" if self.single is None else "baseline"


def find_baselines(
    results: Sequence[PointResult], rows: Sequence[Row], controls: Mapping[int, int], report: ReportConfig
) -> Baselines:
    """Return the baselines of finished points and rows: those of `report.baseline`, or their controls.

    Args:
        results: all points of the sweep.
        rows: the rows of the sweep.
        controls: index of each finished point's control, by the point's index.
        report: section `report`.
    """
    default = Baselines(controls, {row.index: row.control for row in rows if row.control is not None})
    if report.baseline is None:
        return default
    candidates = selectable((result.index, result.point) for result in results)
    valued = {result.index for result in results if result.values}
    try:
        selection = select(report.baseline, candidates, BASELINE)
    except ConfigError as error:  # a search, which has no points before it starts
        return replace(default, note=f"{error} Points are compared with their controls.")
    if not any(point.index in valued for point in selection.points):
        names = ", ".join(point.name for point in selection.points[:3])
        return replace(default, note=f"{BASELINE}: {names} failed, so points are compared with their controls.")
    partners = {point.index: selection.partner(point) for point in candidates if point.index in valued}
    of = {index: other.index for index, other in partners.items() if other is not None and other.index in valued}
    row_of = {member.index: row for row in rows for member in row.members}
    chosen = {row_of[point.index].index for point in selection.points}
    if len(chosen) == 1:  # one point, or replicates
        base = row_of[selection.points[0].index]
        others = {row.index: base.index for row in rows if row.finished and row is not base}
        name = base.name
    else:
        pairs = {row.index: [of[m.index] for m in row.members if m.index in of] for row in rows}
        others = {index: row_of[found[0]].index for index, found in pairs.items() if found}
        name = f"the point with {report.baseline} and otherwise equal values"
    treated = {index: other for index, other in of.items() if index in controls}
    if others == default.rows or (controls and treated == controls and len(chosen) > 1):
        return default
    return Baselines(of, others, name, next(iter(chosen)) if len(chosen) == 1 else None)


def points_against(baselines: Baselines, results: Mapping[int, PointResult]) -> list[Row]:
    """Return a row for each point that has a baseline, with this baseline."""
    return [against(Row(results[i], (results[i],)), results[other]) for i, other in sorted(baselines.of.items())]


def rows_against(baselines: Baselines, rows: Sequence[Row], results: Mapping[int, PointResult]) -> list[Row]:
    """Return the rows that have a baseline, with this baseline.

    If the baseline is one row, a row's means over its seeds are compared with the baseline's. If it is several, each
    point of a row is paired with its own baseline.
    """
    if not baselines.name:
        return [row for row in rows if row.control is not None and row.pairs]
    by_index = {row.index: row for row in rows}
    found = []
    for row in (by_index[index] for index in baselines.rows):
        if baselines.single is not None:
            found.append(against(row, by_index[baselines.single].result))
            continue
        members = [member for member in row.finished if member.index in baselines.of]
        pairs = tuple((member, aligned(results[baselines.of[member.index]], member)) for member in members)
        found.append(replace(row, pairs=pairs, control=baselines.rows[row.index]))
    return found


def against(row: Row, other: PointResult) -> Row:
    """Return a row that is compared with one result, by its means over seeds."""
    return replace(row, pairs=((row.result, aligned(other, row.result)),), control=other.index)


def tests_of(rows: Sequence[Row], confidence: float, margin: Margin) -> dict[tuple[int, str], DifferenceTest]:
    """Return the test of each row against its partner in each measure, by the row's index and the measure."""
    groups: dict[tuple[int | None, str], list[Row]] = {}
    for row in rows:
        # Rows of one control have the same prompts.
        groups.setdefault((row.control, shared_control_key(row.result.point)), []).append(row)
    tests: dict[tuple[int, str], DifferenceTest] = {}
    for group in groups.values():
        for measure in compared_measures([row.result for row in group]):
            tests |= difference_tests(measure, group, confidence, margin(measure))
    return tests


def aligned(result: PointResult, like: PointResult) -> PointResult:
    """Return a result with its values in the order of another point's prompts, paired by prompt id.

    Prompts that it lacks have NaN.
    """
    if not result.prompt_ids or not like.prompt_ids or tuple(result.prompt_ids) == tuple(like.prompt_ids):
        return result
    place = {prompt: position for position, prompt in enumerate(result.prompt_ids)}
    order = np.array([place.get(prompt, -1) for prompt in like.prompt_ids])
    values: dict[str, Floats] = {
        name: np.where(order < 0, math.nan, array[np.maximum(order, 0)]) for name, array in result.values.items()
    }
    return PointResult(result.index, result.point, result.summaries, values, result.error, like.prompt_ids)
