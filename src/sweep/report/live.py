"""One line for each point as it finishes."""

from __future__ import annotations

from sweep.outcome import PointResult

SHOWN = {
    "quality/exact_match": "exact match",
    "divergence/token_agreement": "token agreement",
    "perturbation/relative_l2": "relative L2",
}


def summary_line(result: PointResult) -> str:
    """Return a point's name and its first measures, or why it failed."""
    if result.error is not None:
        return f"{result.point.name}: failed"
    told = [f"{title} {result.summaries[name].mean:.3g}" for name, title in SHOWN.items() if name in result.summaries]
    return f"{result.point.name}: {', '.join(told)}"
