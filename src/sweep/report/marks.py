"""Marks of the tables, and sentences about rows without a significant difference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from sweep.report.paired_differences import DIFFERENT, EQUIVALENT, LEVEL, Difference
from sweep.scoring.equivalence import POWER

if TYPE_CHECKING:
    from sweep.report.comparison import Comparison
    from sweep.report.replicates import Row

SIGNIFICANT, SAME, OPEN = "*", "≈", "?"
MAX_NAMES = 6  # rows that a sentence names


def marks(difference: Difference | None) -> str:
    """Return the marks of a difference, each after a space: significant, and the verdict on equivalence."""
    if difference is None:
        return ""
    verdict = {"": "", DIFFERENT: "", EQUIVALENT: f" {SAME}"}.get(difference.verdict, f" {OPEN}")
    return (f" {SIGNIFICANT}" if difference.significant else "") + verdict


def legend(comparison: Comparison) -> Iterator[str]:
    """Yield the meaning of the marks and of the numbers of pooled rows."""
    word = comparison.baselines.word
    yield f"{SIGNIFICANT} differs from the {word} (q < {LEVEL:g}). The control's own divergence is the noise floor."
    margins = {
        measure: difference.margin
        for differences in comparison.row_differences.values()
        for measure, difference in differences.items()
        if difference.verdict
    }
    if margins:
        level = f"{(2 * comparison.confidence - 1) * 100:.3g} %"
        within = f"±{next(iter(margins.values())):g}" if len(set(margins.values())) == 1 else "±scoring.equivalence"
        yield (
            f"{SAME} equivalent: the {level} interval of the difference from the {word} lies within {within}. "
            f"{OPEN} undecided: neither different nor equivalent."
        )
    if any(row.is_pooled for row in comparison.rows):
        yield (
            "Rows with seeds: mean over prompts of the mean over seeds, with the interval over prompts. "
            "± is the standard deviation between the seeds' means."
        )


def null_findings(
    comparison: Comparison, measures: Sequence[str], as_text: Callable[[str], str] = str
) -> Iterator[str]:
    """Yield a sentence per measure: which rows do not differ, and what difference the prompts could have shown.

    Args:
        comparison: comparison of all points.
        measures: the measures.
        as_text: escapes the names of measures and rows.
    """
    for measure in measures:
        found = [
            (row, difference)
            for row in comparison.rows
            if (difference := comparison.row_differences.get(row.index, {}).get(measure)) is not None
            and not difference.significant
        ]
        if found:
            yield f"{as_text(measure)}: no significant difference at {_names([row for row, _ in found], as_text)}. " + (
                detectable_text([difference for _, difference in found], comparison.confidence)
            )


def detectable_text(differences: Sequence[Difference], confidence: float) -> str:
    """Return what the prompts could have shown, over all of the differences."""
    level = f"p < {1 - confidence:.2g}"
    effects = [difference.detectable for difference in differences]
    finite = [effect for effect in effects if math.isfinite(effect)]
    if not finite:
        return f"These prompts are too few to show any difference at {level}."
    low, high = f"{min(finite):.2g}", f"{max(finite):.2g}"
    size = low if low == high else f"{low} to {high}"
    some = "" if len(finite) == len(effects) else " For some, they are too few to show any."
    test = f"one test at {level}, {POWER * 100:.0f} % power"
    return f"Smallest difference that the prompts could show: {size} ({test}).{some}"


def _names(rows: Sequence[Row], as_text: Callable[[str], str]) -> str:
    names = [as_text(row.name) for row in rows[:MAX_NAMES]]
    more = f" and {len(rows) - MAX_NAMES} more" if len(rows) > MAX_NAMES else ""
    return "; ".join(names) + more
