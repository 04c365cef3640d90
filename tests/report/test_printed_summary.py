"""The stored summary: how its table fits a terminal, and what is printed of it later."""

from __future__ import annotations

import io
import json
import os
from dataclasses import replace
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
from compared_points import Configure, compared, write_own_plugin
from rich.console import Console

from sweep.config.schema import SweepConfig
from sweep.console.terminal import Terminal
from sweep.report.comparison import Comparison
from sweep.report.summary import Summary, load_summary
from sweep.report.terminal import SweepOutcome, print_report
from sweep.tracking.links import Links


@pytest.fixture
def own_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_own_plugin(tmp_path, monkeypatch)


def printed(summary: Summary, width: int, *links: str) -> str:
    terminal = Terminal()
    text = io.StringIO()
    terminal._out = Console(file=text, width=width, highlight=False, force_terminal=True, color_system=None)
    summary.print(terminal, Path("sweeps"), links)
    return text.getvalue()


COLUMNS = ["point", "exact match", "contains", "token agreement", "edit distance"]
ROWS = [["control", "1 [0.8, 1]", "1 [0.8, 1]", "1 [1, 1]", "0 [0, 0]"]]


def test_the_stored_table_fits_the_terminal_that_it_is_printed_in(tmp_path: Path) -> None:
    Summary("1 point", COLUMNS, ROWS, [], ["quality/exact_match"]).save(tmp_path)
    stored = load_summary(tmp_path)
    assert stored is not None and stored.first == ["quality/exact_match"]
    wide, narrow = (printed(stored, width, "Report: x").splitlines() for width in (100, 50))
    assert all(name in wide[2] for name in COLUMNS) and wide[-1] == "Report: x"
    assert max(map(len, narrow[:-2])) <= 50 and "contains" in narrow[2] and "token agreement" not in narrow[2]
    assert narrow[-2:] == [
        "Omitted columns: token agreement, edit distance. Widen the terminal, or see sweeps/report/points.csv",
        "Report: x",
    ]


def test_output_to_a_file_has_all_columns() -> None:
    terminal, text = Terminal(), io.StringIO()
    terminal._out = Console(file=text, width=200, highlight=False)
    rows = [["p" * 150, *["0.123 [0.1, 0.2]"] * 4]]
    Summary("1 point", COLUMNS, rows, [], []).print(terminal, Path("sweeps"))
    lines = text.getvalue().splitlines()
    assert len(lines) == 6 and all(name in lines[2] for name in COLUMNS) and "0.123 [0.1, 0.2] │" in lines[4]


WHOLE: dict[str, Any] = {"title": "1 point", "columns": COLUMNS, "rows": ROWS, "findings": [], "first": []}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        '{"title": "x"}',
        json.dumps(WHOLE | {"columns": 5}),
        json.dumps(WHOLE | {"findings": "x"}),
        json.dumps(WHOLE | {"rows": [["control"]]}),
        json.dumps(WHOLE | {"columns": [], "rows": []}),
        json.dumps(WHOLE | {"tables": "points.csv"}),
        "[" * 100_000,
    ],
)
def test_damaged_summary_is_ignored(tmp_path: Path, text: str) -> None:
    assert load_summary(tmp_path) is None
    Summary(**WHOLE).save(tmp_path)
    assert load_summary(tmp_path) is not None
    (tmp_path / "summary.json").write_text(text)
    assert load_summary(tmp_path) is None


def test_pipe_in_place_of_the_summary_is_ignored(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "summary.json")
    reader = Thread(target=load_summary, args=[tmp_path], daemon=True)
    reader.start()
    reader.join(5)
    assert not reader.is_alive()


def reported(config: SweepConfig, folder: Path, comparison: Comparison, nothing_new: bool, terminal: Terminal) -> str:
    """What is printed at the end of a sweep in a folder."""
    results = {str(one.index): one for one in comparison.results}
    text = io.StringIO()
    terminal._out = Console(file=text, width=200, highlight=False)
    tracker: Any = SimpleNamespace(links=Links("http://x", "1", "id"), is_local=True, row_by_row_url=lambda: None)
    outcome = SweepOutcome(folder, results, None if nothing_new else comparison, tracker, nothing_new)
    print_report(terminal, outcome, config)
    return text.getvalue()


@pytest.mark.usefixtures("own_plugin")
def test_a_moved_sweep_is_printed_with_its_new_paths(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweep.report.terminal.MAX_POINTS", 2)
    monkeypatch.setattr("sweep.report.terminal.MAX_SERIES", 1)
    comparison = compared(configure)
    old, new = tmp_path / "old", tmp_path / "new"
    (old / "report").mkdir(parents=True)
    (old / "report" / "report.html").touch()
    first = reported(configure(sweep={"dir": str(old)}), old, comparison, False, Terminal())
    assert f"and 1 more in {old}/report/points.csv\n" in first and "differs from the control" in first
    assert f"run scripts/ui {old}, then open http" in first and f"Report: {old}/report/report.html" in first
    old.rename(new)
    again = reported(configure(sweep={"dir": str(new)}), new, comparison, True, Terminal())
    assert again == first.replace(str(old), str(new))


@pytest.mark.usefixtures("own_plugin")
def test_a_folder_in_a_printed_command_is_quoted(configure: Configure, tmp_path: Path) -> None:
    text = reported(configure(sweep={"dir": "my runs; $x"}), tmp_path, compared(configure), False, Terminal())
    assert "Compare: run scripts/ui 'my runs; $x', then open http" in text


@pytest.mark.usefixtures("own_plugin")
def test_table_is_recomputed_without_a_readable_summary(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(WHOLE | {"columns": 5}))
    text = reported(configure(), tmp_path, compared(configure), True, Terminal())
    assert "3 points; mean over prompts" in text and "Charts: http" in text
    assert load_summary(tmp_path) is None  # as it has no findings


@pytest.mark.usefixtures("own_plugin")
def test_a_sweep_whose_points_all_failed_is_printed_and_stored(configure: Configure, tmp_path: Path) -> None:
    control, *others = compared(configure).results
    failed = [replace(one, summaries={}, values={}, error="out of memory") for one in (control, *others)]
    config = configure()
    text = reported(config, tmp_path, Comparison(failed), False, Terminal())
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    assert rows == [["control", "failed"], ["factor=2", "failed"], ["factor=3", "failed"]] and "state" in text
    assert reported(config, tmp_path, Comparison(failed), True, Terminal()) == text


def test_control_characters_in_a_summary_are_escaped() -> None:
    evil = "a\x1b[31mb\rc\u202ed\x9be"
    summary = Summary(evil, ["point", evil], [[evil + "\n", evil]], [evil], [])
    text = printed(summary, 200)
    assert not set(text) & set("\x1b\r\u202e\x9b")
    assert text.count(r"a\x1b[31mb\x0dc\u202ed\x9be") == 5 and r"\x9be\n" in text
