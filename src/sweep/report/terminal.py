"""Closing summary in the terminal: a table of points, the findings, and links to compare them."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.console.text import one_line
from sweep.report import FOLDER, REPORT
from sweep.report.contrast_text import baseline_notes, contrast_rows, counts
from sweep.report.judge_notes import judge_notes
from sweep.report.marks import legend, marks, null_findings
from sweep.report.measures import title
from sweep.report.recovery_notes import recovery_notes
from sweep.report.replicates import Row
from sweep.report.run_summary import null_measures, power_notes, response_findings, threshold_measures
from sweep.report.summary import Summary, load_summary
from sweep.report.turning_text import turning_findings
from sweep.scoring.registry import shown_in, spec
from sweep.util.counts import counted

if TYPE_CHECKING:
    from sweep.config.schema import SweepConfig
    from sweep.console.terminal import Terminal
    from sweep.core.values import Summary as Mean
    from sweep.planning.results import PointResult
    from sweep.report.comparison import Comparison
    from sweep.tracking import AnyTracker

MAX_POINTS = 60  # maximum number of rows in the table
MAX_SERIES = 16  # maximum number of lines about series


@dataclass(frozen=True, slots=True)
class SweepOutcome:
    """Inputs of the closing summary, once a sweep has ended.

    Attributes:
        folder: the sweep's folder.
        results: results by `Point.key`.
        comparison: comparison of all points; None if there was nothing to compare.
        tracker: where the results are published.
        nothing_new: whether all points had been finished, published and reported before.
    """

    folder: Path
    results: Mapping[str, PointResult]
    comparison: Comparison | None
    tracker: AnyTracker
    nothing_new: bool


def print_report(terminal: Terminal, outcome: SweepOutcome, config: SweepConfig) -> None:
    """Print the points' main measures with their intervals, and how to open the comparison and the report."""
    if not outcome.results:
        return
    links = list(_links(outcome, config))
    if outcome.nothing_new:
        points = f"All {count} points were" if (count := len(outcome.results)) > 1 else "The point was"
        terminal.say(f"{points} finished before. Nothing to do.")
        # Without a readable summary, only the table is rebuilt: the comparison would need all points' values.
        (load_summary(outcome.folder) or _summary(outcome, config)).print(terminal, outcome.folder, links)
        return
    summary = _summary(outcome, config)
    summary.print(terminal, outcome.folder, links)
    with suppress(OSError):  # a full disk: the summary was printed at least
        summary.save(outcome.folder)


def _summary(outcome: SweepOutcome, config: SweepConfig) -> Summary:
    comparison = outcome.comparison
    results = sorted(outcome.results.values(), key=lambda result: result.index)
    rows = list(comparison.rows) if comparison is not None else []
    shown = {member.index for row in rows for member in row.members}
    # Without a comparison, the points are known by their summaries only.
    rows = sorted([*rows, *(Row(r, (r,)) for r in results if r.index not in shown)], key=lambda row: row.index)
    names = dict.fromkeys([*config.scoring.first, *shown_in("terminal")])
    measured = [name for name in names if any(name in row.result.summaries for row in rows)]
    # Without a measure, as when all points failed, the only column is the state.
    cells = partial(_cells, names=measured, comparison=comparison) if measured else _state
    table = [[row.name, *cells(row)] for row in rows[:MAX_POINTS]]
    over = (
        "mean over prompts"
        if len(rows) == len(results)
        else f"in {counted(len(rows), 'row')}; mean over prompts and seeds"
    )
    heading = f"{counted(len(results), 'point')}{'; ' if len(rows) == len(results) else ' '}{over} "
    heading += f"[{config.scoring.confidence:.0%} interval]"
    columns = ["point", *(map(title, measured) if measured else ["state"])]
    notes: list[str] = []
    findings: list[str] = []
    contrasts = contrast_rows(comparison) if comparison is not None else []
    if comparison is not None and comparison.row_differences:
        notes = list(legend(comparison))
        if any(counts(each) for found in comparison.row_differences.values() for each in found.values()):
            word = comparison.baselines.word
            notes.append(f"+gained/-lost: prompts with a higher and with a lower value than the {word}.")
        notes += (f"{note}." for note in baseline_notes(comparison))
        notes += power_notes(comparison)
        notes += null_findings(comparison, null_measures(comparison), one_line)
        findings = list(response_findings(comparison))
        findings += turning_findings(comparison, threshold_measures(comparison))
    more_points, more_series = max(0, len(rows) - MAX_POINTS), max(0, len(findings) - MAX_SERIES)
    lines = [*judge_notes(results), *recovery_notes(results), *notes, *findings[:MAX_SERIES]]
    return Summary(
        heading,
        columns,
        table,
        lines,
        config.scoring.first,
        more_points,
        more_series,
        config.scoring.equivalence,
        contrasts,
        config.report.changed(),
    )


def _links(outcome: SweepOutcome, config: SweepConfig) -> Iterator[str]:
    tracker = outcome.tracker
    if (links := tracker.links) is not None:
        folder = "" if config.sweep.dir == "outputs" else f" {shlex.quote(config.sweep.dir)}"
        steps = f"run scripts/ui{folder}, then open " if tracker.is_local else ""
        yield f"Compare: {steps}{links.full(links.side_by_side)}"
        yield f"Charts: {links.full(links.charts)}"
    if (page := tracker.row_by_row_url()) is not None:
        yield f"Row by row: {page}"
    if (report := outcome.folder / FOLDER / REPORT).is_file():
        yield f"Report: {report}"


def _state(row: Row) -> list[str]:
    return ["failed" if row.result.error else "done"]


def _cells(row: Row, names: list[str], comparison: Comparison | None) -> list[str]:
    if row.result.error:
        return ["failed", *([""] * (len(names) - 1))]
    differences = comparison.row_differences.get(row.index, {}) if comparison else {}
    cells = []
    for name in names:
        changed = f" {text}" if (text := counts(differences.get(name))) else ""
        cells.append(_cell(row, name, spec(name).group.headline) + changed + marks(differences.get(name)))
    return cells


def _cell(row: Row, measure: str, interval: bool) -> str:
    summary: Mean | None = row.result.summaries.get(measure)
    if summary is None:
        return "–"
    if not interval or math.isnan(summary.ci_low):
        return f"{summary.mean:.3g}"
    spread = row.seed_sd.get(measure, math.nan)
    between = "" if math.isnan(spread) else f" ±{spread:.2g}"
    return f"{summary.mean:.3g} [{summary.ci_low:.3g}, {summary.ci_high:.3g}]{between}"
