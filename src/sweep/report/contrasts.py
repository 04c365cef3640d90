"""Contrasts: differences between any two points of a sweep, paired by prompt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sweep.config.report_config import ReportConfig
from sweep.core.values import Floats
from sweep.errors import ConfigError
from sweep.planning.results import PointResult
from sweep.report.baselines import aligned
from sweep.report.paired_differences import (
    Difference,
    DifferenceTest,
    adjust_for_multiplicity,
    compared_measures,
    difference_tests,
)
from sweep.report.point_selectors import CONTRASTS, pairs, select, selectable
from sweep.report.replicates import Row
from sweep.scoring.registry import spec
from sweep.util.counts import counted


@dataclass(frozen=True, slots=True)
class Contrast:
    """One row of `report.contrasts`: the first point minus the second.

    Attributes:
        first: name of the point.
        second: name of the point that is subtracted.
        differences: by measure. q is adjusted over all contrasts and all measures of one group.
        prompts: number of prompts of both, by measure.
    """

    first: str
    second: str
    differences: Mapping[str, Difference] = field(default_factory=dict)
    prompts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Contrasts:
    """All contrasts of a sweep.

    Attributes:
        rows: in the order of `report.contrasts`.
        notes: contrasts that could not be made, and why.
    """

    rows: Sequence[Contrast] = ()
    notes: Sequence[str] = ()


def find_contrasts(results: Sequence[PointResult], report: ReportConfig, confidence: float) -> Contrasts:
    """Return the contrasts of `report.contrasts`.

    If a contrast has several pairs, a last row compares their means: each prompt's mean over the pairs of transformed
    points, or of controls if there are no others. Two controls are not compared in divergences, which are their noise
    floors.

    Args:
        results: all points of the sweep.
        report: section `report`.
        confidence: level of the intervals.
    """
    if not report.contrasts:
        return Contrasts()
    by_index = {result.index: result for result in results}
    candidates = selectable((result.index, result.point) for result in results)
    tests: dict[tuple[int, str], DifferenceTest] = {}
    names: list[tuple[str, str]] = []
    notes = []

    def add(first: PointResult, second: PointResult, label: tuple[str, str]) -> None:
        row = Row(first, (first,), ((first, aligned(second, first)),), second.index)
        both_controls = first.point.is_control and second.point.is_control
        for measure in compared_measures([first]):
            if both_controls and spec(measure).group.floor:
                continue
            for (_, name), test in difference_tests(measure, [row], confidence):
                tests[len(names), name] = test
        names.append(label)

    for first_text, second_text in report.pairs:
        try:
            found = [(a, b) for a, b in pairs(*(select(t, candidates, CONTRASTS) for t in (first_text, second_text)))]
        except ConfigError as error:  # a search, which has no points before it starts
            notes.append(str(error))
            continue
        complete = [(a, b) for a, b in found if by_index[a.index].values and by_index[b.index].values]
        if len(complete) < len(found) or not found:
            missing = len(found) - len(complete)
            lacking = f"{counted(missing, 'pair')} without results" if missing else "no points agree in all other keys"
            notes.append(f"{CONTRASTS}: {first_text!r} and {second_text!r}: {lacking}.")
        for a, b in complete:
            add(by_index[a.index], by_index[b.index], (a.name, b.name))
        averaged = [pair for pair in complete if not (pair[0].is_control and pair[1].is_control)] or complete
        if len(averaged) > 1:
            firsts, seconds = ([by_index[pair[side].index] for pair in averaged] for side in (0, 1))
            label = f"mean of {len(averaged)} points"
            add(mean_of(firsts), mean_of(seconds), (f"{first_text} ({label})", f"{second_text} ({label})"))
    differences = adjust_for_multiplicity(tests)
    rows = [
        Contrast(first, second, differences.get(i, {}), {name: t.prompts for (j, name), t in tests.items() if i == j})
        for i, (first, second) in enumerate(names)
    ]
    return Contrasts(rows, notes)


def mean_of(results: Sequence[PointResult]) -> PointResult:
    """Return a result whose values are each prompt's mean over points, paired by prompt id; NaN if one lacks it."""
    first = results[0]
    others = [aligned(result, first) for result in results]
    shared = [name for name in first.values if all(name in other.values for other in others)]
    values: dict[str, Floats] = {name: np.mean([other.values[name] for other in others], axis=0) for name in shared}
    return PointResult(first.index, first.point, {}, values, None, first.prompt_ids)


def table_rows(contrasts: Contrasts) -> Iterator[tuple[Contrast, str, Difference]]:
    """Yield each contrast's difference in each measure, as in `contrasts.csv`."""
    for contrast in contrasts.rows:
        for measure, difference in contrast.differences.items():
            yield contrast, measure, difference
