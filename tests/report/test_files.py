"""What stays on disk, and how a notebook gets it back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from synthetic import make

import sweep
from sweep.report import files
from sweep.report.results import SweepResults


def test_written_results_can_be_loaded(tmp_path: Path) -> None:
    results = make(prompts=4, factors=2)
    folder = tmp_path / "sweeps" / results.sweep_id / "report"
    written = files.write(results, folder)
    names = [
        "points.csv",
        "rows.csv",
        "responses.csv",
        "generations.parquet",
        "report.html",
        "plots/quality_transform.factor.png",
        "plots/divergence_transform.factor.png",
    ]
    assert [str(path.relative_to(folder)) for path in written] == names
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == sorted(written)
    for loaded in (
        sweep.load(results.sweep_id, tmp_path),
        sweep.load("20261123", tmp_path),
        sweep.load(results.name, tmp_path),
        sweep.load(folder.parent),
        sweep.load(str(folder)),
        sweep.load(dir=str(tmp_path)),
    ):
        assert list(loaded["token_ids"].map(list)) == list(results.generations["token_ids"])
        pd.testing.assert_frame_equal(loaded.drop(columns="token_ids"), results.generations.drop(columns="token_ids"))
        assert loaded.attrs["sweep_id"] == results.sweep_id and loaded.attrs["command"] == results.command
    with pytest.raises(FileNotFoundError, match="No folder and no sweep 'x"):
        sweep.load("x" * 5000, tmp_path)
    points = sweep.load(results.sweep_id, tmp_path, points=True)
    assert points.pop("error").isna().all()
    expected = results.points.drop(columns="error")
    pd.testing.assert_frame_equal(points, expected, check_dtype=False, check_exact=True)
    assert str(pq.read_schema(folder / "generations.parquet").field("token_ids").type) == "list<element: int64>"
    responses = pd.read_csv(folder / "responses.csv", keep_default_na=False, na_values={"floor": [""]})
    responses["breaking_point"] = pd.to_numeric(responses["breaking_point"])
    for end in ("ci_low", "ci_high"):
        responses[f"breaking_point/{end}"] = pd.to_numeric(responses[f"breaking_point/{end}"])
    pd.testing.assert_frame_equal(responses, results.responses)


def test_an_axis_of_numbers_and_texts_and_answers_without_tokens(tmp_path: Path) -> None:
    results = make(prompts=1, factors=2)
    frame = results.generations
    frame["axis/mixed"] = pd.Series([None, 1, "auto"], dtype=object)
    frame["axis/whole"] = pd.Series([None, 1, 2], dtype=object)
    frame["token_ids"] = [[], [], []]
    files.write(results, tmp_path)
    loaded = sweep.load(tmp_path)
    assert loaded["axis/mixed"].tolist()[1:] == ["1", "auto"] and pd.isna(loaded["axis/mixed"][0])
    assert loaded["axis/whole"].tolist()[1:] == [1, 2]
    results.points["axis/mixed"] = [None, "none", "auto"]
    files.write(results, tmp_path)
    assert sweep.load(tmp_path, points=True)["axis/mixed"].tolist()[1:] == ["none", "auto"]
    assert [len(ids) for ids in loaded["token_ids"]] == [0, 0, 0]
    assert str(pq.read_schema(tmp_path / "generations.parquet").field("token_ids").type) == "list<element: int64>"


def test_report_without_generations_is_written(tmp_path: Path) -> None:
    results = make(prompts=1, factors=1)
    points = results.points[["point", "name", "role", "control"]].assign(error="EngineError: it died")
    files.write(SweepResults("id", "", "sweep", 0.95, points, pd.DataFrame()), tmp_path)
    assert len(sweep.load(tmp_path)) == 0
    assert sweep.load(tmp_path, points=True)["error"].tolist() == ["EngineError: it died"] * 2
    first = ["control", "axis", "series", "pooled", "measure", "side"]
    assert list(pd.read_csv(tmp_path / "responses.csv").columns[:6]) == first


def test_files_are_replaced_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = make(prompts=1, factors=2)
    files.write(results, tmp_path)
    before = (tmp_path / "points.csv").read_bytes()

    def half(frame: pd.DataFrame, path: Path, **_: object) -> None:
        Path(path).write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(pd.DataFrame, "to_csv", half)
    with pytest.raises(OSError, match="disk full"):
        files.write(results, tmp_path)
    assert (tmp_path / "points.csv").read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_newest_sweep_is_the_last_reported_one(tmp_path: Path) -> None:
    for age, name in enumerate(("b", "c", "a")):  # a is the oldest
        folder = tmp_path / "sweeps" / name / "report"
        folder.mkdir(parents=True)
        pd.DataFrame({"which": [name]}).to_parquet(folder / "generations.parquet")
        os.utime(folder / "generations.parquet", (1e9 - age, 1e9 - age))
    (tmp_path / "sweeps" / "z").mkdir()  # has no report
    assert sweep.load(dir=tmp_path)["which"].tolist() == ["b"]


def test_error_messages_name_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"No sweep in .*sweeps has written a report\. Set dir= to the sweep\.dir"
    ):
        sweep.load(dir=tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"No folder and no sweep 'x' in .*sweeps\. No sweep there has a report\."
    ):
        sweep.load("x", tmp_path)
    for name in ("2026-a", "2026-b", "2027-refused"):
        (tmp_path / "sweeps" / name).mkdir(parents=True)
    for name in ("2026-a", "2026-b"):
        (tmp_path / "sweeps" / name / "report").mkdir()
        pd.DataFrame({"which": [name]}).to_parquet(tmp_path / "sweeps" / name / "report" / "generations.parquet")
    with pytest.raises(
        FileNotFoundError, match=r"No folder and no sweep 'x' .* Sweeps with a report: 2026-a, 2026-b\."
    ):
        sweep.load("x", tmp_path)
    with pytest.raises(
        ValueError, match=r"Several sweep ids begin with '202': 2026-a, 2026-b\. Pass more of the id\.$"
    ):
        sweep.load("202", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"Sweep 2027-refused in .* has not written a report yet\. Sweeps with"):
        sweep.load("2027", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"2026-a/report/points.csv does not exist"):
        sweep.load("2026-a", tmp_path, points=True)


def test_importing_sweep_imports_no_heavy_modules() -> None:
    program = "import sys, sweep, sweep.report, sweep.report.terminal; print([m for m in ('pandas', 'torch', 'matplotlib', 'plotly') if m in sys.modules]); sweep.load; print('pandas' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split("\n")[:2] == ["[]", "True"]
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        sweep.lod  # noqa: B018
