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

from sweep.report import FOLDER, REPORT
from sweep.report.contrast_text import baseline_notes, contrast_rows, counts
from sweep.report.measures import title
from sweep.report.run_summary import power_notes, response_findings, threshold_measures
from sweep.report.summary import Summary, load_summary
from sweep.report.turning_text import turning_findings
from sweep.scoring.registry import shown_in, spec

if TYPE_CHECKING:
    from sweep.config.schema import SweepConfig
    from sweep.console.terminal import Terminal
    from sweep.core.values import Summary as Mean
    from sweep.planning.results import PointResult
    from sweep.report.comparison import Comparison
    from sweep.tracking import AnyTracker

LEVEL = 0.05
MAX_POINTS = 60  # maximum number of points in the table
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
        terminal.say(f"All {len(outcome.results)} points were finished before. Nothing to do.")
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
    if comparison is not None:  # its results have distinct names for the controls of all batches
        named = {result.index: result for result in comparison.results}
        results = [named.get(result.index, result) for result in results]
    names = dict.fromkeys([*config.scoring.first, *shown_in("terminal")])
    measured = [name for name in names if any(name in result.summaries for result in results)]
    # Without a measure, as when all points failed, the only column is the state.
    cells = partial(_cells, names=measured, comparison=comparison) if measured else _state
    rows = [[result.point.name, *cells(result)] for result in results[:MAX_POINTS]]
    heading = f"{len(results)} points; mean over prompts [{config.scoring.confidence:.0%} interval]"
    columns = ["point", *(map(title, measured) if measured else ["state"])]
    notes: list[str] = []
    findings: list[str] = []
    contrasts = contrast_rows(comparison) if comparison is not None else []
    if comparison is not None and comparison.differences:
        word = comparison.baselines.word
        notes = [f"* differs from the {word} (q < {LEVEL:g}). The control's own divergence is the noise floor."]
        if any(counts(each) for differences in comparison.differences.values() for each in differences.values()):
            notes.append(f"+gained/-lost: prompts with a higher and with a lower value than the {word}.")
        notes += (f"{note}." for note in baseline_notes(comparison))
        notes += power_notes(comparison)
        findings = list(response_findings(comparison))
        findings += turning_findings(comparison, threshold_measures(comparison))
    more_points, more_series = max(0, len(results) - MAX_POINTS), max(0, len(findings) - MAX_SERIES)
    return Summary(
        heading,
        columns,
        rows,
        notes + findings[:MAX_SERIES],
        config.scoring.first,
        more_points,
        more_series,
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


def _state(result: PointResult) -> list[str]:
    return ["failed" if result.error else "done"]


def _cells(result: PointResult, names: list[str], comparison: Comparison | None) -> list[str]:
    if result.error:
        return ["failed", *([""] * (len(names) - 1))]
    differences = comparison.differences.get(result.index, {}) if comparison else {}
    cells = []
    for name in names:
        difference = differences.get(name)
        mark = " *" if difference is not None and difference.significant else ""
        changed = f" {text}" if (text := counts(difference)) else ""
        cells.append(_cell(result.summaries.get(name), spec(name).group.headline) + changed + mark)
    return cells


def _cell(summary: Mean | None, interval: bool) -> str:
    if summary is None:
        return "–"
    if not interval or math.isnan(summary.ci_low):
        return f"{summary.mean:.3g}"
    return f"{summary.mean:.3g} [{summary.ci_low:.3g}, {summary.ci_high:.3g}]"
