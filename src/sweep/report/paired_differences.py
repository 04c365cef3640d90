"""Paired differences from the control or another baseline: tested per point and measure, corrected for multiplicity."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count as count_from

import numpy as np

from sweep.core.values import Floats
from sweep.planning.results import PointResult
from sweep.report.replicates import Row, value_table
from sweep.scoring.equivalence import detectable_effects, equivalence_intervals
from sweep.scoring.registry import GROUPS, spec
from sweep.scoring.significance import benjamini_hochberg, p_values, smallest_p
from sweep.scoring.statistics import Intervals, is_yes_or_no, paired_difference

LEVEL = 0.05  # of the false discovery rate; differences with a lower q are called significant

DIFFERENT, EQUIVALENT, UNDECIDED = "different", "equivalent", "undecided"
Margin = Callable[[str], float]  # a measure's margin of equivalence; NaN: none


def no_margin(measure: str) -> float:
    """Return NaN: equivalence is not tested."""
    return math.nan


@dataclass(frozen=True, slots=True)
class Difference:
    """A point's mean difference from its baseline in one measure.

    Attributes:
        mean: mean of the differences, paired by prompt.
        ci_low, ci_high: its confidence interval.
        p: two-sided p-value of no difference.
        q: p adjusted by Benjamini and Hochberg, over all points and all measures of one group.
        detectable: smallest difference that the prompts could show at 80 % power, see `detectable_effects`.
        margin: margin of equivalence; NaN: none.
        inner_low, inner_high: interval of the equivalence test, see `equivalence_intervals`; NaN without a margin.
        gained, lost: for a yes-or-no measure, number of prompts with a higher and with a lower value than the baseline.
    """

    mean: float
    ci_low: float
    ci_high: float
    p: float
    q: float
    detectable: float = math.nan
    margin: float = math.nan
    inner_low: float = math.nan
    inner_high: float = math.nan
    gained: int | None = None
    lost: int | None = None

    @property
    def significant(self) -> bool:
        """Whether q is below `LEVEL`."""
        return self.q < LEVEL

    @property
    def verdict(self) -> str:
        """`equivalent` within ±`margin`, else `different` if significant, else `undecided`; empty without a margin."""
        if math.isnan(self.margin):
            return ""
        if -self.margin < self.inner_low and self.inner_high < self.margin:
            return EQUIVALENT
        return DIFFERENT if self.significant else UNDECIDED


@dataclass(frozen=True, slots=True)
class DifferenceTest:
    """Test of one row in one measure.

    Attributes:
        difference: the difference; its q is NaN.
        prompts: number of prompts with a value for both the row and its baseline.
        changeable: number of these prompts that can change in the same direction.
    """

    difference: Difference
    prompts: int
    changeable: int


@dataclass(frozen=True, slots=True)
class SignificanceLimit:
    """Detection limit of a group's tests.

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


def paired_tables(measure: str, rows: Sequence[Row], prompts: int) -> tuple[Floats, Floats]:
    """Return the values of rows and of their partners, (rows, prompts) each; means over seeds of replicates."""
    values = value_table(measure, [row.result for row in rows], prompts)
    controls = value_table(measure, [row.pairs[0][1] for row in rows], prompts)
    for position, row in enumerate(rows):
        if row.is_pooled:
            values[position], controls[position] = row.paired_values(measure, prompts)
    return values, controls


def difference_tests(
    measure: str, rows: Sequence[Row], confidence: float, margin: float = math.nan
) -> Iterator[tuple[tuple[int, str], DifferenceTest]]:
    """Yield each row's test against its control or baseline in one measure, by the row's index and the measure.

    Args:
        measure: metric name.
        rows: rows with values and a partner, all with the same prompts in the same order.
        confidence: level of the intervals.
        margin: margin of equivalence; NaN: none.
    """
    # The control's divergences come from its second run.
    values, controls = paired_tables(measure, rows, len(next(iter(rows[0].result.values.values()))))
    for position, test in table_tests(measure, values, controls, confidence, margin):
        yield (rows[position].index, measure), test


def table_tests(
    measure: str, table: Floats, controls: Floats, confidence: float, margin: float = math.nan
) -> Iterator[tuple[int, DifferenceTest]]:
    """Yield the test of each row that has a prompt in common with its control, with the row's position.

    Args:
        measure: metric name.
        table: (rows, prompts); NaN marks missing values.
        controls: likewise, what each row is compared with.
        confidence: level of the intervals.
        margin: margin of equivalence; NaN: none.
    """
    (low, high), yes_or_no = spec(measure).range, spec(measure).yes_or_no
    if spec(measure).may_be_yes_or_no and not yes_or_no:  # then the values of all rows decide together
        yes_or_no = bool(is_yes_or_no(table).all() and is_yes_or_no(controls).all())
    difference = paired_difference(table, controls, confidence, yes_or_no=yes_or_no)
    p = p_values(table, controls, yes_or_no=yes_or_no, permutations=1999)
    effects = detectable_effects(table, controls, confidence, yes_or_no=yes_or_no, width=high - low)
    inner = None
    if not math.isnan(margin):
        inner = equivalence_intervals(table, controls, confidence, yes_or_no=yes_or_no, width=high - low)
    for i in range(len(table)):
        if difference.n[i]:
            present = ~np.isnan(table[i] - controls[i])
            # A right answer can only become wrong, a wrong one only right.
            exact = yes_or_no and np.isin([*table[i, present], *controls[i, present]], (0, 1)).all()
            correct = int((controls[i, present] == 1).sum())
            changeable = max(correct, int(present.sum()) - correct) if exact else int(present.sum())
            # Means over seeds or samples may differ by rounding alone.
            changes = (table[i, present] - controls[i, present]).round(12)
            counts = (int((changes > 0).sum()), int((changes < 0).sum())) if yes_or_no else (None, None)
            found = Difference(
                *_estimate(difference, i),
                float(p[i]),
                math.nan,
                float(effects[i]),
                margin,
                *((math.nan, math.nan) if inner is None else _estimate(inner, i)[1:]),
                *counts,
            )
            yield i, DifferenceTest(found, int(present.sum()), changeable)


def _estimate(found: Intervals, row: int) -> tuple[float, float, float]:
    return float(found.mean[row]), float(found.ci_low[row]), float(found.ci_high[row])


def adjust_for_multiplicity(tests: Mapping[tuple[int, str], DifferenceTest]) -> dict[int, dict[str, Difference]]:
    """Return the differences by index and measure, with q-values over all rows and measures of each group."""
    differences: dict[int, dict[str, Difference]] = {}
    for group in GROUPS:
        keys = [key for key in tests if spec(key[1]).group.name == group]
        qs = benjamini_hochberg([tests[key].difference.p for key in keys])
        for (index, measure), q in zip(keys, qs, strict=True):
            tested = tests[index, measure].difference
            differences.setdefault(index, {})[measure] = replace(tested, q=float(q))
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
