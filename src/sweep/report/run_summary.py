"""Summary for the parent run in MLflow: a Markdown description, and metrics over the sweep's points."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING

from sweep.console.text import code, markdown, one_line
from sweep.report.contrast_text import COLUMNS, baseline_notes, contrast_rows
from sweep.report.marks import detectable_text, legend, marks, null_findings
from sweep.report.measures import ranking_of
from sweep.report.turning_text import turning_findings
from sweep.scoring.registry import GROUPS, shown_in, spec
from sweep.util.counts import counted

if TYPE_CHECKING:
    from sweep.planning.results import PointResult
    from sweep.report.comparison import Comparison
    from sweep.report.paired_differences import Difference
    from sweep.report.replicates import Row
    from sweep.report.series import Series
    from sweep.scoring.response import Response, Side

MAX_ROWS = 12  # rows of the description's table
BOUND: dict[Side, str] = {"above": "≥ ", "below": "≤ ", "all": "≥ "}  # on the side of the stronger doses
DIRECTION: dict[Side, str] = {"above": " (increasing)", "below": " (decreasing)", "all": " (increasing)"}


def ranking_measure(comparison: Comparison) -> str | None:
    """Return the measure that ranks points as best and worst: the first of `scoring.first`, if measured."""
    return ranking_of((name for result in comparison.results for name in result.summaries), comparison.first)


def threshold_measures(comparison: Comparison) -> list[str]:
    """Return the measures whose thresholds are printed: the measured ones of `scoring.first`, else the ranking one."""
    measured = {name for result in comparison.results for name in result.summaries}
    ranking = ranking_measure(comparison)
    return [name for name in comparison.first if name in measured] or ([ranking] if ranking is not None else [])


def null_measures(comparison: Comparison) -> list[str]:
    """Return the measures of which it is printed where there is no difference, and what could have been shown."""
    judged = (name for found in comparison.row_differences.values() for name, d in found.items() if d.verdict)
    return list(dict.fromkeys([*threshold_measures(comparison), *judged]))


def shown_measures(comparison: Comparison) -> list[str]:
    """Return the measures of the description's table, in order."""
    preferred = [*threshold_measures(comparison), *shown_in("description")]
    measured = {name for result in comparison.results for name in result.summaries}
    return [name for name in dict.fromkeys(preferred) if name in measured]


def point_metrics(comparison: Comparison) -> list[tuple[str, float, int]]:
    """Return metrics over the points as (name, value, point index): each measure's mean, and the swept numbers."""
    metrics = []
    for result in comparison.results:
        doses = {**comparison.neutral.get(result.index, {}), **dict(result.point.axes)}
        axes = [(f"sweep/axis/{key}", value) for key, value in doses.items() if isinstance(value, float)]
        means = [(f"sweep/{name}", summary.mean) for name, summary in result.summaries.items()]
        metrics += [(name, value, result.index) for name, value in [*axes, *means] if math.isfinite(value)]
    return metrics


def describe(comparison: Comparison, command: str, links: Mapping[str, str]) -> str:
    """Return a description in Markdown.

    Args:
        comparison: comparison of all points.
        command: the command that ran the sweep.
        links: addresses by title.
    """
    return "\n".join(_lines(comparison, command, links))


def response_findings(comparison: Comparison, as_markdown: bool = False) -> Iterator[str]:
    """Yield a sentence per threshold measure and series: at which doses it differs from the control, and breaks.

    Args:
        comparison: comparison of all points.
        as_markdown: whether to format names as code and escape the rest for Markdown.
    """
    as_code, as_text = (code, markdown) if as_markdown else (one_line, one_line)
    reference = comparison.baselines.word_of_responses
    with_effect = {
        (described.series.axis, measure)
        for described in comparison.series
        for (measure, side), response in described.responses.items()
        if any(_doses({side: response}, name) for name in ("first_effective", "breaking_point"))
    }
    for measure, described in product(threshold_measures(comparison), comparison.series):
        sides = {side: response for (name, side), response in described.responses.items() if name == measure}
        series = described.series
        axis, parts = as_code(series.axis), []
        if effective := _doses(sides, "first_effective"):
            doses = " and ".join(f"{BOUND[side]}{dose}" for side, dose in effective)
            level = f"p < {1 - comparison.confidence:.2g}, each dose by itself"
            parts.append(f"differs from the {reference} at {axis} {doses} ({level})")
        if breaking := _doses(sides, "breaking_point"):
            doses = " and ".join(f"{dose}{DIRECTION[side]}" for side, dose in breaking)
            parts.append(f"half of the {reference}'s at {'' if effective else f'{axis} = '}{doses}")
        if sides and not parts and (series.axis, measure) in with_effect:  # a result, next to the other series
            differences = _differences_along(comparison, series, measure)
            if any(difference.significant for difference in differences):
                parts.append(f"no first effective dose along {axis}, since not all stronger doses differ")
            else:
                parts.append(f"no significant difference from the {reference} along {axis}")
                parts += [_uncapitalised(detectable_text(differences, comparison.confidence))] if differences else []
        if parts:
            label = f"{as_text(series.label)}: " if series.label else ""
            yield f"{label}{as_code(measure)}: {'; '.join(parts)}"


def _differences_along(comparison: Comparison, series: Series, measure: str) -> list[Difference]:
    rows = [row.index for row in comparison.rows if {member.index for member in row.members} & set(series.points)]
    found = (comparison.row_differences.get(row, {}).get(measure) for row in rows)
    return [difference for difference in found if difference is not None]


def _uncapitalised(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:].rstrip(".")


def power_notes(comparison: Comparison) -> Iterator[str]:
    """Yield why no difference in quality or divergence can be significant, if there are too few prompts."""
    notes: dict[str, list[str]] = {}
    for group, limit in comparison.limits.items():
        marked = any(
            difference.significant and spec(measure).group.name == group
            for differences in comparison.row_differences.values()
            for measure, difference in differences.items()
        )
        if not GROUPS[group].headline or marked or limit.smallest_p < limit.required_p:
            continue
        prompts = str(limit.prompts)
        needed = counted(limit.required_prompts, "prompt")
        if limit.changeable < limit.prompts:
            prompts += f", of which at most {limit.changeable} can change in one direction"
            needed += " whose result can change in one direction"
        comparisons = counted(limit.tests, "comparison")
        note = (
            f"too few prompts ({prompts}): the smallest possible p is {limit.smallest_p:.2g}, but p < "
            f"{limit.required_p:.2g} is required for a single difference in {comparisons}. Use at least {needed}."
        )
        notes.setdefault(note, []).append(group)
    yield from (f"{' and '.join(groups)}: {note}" for note, groups in notes.items())


def _lines(comparison: Comparison, command: str, links: Mapping[str, str]) -> Iterator[str]:
    yield f"{code(command)}\n"
    yield " · ".join(f"[{title}]({link})" for title, link in links.items())
    yield "· Artifacts: `report.html`, `points.csv`, `rows.csv`, `responses.csv`, `generations.parquet` and plots\n"
    for key, values in _swept(comparison.results).items():
        yield f"- swept {code(key)}: {', '.join(map(markdown, values))}"
    measure = ranking_measure(comparison)
    rows = [r for r in comparison.rows if measure in r.result.summaries and not r.result.point.is_control]
    if measure and rows:
        ranked = sorted(rows, key=lambda row: row.result.summaries[measure].mean)
        worst, best = ranked[0], ranked[-1]
        yield f"- {code(measure)}: best {_mean(best, measure)}, worst {_mean(worst, measure)}"
        findings = list(response_findings(comparison, as_markdown=True))
        yield from (f"- {line}" for line in findings[:MAX_ROWS])
        if len(findings) > MAX_ROWS:
            yield f"- and {len(findings) - MAX_ROWS} more series in `responses.csv`"
        yield from (f"- {line}" for line in null_findings(comparison, null_measures(comparison), markdown))
        turnings = list(turning_findings(comparison, threshold_measures(comparison), as_markdown=True))
        yield from (f"- {line}" for line in turnings[:MAX_ROWS])
        if len(turnings) > MAX_ROWS:
            yield f"- and {len(turnings) - MAX_ROWS} more lines in `turning.csv` and `pareto.csv`"
    yield from (f"- {markdown(note)}" for note in baseline_notes(comparison))
    yield ""
    yield from _table(comparison)
    if contrasts := contrast_rows(comparison):
        yield from ("", f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}")
        yield from (f"| {' | '.join(map(markdown, row))} |" for row in contrasts[:MAX_ROWS])
        if len(contrasts) > MAX_ROWS:
            yield f"\nand {len(contrasts) - MAX_ROWS} more contrasts in `contrasts.csv`"


def _swept(results: Sequence[PointResult]) -> dict[str, list[str]]:
    swept: dict[str, list[str]] = {}
    for result in results:
        for key, value in result.point.axes:
            text = value if isinstance(value, str) else f"{value:g}"
            if text not in swept.setdefault(key, []):
                swept[key].append(text)
    return swept


def _doses(sides: Mapping[Side, Response], name: str) -> list[tuple[Side, str]]:
    """Return the doses that were found, each with its interval, by side."""
    doses: list[tuple[Side, str]] = []
    for side, response in sides.items():
        dose, low, high = (getattr(response, name + end) for end in ("", "_ci_low", "_ci_high"))
        interval = "" if math.isnan(low) or math.isnan(high) else f" [{low:.3g}, {high:.3g}]".replace("inf", "∞")
        doses += [(side, f"{dose:.3g}{interval}")] if math.isfinite(dose) else []
    return doses


def _mean(row: Row, measure: str) -> str:
    return f"{row.result.summaries[measure].mean:.3g} ({markdown(row.name)})"


def _table(comparison: Comparison) -> Iterator[str]:
    measures = shown_measures(comparison)
    yield f"| point | {' | '.join(map(markdown, measures))} |"
    yield f"|---|{'---|' * len(measures)}"
    for row in comparison.rows[:MAX_ROWS]:
        yield f"| {markdown(row.name)} | {' | '.join(_cell(comparison, row, measure) for measure in measures)} |"
    if len(comparison.rows) > MAX_ROWS:
        yield f"\nand {len(comparison.rows) - MAX_ROWS} more"
    if any(row.is_pooled for row in comparison.rows) or any(
        difference.verdict for found in comparison.row_differences.values() for difference in found.values()
    ):
        yield from (f"\n{markdown(line)}" for line in legend(comparison))


def _cell(comparison: Comparison, row: Row, measure: str) -> str:
    if (summary := row.result.summaries.get(measure)) is None:
        return ""
    spread = row.seed_sd.get(measure, math.nan)
    between = "" if math.isnan(spread) else f" ±{spread:.2g}"
    return f"{summary.mean:.3g}{between}{marks(comparison.row_differences.get(row.index, {}).get(measure))}"
