"""What the user is told at the end: a table of points, and where to compare them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sweep.report import FOLDER
from sweep.report.closing import found

if TYPE_CHECKING:
    from sweep.config import SweepConfig
    from sweep.outcome import PointResult
    from sweep.report.comparison import Comparison
    from sweep.runner import Runner
    from sweep.scoring.values import Summary
    from sweep.terminal import Terminal

COLUMNS = {
    "quality/exact_match": "exact match",
    "quality/contains": "contains",
    "divergence/first_divergence": "first divergence",
    "divergence/token_agreement": "token agreement",
    "divergence/edit_distance": "edit distance",
    "perturbation/relative_l2": "relative L2",
    "perturbation/nearest_token_flips": "token flips",
    "perturbation/dose_achieved": "achieved dose",
    "cost/output_tokens": "tokens",
}
INTERVALS = ("quality", "divergence")
LEVEL = 0.05
SUMMARY = "summary.txt"  # what was printed last, for those who ask again
SHOWN = 60  # points in the table


def print_report(terminal: Terminal, runner: Runner, config: SweepConfig) -> None:
    """Print the points' main measures with their intervals, and the command and link that open the comparison."""
    publisher = runner.publisher
    if publisher is None or not publisher.results:
        return
    summary = runner.folder / SUMMARY
    if publisher.nothing_new and summary.is_file():
        terminal.say(f"All {len(publisher.results)} points were done before; nothing was left to do.")
        terminal.result(summary.read_text("utf-8").rstrip())
        return
    try:
        with terminal.copying(summary):
            _print(terminal, runner, config)
    except OSError:  # a full disk: then it is printed at least
        _print(terminal, runner, config)


def _print(terminal: Terminal, runner: Runner, config: SweepConfig) -> None:
    results = sorted(runner.results.values(), key=lambda result: result.index)
    tracker = runner.tracker
    assert tracker is not None
    measured = {name: title for name, title in COLUMNS.items() if any(name in r.summaries for r in results)}
    level = f"{config.scoring.confidence:.0%}"
    terminal.table(
        f"{len(results)} points; mean over prompts [{level} interval]",
        ["point", *measured.values()],
        [[r.point.name, *_cells(r, list(measured), runner.comparison)] for r in results[:SHOWN]],
    )
    if len(results) > SHOWN:
        terminal.result(f"and {len(results) - SHOWN} more, in {runner.folder / FOLDER / 'points.csv'}")
    if runner.comparison is not None and runner.comparison.differences:
        terminal.result(f"* differs from the control (q < {LEVEL:g}); the control's divergence is the noise floor")
        for line in found(runner.comparison, quote=""):
            terminal.result(line)
    if (links := tracker.links) is not None:
        folder = "" if config.sweep.dir == "outputs" else f" {config.sweep.dir}"
        how = f"run scripts/ui{folder}, then open " if tracker.is_local else ""
        terminal.result(f"Compare: {how}{links.full(links.side_by_side)}")
        terminal.result(f"Charts: {links.full(links.charts)}")
    if (rows := tracker.row_by_row_url()) is not None:
        terminal.result(f"Row by row: {rows}")
    if (report := runner.folder / "report" / "report.html").is_file():
        terminal.result(f"Report: {report}")


def _cells(result: PointResult, names: list[str], comparison: Comparison | None) -> list[str]:
    if result.error:
        return ["failed", *([""] * (len(names) - 1))]
    differences = comparison.differences.get(result.index, {}) if comparison else {}
    cells = []
    for name in names:
        difference = differences.get(name)
        mark = " *" if difference is not None and difference.significant else ""
        cells.append(_cell(result.summaries.get(name), name.split("/")[0] in INTERVALS) + mark)
    return cells


def _cell(summary: Summary | None, interval: bool) -> str:
    if summary is None:
        return "–"
    if not interval or math.isnan(summary.ci_low):
        return f"{summary.mean:.3g}"
    return f"{summary.mean:.3g} [{summary.ci_low:.3g}, {summary.ci_high:.3g}]"
