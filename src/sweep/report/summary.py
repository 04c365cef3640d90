"""Saved summary: the table and findings printed at the end of a sweep, for printing again without computing them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.console.terminal import Terminal
from sweep.report import FOLDER, GENERATIONS
from sweep.report.contrast_text import COLUMNS, MAX_ROWS
from sweep.util import state_files
from sweep.util.atomic import replace

if TYPE_CHECKING:
    from sweep.config.schema import SweepConfig

FILE = "summary.json"


@dataclass(frozen=True, slots=True)
class Summary:
    """The table and the findings below it, saved as `summary.json`.

    It contains no paths and links, since the folder may be moved before it is printed again.

    Attributes:
        title, columns, rows: the table's heading, column titles and cells.
        findings: lines below the table.
        first: value of `scoring.first`, the measures that were shown first.
        more_points: number of rows left out of the table.
        more_series: number of findings about series left out.
        equivalence: value of `scoring.equivalence`.
        contrasts: cells of the table of contrasts; its columns are `contrast_text.COLUMNS`.
        report: the values of section `report` that are not defaults.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    findings: Sequence[str]
    first: Sequence[str]
    more_points: int = 0
    more_series: int = 0
    equivalence: Any = None
    contrasts: Sequence[Sequence[str]] = ()
    report: Mapping[str, Any] = field(default_factory=dict)

    def is_current(self, config: SweepConfig) -> bool:
        """Whether these settings show the same measures first, with the same margins and the same section `report`."""
        printed = (self.first, self.equivalence, self.report)
        return printed == (config.scoring.first, config.scoring.equivalence, config.report.changed())

    def print(self, terminal: Terminal, folder: Path, links: Iterable[str] = ()) -> None:
        """Print the summary, as wide as the terminal.

        Args:
            terminal: where to print.
            folder: the sweep's folder.
            links: lines below the findings.
        """
        points, responses = (folder / FOLDER / name for name in ("points.csv", "responses.csv"))
        terminal.table(self.title, self.columns, self.rows, str(points))
        if self.more_points:
            terminal.result(f"and {self.more_points} more in {points}")
        for line in self.findings:
            terminal.result(line)
        if self.more_series:
            terminal.result(f"and {self.more_series} more series in {responses}")
        if self.contrasts:
            contrasts = str(folder / FOLDER / "contrasts.csv")
            terminal.table("Contrasts: first minus second", COLUMNS, self.contrasts[:MAX_ROWS], contrasts)
            if len(self.contrasts) > MAX_ROWS:
                terminal.result(f"and {len(self.contrasts) - MAX_ROWS} more in {contrasts}")
        for line in links:
            terminal.result(line)

    def save(self, folder: Path) -> None:
        """Write the summary to a sweep's folder, atomically.

        Raises:
            OSError: the file cannot be written.
        """
        text = json.dumps(asdict(self))
        replace(folder / FILE, lambda path: path.write_text(text, "utf-8"))


def load_summary(folder: Path) -> Summary | None:
    """Return a sweep's last summary; None if there is none, it is damaged, or another version wrote it."""
    try:
        summary = state_files.build(Summary, state_files.parse(state_files.read(folder / FILE)))
    except (OSError, ValueError, TypeError):
        return None
    is_consistent = summary.columns and all(len(row) == len(summary.columns) for row in summary.rows)
    is_consistent = is_consistent and all(len(row) == len(COLUMNS) for row in summary.contrasts)
    return summary if is_consistent else None


def name_of(report: Path) -> str | None:
    """Return the sweep's name from `generations.parquet` in a report folder; None if it cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_schema(report / GENERATIONS).pandas_metadata or {}
        name = metadata["attributes"]["name"]
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError):
        return None
    return name if isinstance(name, str) else None
