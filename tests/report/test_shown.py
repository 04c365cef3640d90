"""What is shown first, how it fits the terminal, and what is said of marks that cannot come."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf
from rich.console import Console

from conftest import compose
from sweep.app import sweep_folder
from sweep.config import loader
from sweep.config.schema import ScoringConfig, SweepConfig
from sweep.console.terminal import Terminal
from sweep.errors import ConfigError
from sweep.planning.results import PointResult
from sweep.points.fingerprint import Fingerprints
from sweep.points.point import Point
from sweep.report import html
from sweep.report.comparison import Comparison, compare
from sweep.report.live import summary_line
from sweep.report.matrix import Matrix
from sweep.report.measures import main_measures
from sweep.report.overview import points_table
from sweep.report.results import tables
from sweep.report.run_summary import power_notes, ranking_measure, response_findings, shown_measures
from sweep.report.summary import Summary, load_summary
from sweep.report.terminal import SweepOutcome, print_report
from sweep.scoring.measures import summarise_scores
from sweep.scoring.significance import mcnemar_p, permutation_p, smallest_p
from sweep.tracking.links import Links

Configure = Callable[..., SweepConfig]
OWN = {"quality": ["chrf", "exact_match", "mine.politeness"], "primary": None}


def result(index: int, point: Point, values: dict[str, list[float]]) -> PointResult:
    arrays = {name: np.array(own, float) for name, own in values.items()}
    return PointResult(index, point, summarise_scores(arrays, 0.95), arrays)


def compared(configure: Configure, prompts: int = 8, points: int = 2, scoring: Any = OWN) -> Comparison:
    """Points that lose all of what the control has in three measures, but for the divergence."""
    config: dict[str, Any] = {"scoring": scoring, "plugins": ["mine"]}
    names = ("quality/exact_match", "quality/chrf", "quality/politeness", "divergence/token_agreement")
    right = {name: [1.0] * prompts for name in names}
    wrong = {name: [0.0 if name.startswith("quality") else 1.0] * prompts for name in names}
    results = [result(0, Point(configure(**config), is_control=True), right)]
    for i in range(1, points + 1):
        transform = {"name": "scale", "factor": 1.0 + i}
        results.append(
            result(i, Point(configure(transform=transform, **config), (("transform.factor", 1.0 + i),)), wrong)
        )
    return compare(results, 0.95, results[0].point.config.scoring.first)


@pytest.fixture
def own_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("def politeness(generation): return 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize(
    ("quality", "primary", "expected"),
    [
        (["exact_match", "contains"], None, ["quality/exact_match"]),
        (["chrf", "a.b.mine", "c:other"], None, ["quality/chrf", "quality/mine", "quality/other"]),
        (["chrf", "a.b.mine"], "mine", ["quality/mine"]),
        (["chrf", "a.b.mine"], "a.b.mine", ["quality/mine"]),
        (["quality/chrf", "bleu"], "quality/bleu", ["quality/bleu"]),
        (["chrf"], "divergence/token_agreement", ["divergence/token_agreement"]),
        ([], None, []),
    ],
)
def test_the_primary_measure_and_the_users_own_come_first(
    quality: list[str], primary: str | None, expected: list[str]
) -> None:
    assert ScoringConfig(quality=quality, primary=primary).first == expected


def test_a_primary_measure_that_is_not_measured_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"scoring\.primary: 'chfr' is not a measure .* Did you mean 'chrf'\? Available: chrf, div"
    ):
        ScoringConfig(quality=["chrf"], primary="chfr")
    with pytest.raises(ConfigError, match=r"scoring\.primary: 'divergence/kl' is not a measure"):
        ScoringConfig(primary="divergence/kl")


def test_the_primary_measure_decides_only_what_is_shown(
    configure: Configure, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = [Point(configure(scoring={"primary": primary})) for primary in (None, "contains")]
    first, second = Fingerprints().identify(points)
    assert first == second
    ids = []
    for argument in ("transform=scale", "scoring.primary=contains"):
        monkeypatch.setattr("sys.argv", ["sweep", "transform=scale", *([argument] if "primary" in argument else [])])
        base = compose(tiny, tmp_path, scoring={"primary": argument.partition("primary=")[2] or None})
        ids.append(sweep_folder.make_sweep_id(base, "folder"))
    assert ids[0] == ids[1]
    monkeypatch.setattr("sys.argv", ["sweep", "transform=scale", "scoring.confidence=0.9"])
    assert sweep_folder.make_sweep_id(OmegaConf.create(base), "folder") != ids[0]
    assert loader.parse(compose(tiny, tmp_path, scoring={"primary": "contains"})).scoring.primary == "contains"


@pytest.mark.usefixtures("own_plugin")
def test_first_measures_are_in_live_lines_thresholds_and_the_first_view(configure: Configure) -> None:
    comparison = compared(configure)
    assert summary_line(comparison.results[1]) == "factor=2: chrf 0, politeness 0, token agreement 1"
    assert ranking_measure(comparison) == "quality/chrf"
    assert shown_measures(comparison)[:2] == ["quality/chrf", "quality/politeness"]
    assert [line.split(": differs")[0] for line in response_findings(comparison)] == [
        "quality/chrf",
        "quality/politeness",
    ]
    rows = {
        "point": [0, 1],
        "prompt_id": "q",
        "prompt": "?",
        "sample": 0,
        "generation": "g",
        "reference": "",
        "role": "x",
    }
    scores = {name: [1.0, 0.0] for name in comparison.results[0].values}
    results = tables(
        comparison,
        pd.DataFrame(rows | {"finish_reason": "stop"} | scores),
        sweep_id="",
        name="",
        command="",
        confidence=0.95,
    )
    columns = points_table(results, [0, 1, 2]).columns
    assert [column.measure for column in columns if column.main][:2] == ["quality/chrf", "quality/politeness"]
    shown = [score["name"] for score in Matrix.of(results, [0, 1, 2]).scores if score["shown"]]
    assert shown == ["quality/chrf", "quality/politeness", "divergence/token_agreement"]
    assert '"main":["quality/chrf","quality/politeness","divergence/token_agreement"]' in html.render(results)


def test_all_first_measures_are_shown_and_others_fill_up() -> None:
    names = ["quality/exact_match", "quality/contains", "quality/a", "quality/b", "quality/c"]
    assert main_measures(names, ["quality"]) == ["quality/exact_match", "quality/contains"]
    assert main_measures(names, ["quality"], ["quality/b"]) == ["quality/b", "quality/exact_match"]
    assert main_measures(names, ["quality"], ["quality/c", "quality/a", "quality/b"]) == [
        "quality/c",
        "quality/a",
        "quality/b",
    ]


@pytest.mark.parametrize("prompts", [1, 2, 6, 12, 20])
def test_no_test_gives_less_than_the_smallest_p(prompts: int) -> None:
    assert permutation_p(np.full((1, prompts), 0.5))[0] == pytest.approx(smallest_p(prompts))
    assert mcnemar_p(np.zeros((1, prompts)), np.ones(prompts))[0] == pytest.approx(smallest_p(prompts))
    assert smallest_p(0) == 1


@pytest.mark.usefixtures("own_plugin")
def test_a_mark_that_cannot_come_is_explained(configure: Configure) -> None:
    """Six comparisons of quality need p < 0.0083 each; 2^-7 is the first power of two below that."""
    few = compared(configure, prompts=5)
    assert not few.differences[1]["quality/chrf"].significant
    assert list(power_notes(few)) == [
        "quality: too few prompts (5): the smallest possible p is 0.062, but p < 0.0083 is required for a "
        "single difference in 6 comparisons. Use at least 8 prompts.",
        "divergence: too few prompts (5): the smallest possible p is 0.062, but p < 0.025 is required for a "
        "single difference in 2 comparisons. Use at least 7 prompts.",
    ]
    # With six prompts all six differences are significant together: nothing is to be explained of quality.
    six = compared(configure, prompts=6)
    assert six.differences[1]["quality/chrf"].significant
    assert [line.split(":")[0] for line in power_notes(six)] == ["divergence"]
    assert list(power_notes(compared(configure, prompts=8))) == []


def test_a_wrong_answer_of_the_control_cannot_be_lost(configure: Configure) -> None:
    control = Point(configure(), is_control=True)
    point = Point(configure(transform={"name": "scale", "factor": 2.0}), (("transform.factor", 2.0),))
    values = {"quality/exact_match": [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]}
    lost = {"quality/exact_match": [0.0] * 7}
    comparison = compare([result(0, control, values), result(1, point, lost)], 0.95)
    assert list(power_notes(comparison)) == [
        "quality: too few prompts (7, of which at most 4 can change in one direction): the smallest possible p is "
        "0.12, but p < 0.05 is required for a single difference in 1 comparison. Use at least 6 prompts whose result "
        "can change in one direction."
    ]


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


def test_a_file_has_room_for_all_columns() -> None:
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
def test_a_damaged_summary_is_none(tmp_path: Path, text: str) -> None:
    assert load_summary(tmp_path) is None
    Summary(**WHOLE).save(tmp_path)
    assert load_summary(tmp_path) is not None
    (tmp_path / "summary.json").write_text(text)
    assert load_summary(tmp_path) is None


def test_a_pipe_in_place_of_the_summary_is_not_waited_for(tmp_path: Path) -> None:
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
def test_without_a_readable_summary_the_table_is_made_anew(configure: Configure, tmp_path: Path) -> None:
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


def test_control_characters_are_written_out() -> None:
    evil = "a\x1b[31mb\rc\u202ed\x9be"
    summary = Summary(evil, ["point", evil], [[evil + "\n", evil]], [evil], [])
    text = printed(summary, 200)
    assert not set(text) & set("\x1b\r\u202e\x9b")
    assert text.count(r"a\x1b[31mb\x0dc\u202ed\x9be") == 5 and r"\x9be\n" in text
