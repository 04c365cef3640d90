"""Remarks on a judge: its verdicts on its controls, and answers without a verdict."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sweep.scoring.judge import NAME, NEGATIVE, POSITIVE

if TYPE_CHECKING:
    from sweep.planning.results import PointResult

ANSWERED = "health/tokens"  # measured for every prompt


def judge_notes(results: Sequence[PointResult]) -> Iterator[str]:
    """Yield one line on the judge's controls for each control point, and one on missing verdicts."""
    for result in results:
        positive, negative = (result.summaries.get(name) for name in (POSITIVE, NEGATIVE))
        if positive is not None or negative is not None:
            parts = [] if positive is None else [f"{positive.mean:.2g} for references as answers (should be near 1)"]
            parts += (
                [] if negative is None else [f"{negative.mean:.2g} for answers to other prompts (should be near 0)"]
            )
            yield f"Judge of {result.point.name}: {', '.join(parts)}"
    missing = {}
    for result in results:
        judged, answered = result.summaries.get(NAME), result.summaries.get(ANSWERED)
        if judged is not None and answered is not None and judged.n < answered.n:
            missing[result.point.name] = answered.n - judged.n
    if missing:
        counts = ", ".join(f"{count} of {name}" for name, count in missing.items())
        yield f"Prompts without a verdict of the judge: {counts}. The reasons are in sweep.log"
