"""Turning responses and the Pareto front as sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from sweep.console.text import code, markdown, one_line
from sweep.report.measures import short_key
from sweep.scoring.turning import LEVEL

if TYPE_CHECKING:
    from sweep.report.comparison import Comparison
    from sweep.report.turning import Turning
    from sweep.scoring.turning import BestDose

MAX_NAMES = 12  # points on the front that are named


def turning_findings(comparison: Comparison, measures: list[str], as_markdown: bool = False) -> Iterator[str]:
    """Yield a sentence per measure and series about its best dose and its shape, and one about the Pareto front.

    Args:
        comparison: comparison of all points.
        measures: the measures to describe.
        as_markdown: whether to format names as code and escape the rest for Markdown.
    """
    as_code, as_text = (code, markdown) if as_markdown else (one_line, one_line)
    for turning in (t for measure in measures for t in comparison.turnings if t.measure == measure):
        axis = as_code(short_key(turning.axis))
        if turning.shape == "flat":  # no dose is better than another
            parts = [f"flat: the same mean at every {axis}"]
        else:
            parts = [_best(turning, axis)] if turning.best is not None else []
            parts.append(shape_text(turning))
        label = f"{as_text(turning.series)}: " if turning.series else ""
        yield f"{label}{as_code(turning.measure)}: {'; '.join(parts)}"
    front = comparison.front
    if front is not None:
        names = {row.index: row.name for row in comparison.rows}
        listed = [as_text(names[point.point]) for point in front.points if point.on_front]
        more = f" and {len(listed) - MAX_NAMES} more" if len(listed) > MAX_NAMES else ""
        yield (
            f"Pareto front of {as_code(front.effect)} (effect) and {as_code(front.quality)}: "
            f"{'; '.join(listed[:MAX_NAMES])}{more} (of {len(front.points)} points)"
        )


def _best(turning: Turning, axis: str) -> str:
    best = turning.best
    assert best is not None
    within = interval(best.within_low, best.within_high, " to ")
    text = f"the best {axis} is {best.dose:.3g}{_bracketed(best)}, at most {turning.tolerance:.3g} worse at {within}"
    if math.isnan(best.confirmed_low):
        return text
    return f"{text} (confirmed: {interval(best.confirmed_low, best.confirmed_high, ' to ')})"


def _bracketed(best: BestDose) -> str:
    return "" if math.isnan(best.ci_low) else f" [{best.ci_low:.3g}, {best.ci_high:.3g}]"


def interval(low: float, high: float, between: str) -> str:
    """Return two doses as text, or one if they are equal."""
    return f"{low:.3g}" if low == high else f"{low:.3g}{between}{high:.3g}"


def shape_text(turning: Turning) -> str:
    """Return the shape of a response with its p-values: `rises, then falls (monotone: p = 0.001, trend: p = 0.3)`."""
    if math.isnan(turning.monotone_p):
        return f"trend p = {turning.trend_p:.2g}"
    ps = f"monotone: p = {turning.monotone_p:.2g}, trend: p = {turning.trend_p:.2g}"
    return f"{shape_words(turning.shape, turning.monotone_p, turning.trend_p)} ({ps})"


def shape_words(shape: str, monotone_p: float, trend_p: float) -> str:
    """Return what the tests say of a shape: a shape that is not significant is not named as one.

    Args:
        shape: see `Monotone`.
        monotone_p: p-value of a monotone response; NaN: not tested.
        trend_p: p-value of no trend over all doses.
    """
    if shape == "flat" or monotone_p < LEVEL:
        return shape
    if not trend_p < LEVEL:
        return "no trend found" if math.isnan(monotone_p) else "neither a turn nor a trend found"
    return shape if math.isnan(monotone_p) else f"{shape}, no turn found"
