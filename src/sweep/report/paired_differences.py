"""Paired differences from the control or another baseline: tested per point and measure, corrected for multiplicity."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count as count_from

import numpy as np

from sweep.core.values import Floats
from sweep.planning.results import PointResult
from sweep.scoring.registry import GROUPS, spec
from sweep.scoring.significance import benjamini_hochberg, p_values, smallest_p
from sweep.scoring.statistics import Intervals, paired_difference

LEVEL = 0.05  # of the false discovery rate; differences with a lower q are called significant


@dataclass(frozen=True, slots=True)
class Difference:
    """A point's mean difference from its baseline in one measure.

    Attributes:
        mean: mean of the differences, paired by prompt.
        ci_low, ci_high: its confidence interval.
        p: two-sided p-value of no difference.
        q: p adjusted by Benjamini and Hochberg, over all points and all measures of one group.
        gained, lost: for a yes-or-no measure, number of prompts with a higher and with a lower value than the baseline.
    """

    mean: float
    ci_low: float
    ci_high: float
    p: float
    q: float
    gained: int | None = None
    lost: int | None = None

    @property
    def significant(self) -> bool:
        """Whether q is below `LEVEL`."""
        return self.q < LEVEL


@dataclass(frozen=True, slots=True)
class DifferenceTest:
    """Test of one point in one measure.

    Attributes:
        differences: mean differences of all points in this measure.
        row: the point's row in `differences`.
        p: p-value of no difference.
        prompts: number of prompts with a value for both the point and its baseline.
        changeable: number of these prompts that can change in the same direction.
        gained, lost: see `Difference`.
    """

    differences: Intervals
    row: int
    p: float
    prompts: int
    changeable: int
    gained: int | None = None
    lost: int | None = None


@dataclass(frozen=True, slots=True)
class SignificanceLimit:
    """What the tests of a group of measures can show at most.

    Attributes:
        prompts: number of prompts of the most powerful test.
        changeable: number of its prompts that can change in the same direction.
        tests: number of tests in the group.
    """

    prompts: int
    changeable: int
    tests: int

    @property
    def smallest_p(self) -> float:
        """Smallest possible p-value."""
        return smallest_p(self.changeable)

    @property
    def required_p(self) -> float:
        """A single difference with a lower p is significant, whatever the other p-values are."""
        return LEVEL / self.tests

    @property
    def required_prompts(self) -> int:
        """Number of prompts that must be able to change in the same direction to reach `required_p`."""
        return next(count for count in count_from(1) if smallest_p(count) < self.required_p)


def compared_measures(points: Sequence[PointResult]) -> list[str]:
    """Return those of the points' measures that are compared with the control."""
    names = dict.fromkeys(name for result in points for name in result.values)
    return [name for name in names if spec(name).group.tested]


def value_table(measure: str, points: Sequence[PointResult], prompts: int) -> Floats:
    """Return the points' values, (points, prompts); NaN marks missing values."""
    empty = np.full(prompts, math.nan)
    return np.stack([result.values.get(measure, empty) for result in points])


def difference_tests(
    measure: str, points: Sequence[PointResult], control: PointResult, confidence: float
) -> Iterator[tuple[tuple[int, str], DifferenceTest]]:
    """Yield each point's test against its control in one measure, by the point's index and the measure.

    Args:
        measure: the measure.
        points: with the same prompts in the same order.
        control: the control or another baseline, with its values in that order.
        confidence: level of the intervals.
    """
    prompts = len(next(iter(control.values.values())))
    # The control's divergences come from its second run.
    table = value_table(measure, points, prompts)
    for row, test in table_tests(measure, table, value_table(measure, [control], prompts)[0], confidence):
        yield (points[row].index, measure), test


def table_tests(
    measure: str, table: Floats, control_values: Floats, confidence: float
) -> Iterator[tuple[int, DifferenceTest]]:
    """Yield the test of each row that has a prompt in common with the control, with the row's number.

    Args:
        measure: the measure.
        table: (points, prompts); NaN marks missing values.
        control_values: (prompts,), likewise.
        confidence: level of the intervals.
    """
    yes_or_no = spec(measure).yes_or_no
    difference = paired_difference(table, control_values, confidence, yes_or_no=yes_or_no)
    p = p_values(table, control_values, yes_or_no=yes_or_no, permutations=1999)
    for row in range(len(table)):
        if difference.n[row]:
            present = ~np.isnan(table[row] - control_values)
            # A right answer can only become wrong, a wrong one only right.
            exact = yes_or_no and np.isin([*table[row, present], *control_values[present]], (0, 1)).all()
            correct = int((control_values[present] == 1).sum())
            changeable = max(correct, int(present.sum()) - correct) if exact else int(present.sum())
            changes = table[row, present] - control_values[present]
            counts = (int((changes > 0).sum()), int((changes < 0).sum())) if yes_or_no else (None, None)
            yield row, DifferenceTest(difference, row, float(p[row]), int(present.sum()), changeable, *counts)


def adjust_for_multiplicity(tests: Mapping[tuple[int, str], DifferenceTest]) -> dict[int, dict[str, Difference]]:
    """Return the differences by index and measure, with q-values over all points and measures of each group."""
    differences: dict[int, dict[str, Difference]] = {}
    for group in GROUPS:
        keys = [key for key in tests if spec(key[1]).group.name == group]
        qs = benjamini_hochberg([tests[key].p for key in keys])
        for (index, measure), q in zip(keys, qs, strict=True):
            test = tests[index, measure]
            values, row = test.differences, test.row
            mean, low, high = float(values.mean[row]), float(values.ci_low[row]), float(values.ci_high[row])
            difference = Difference(mean, low, high, test.p, float(q), test.gained, test.lost)
            differences.setdefault(index, {})[measure] = difference
    return differences


def significance_limits(tests: Mapping[tuple[int, str], DifferenceTest]) -> dict[str, SignificanceLimit]:
    """Return what the tests can show at most, by group of measures."""
    limits = {}
    for group in GROUPS:
        in_group = [test for (_, measure), test in tests.items() if spec(measure).group.name == group]
        if in_group:
            best = max(in_group, key=lambda test: test.changeable)
            limits[group] = SignificanceLimit(best.prompts, best.changeable, len(in_group))
    return limits
