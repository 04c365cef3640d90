"""Remarks on recovery: for which points it is missing, and why."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sweep.planning.results import PointResult

PREFIX = "perturbation/recovered_"
ROWS_KEPT = "perturbation/rows_kept"


def missing_reason(rows_kept: float, is_recovered: bool) -> str:
    """Return why a point has no recovery; empty if it has one.

    Args:
        rows_kept: the point's mean of `perturbation/rows_kept`: 1 if no transform changes the number of rows.
        is_recovered: whether any attack has a value.
    """
    if is_recovered or not rows_kept < 1:
        return ""
    return "No recovery of tokens where the transform changes the number of rows"


def recovery_notes(results: Sequence[PointResult]) -> Iterator[str]:
    """Yield one line per reason, with the points; nothing if `scoring.recovery` was off."""
    recovered = {r.index for r in results if any(name.startswith(PREFIX) for name in r.summaries)}
    if not recovered:
        return
    reasons: dict[str, list[str]] = {}
    for result in results:
        kept = result.summaries.get(ROWS_KEPT)
        if reason := missing_reason(math.nan if kept is None else kept.mean, result.index in recovered):
            reasons.setdefault(reason, []).append(result.point.name)
    yield from (f"{reason}: {', '.join(names)}" for reason, names in reasons.items())
