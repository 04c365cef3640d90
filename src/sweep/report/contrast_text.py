"""Baseline and contrasts as text: notes, and the table of contrasts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sweep.report.measures import title
from sweep.scoring.registry import shown_in, spec

if TYPE_CHECKING:
    from sweep.report.comparison import Comparison
    from sweep.report.paired_differences import Difference

COLUMNS = ("contrast", "measure", "difference", "p", "q", "gained/lost", "prompts", "could show")
MAX_ROWS = 40  # rows of the printed table; contrasts.csv has all


def baseline_notes(comparison: Comparison) -> Iterator[str]:
    """Yield what differences are compared with, if that is not the control, and what could not be compared."""
    baselines = comparison.baselines
    if baselines.name:
        yield f"Baseline: {baselines.name}. Differences, intervals and tests are against it, not against the control"
        if baselines.single is None and comparison.series:
            yield "First effective doses and breaking points are against the control"
    yield from (note.removesuffix(".") for note in (baselines.note, *comparison.contrasts.notes) if note)


def contrast_measures(comparison: Comparison) -> list[str]:
    """Return the measures that the table of contrasts shows: those of the terminal's table that are tested."""
    measured = {name for contrast in comparison.contrasts.rows for name in contrast.differences}
    names = dict.fromkeys([*comparison.first, *shown_in("terminal")])
    return [name for name in names if name in measured and spec(name).group.headline]


def contrast_rows(comparison: Comparison, measures: Sequence[str] | None = None) -> list[list[str]]:
    """Return the cells of the table of contrasts, in the order of `COLUMNS`.

    Args:
        comparison: comparison of all points.
        measures: the measures to show; None: those of `contrast_measures`.
    """
    chosen = contrast_measures(comparison) if measures is None else measures
    return [
        [
            f"{contrast.first} − {contrast.second}",
            title(name),
            _difference(difference),
            f"{difference.p:.2g}",
            f"{difference.q:.2g}{' *' if difference.significant else ''}",
            counts(difference) or "–",
            str(contrast.prompts.get(name, 0)),
            "" if difference.significant else _detectable(difference.detectable),
        ]
        for contrast in comparison.contrasts.rows
        for name in chosen
        if (difference := contrast.differences.get(name)) is not None
    ]


def counts(difference: Difference | None) -> str:
    """Return the prompts gained and lost, as `+3/-12`; empty unless the measure is yes or no."""
    if difference is None or difference.gained is None:
        return ""
    return f"+{difference.gained}/-{difference.lost}"


def _detectable(effect: float) -> str:
    return f"{effect:.2g}" if math.isfinite(effect) else "none"


def _difference(difference: Difference) -> str:
    low, high = difference.ci_low, difference.ci_high
    interval = "" if math.isnan(low) or math.isnan(high) else f" [{low:+.3g}, {high:+.3g}]"
    return f"{difference.mean:+.3g}{interval}"
