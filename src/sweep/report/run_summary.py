"""What is said of a sweep on its own run in MLflow: a description, and measures over its points."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sweep.outcome import PointResult
    from sweep.report.comparison import Comparison
    from sweep.scoring.response import Response, Side

SHOWN = 12  # rows of the description's table
WAYS: dict[Side, str] = {"above": " up", "below": " down", "all": " up"}  # in which doses become stronger


def main_measure(comparison: Comparison) -> str | None:
    """Return the measure by which points are called best and worst: of quality if there is one, else of divergence."""
    measured = {name for result in comparison.results for name in result.summaries}
    for name in ("quality/exact_match", "quality/contains", "divergence/token_agreement"):
        if name in measured:
            return name
    return next((name for name in sorted(measured) if name.startswith("quality/")), None)


def shown_measures(comparison: Comparison) -> list[str]:
    """Return the measures that a reader wants first, of those that there are."""
    wanted = [
        main_measure(comparison),
        "divergence/token_agreement",
        "divergence/edit_distance",
        "divergence/control_answer_logprob_change",
        "perturbation/relative_l2",
        "health/loop",
    ]
    measured = {name for result in comparison.results for name in result.summaries}
    return [name for name in dict.fromkeys(wanted) if name in measured]


def series(comparison: Comparison) -> list[tuple[str, float, int]]:
    """Return each measure's mean over the points, and the swept numbers, as (metric, value, the point's place)."""
    found = []
    for result in comparison.results:
        axes = [(f"sweep/axis/{key}", value) for key, value in result.point.axes if isinstance(value, float)]
        means = [(f"sweep/{name}", summary.mean) for name, summary in result.summaries.items()]
        found += [(name, value, result.index) for name, value in [*axes, *means] if math.isfinite(value)]
    return found


def describe(comparison: Comparison, command: str, links: Mapping[str, str]) -> str:
    """Return the description in Markdown: what was swept, best and worst, where it begins to matter, links."""
    return "\n".join(_lines(comparison, command, links))


def found(comparison: Comparison, quote: str = "`") -> Iterator[str]:
    """Yield for each axis from which doses on the main measure differs from the control's, and at which it breaks.

    Args:
        quote: stands on either side of names.
    """
    measure = main_measure(comparison)
    names = {result.index: result.point.name for result in comparison.results}
    axes: dict[tuple[int, str], dict[Side, Response]] = {}
    for control, responses in comparison.responses_of.items():
        for (axis, name, side), response in responses.items():
            if name == measure:
                axes.setdefault((control, axis), {})[side] = response
    for (control, axis), sides in axes.items():
        key, said = f"{quote}{axis}{quote} = ", []
        if effective := _doses(sides, "first_effective"):
            said.append(f"differs from the control's from {key}{', and from '.join(effective)}")
        if breaking := _doses(sides, "breaking_point"):
            said.append(f"is half the control's at {'' if effective else key}{', and at '.join(breaking)}")
        if said:
            of = f"{names[control]}: " if len(comparison.responses_of) > 1 else ""
            yield f"{of}{quote}{measure}{quote} {'; '.join(said)}"


def _lines(comparison: Comparison, command: str, links: Mapping[str, str]) -> Iterator[str]:
    yield f"`{command}`\n"
    yield " · ".join(f"[{title}]({link})" for title, link in links.items())
    yield "· `report.html`, `points.csv`, `responses.csv`, `generations.parquet` and plots are among the artifacts\n"
    for key, values in _swept(comparison.results).items():
        yield f"- swept `{key}`: {', '.join(values)}"
    measure = main_measure(comparison)
    points = [r for r in comparison.results if measure in r.summaries and not r.point.is_control]
    if measure and points:
        ranked = sorted(points, key=lambda result: result.summaries[measure].mean)
        worst, best = ranked[0], ranked[-1]
        yield f"- `{measure}`: best {_mean(best, measure)}, worst {_mean(worst, measure)}"
        yield from (f"- {line}" for line in found(comparison))
    yield ""
    yield from _table(comparison)


def _swept(results: Sequence[PointResult]) -> dict[str, list[str]]:
    swept: dict[str, list[str]] = {}
    for result in results:
        for key, value in result.point.axes:
            text = value if isinstance(value, str) else f"{value:g}"
            if text not in swept.setdefault(key, []):
                swept[key].append(text)
    return swept


def _doses(sides: Mapping[Side, Response], name: str) -> list[str]:
    said = []
    for side, response in sides.items():
        dose, low, high = (getattr(response, name + end) for end in ("", "_ci_low", "_ci_high"))
        interval = "" if math.isnan(low) or math.isnan(high) else f" [{low:.3g}, {high:.3g}]".replace("inf", "∞")
        said += [f"{dose:.3g}{interval}{WAYS[side]}"] if math.isfinite(dose) else []
    return said


def _mean(result: PointResult, measure: str) -> str:
    return f"{result.summaries[measure].mean:.3g} ({result.point.name})"


def _table(comparison: Comparison) -> Iterator[str]:
    measures = shown_measures(comparison)
    yield f"| point | {' | '.join(measures)} |"
    yield f"|---|{'---|' * len(measures)}"
    for result in comparison.results[:SHOWN]:
        cells = []
        for measure in measures:
            summary = result.summaries.get(measure)
            difference = comparison.differences.get(result.index, {}).get(measure)
            mark = " *" if difference is not None and difference.significant else ""
            cells.append("" if summary is None else f"{summary.mean:.3g}{mark}")
        yield f"| {result.point.name.replace('|', '/')} | {' | '.join(cells)} |"
    if len(comparison.results) > SHOWN:
        yield f"\nand {len(comparison.results) - SHOWN} more"
