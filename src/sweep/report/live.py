"""Progress lines: one line for each point as it finishes."""

from __future__ import annotations

from sweep.planning.results import PointResult
from sweep.report.measures import title
from sweep.scoring.registry import shown_in


def summary_line(result: PointResult) -> str:
    """Return a point's name and its first measures, or that it failed."""
    if result.error is not None:
        return f"{result.point.name}: failed"
    names = dict.fromkeys([*result.point.config.scoring.first, *shown_in("live")])
    values = [f"{title(name)} {result.summaries[name].mean:.3g}" for name in names if name in result.summaries]
    return f"{result.point.name}: {', '.join(values)}"
