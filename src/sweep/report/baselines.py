"""Baselines: which point each point is compared with, its control or the one of `report.baseline`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sweep.config.report_config import ReportConfig
from sweep.core.values import Floats
from sweep.errors import ConfigError
from sweep.planning.results import PointResult
from sweep.report.paired_differences import DifferenceTest, compared_measures, difference_tests
from sweep.report.point_selectors import BASELINE, select, selectable


@dataclass(frozen=True, slots=True)
class Baselines:
    """What the points of a sweep are compared with.

    Attributes:
        of: index of the point that each point is compared with, by the point's index.
        name: the baseline in words; empty: the points' controls.
        single: index of the baseline, if it is one point for the whole sweep; None also if it is the controls.
        note: why `report.baseline` is not used; empty if it is.
    """

    of: Mapping[int, int] = field(default_factory=dict)
    name: str = ""
    single: int | None = None
    note: str = ""

    @property
    def word(self) -> str:
        """What a sentence calls it: `control` or `baseline`."""
        return "baseline" if self.name else "control"

    @property
    def word_of_responses(self) -> str:
        """What doses are compared with: `control` or `baseline`."""
        return "control" if self.single is None else "baseline"


def find_baselines(results: Sequence[PointResult], controls: Mapping[int, int], report: ReportConfig) -> Baselines:
    """Return the baselines of finished points: those of `report.baseline`, or their controls.

    Args:
        results: all points of the sweep.
        controls: index of each finished point's control, by the point's index.
        report: section `report`.
    """
    if report.baseline is None:
        return Baselines(controls)
    candidates = selectable((result.index, result.point) for result in results)
    valued = {result.index for result in results if result.values}
    try:
        selection = select(report.baseline, candidates, BASELINE)
    except ConfigError as error:  # a search, which has no points before it starts
        return Baselines(controls, note=f"{error} Points are compared with their controls.")
    if not any(point.index in valued for point in selection.points):
        names = ", ".join(point.name for point in selection.points[:3])
        return Baselines(controls, note=f"{BASELINE}: {names} failed, so points are compared with their controls.")
    partners = {point.index: selection.partner(point) for point in candidates if point.index in valued}
    of = {index: other.index for index, other in partners.items() if other is not None and other.index in valued}
    if of == controls:
        return Baselines(controls)
    single = selection.single
    name = single.name if single is not None else f"the point with {report.baseline} and otherwise equal values"
    return Baselines(of, name, None if single is None else single.index)


def tests_against(
    baselines: Mapping[int, int], results: Mapping[int, PointResult], confidence: float
) -> Iterator[tuple[tuple[int, str], DifferenceTest]]:
    """Yield the test of each point against its baseline in each measure, by the point's index and the measure."""
    groups: dict[tuple[int, str], list[PointResult]] = {}
    for index, baseline in baselines.items():
        # Points of one control have the same prompts.
        groups.setdefault((baseline, results[index].point.control_key), []).append(results[index])
    for (baseline, _), points in groups.items():
        other = aligned(results[baseline], points[0])
        for measure in compared_measures(points):
            yield from difference_tests(measure, points, other, confidence)


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
