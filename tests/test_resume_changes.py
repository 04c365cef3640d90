"""Tests of resuming after changes: moved folders, other trackers, changed prompts and scorers, and damaged archives."""

from __future__ import annotations

import importlib
import json
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache
from safetensors.torch import save_file

from resumed_sweeps import Configure, Counting, runs_of, scaled, sweep, tables_of
from sweep.api import load
from sweep.app.sweep_runner import SweepRunner
from sweep.console.terminal import Terminal
from sweep.errors import ConfigError, JournalError
from sweep.points.point import Point
from sweep.storage.journal import Journal
from sweep.testing import ScriptedConfig
from sweep.testing.scripted import VERSION
from sweep.tracking.sqlite import uri_of


@pytest.fixture
def engine_log(monkeypatch: pytest.MonkeyPatch) -> Counting:
    return Counting(monkeypatch)


@pytest.fixture
def configure(configure: Configure) -> Configure:
    return partial(configure, engine={"name": "scripted"})


def test_resume_with_another_engine_version_is_refused_unless_forced(
    configure: Configure, engine_log: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine_log.interrupt_after = 8
    points = scaled(configure, 1.5, 2.0)
    with pytest.raises(KeyboardInterrupt):
        sweep(points)
    engine_log.interrupt_after = None
    monkeypatch.setattr(ScriptedConfig, "installed", classmethod(lambda cls: f"{cls.name} 99"))
    with pytest.raises(ConfigError, match=rf"started with scripted {VERSION}, but the installed engine is scripted 99"):
        sweep(points)
    asked = len(engine_log.asked)
    sweep(scaled(configure, 1.5, 2.0, sweep={"dir": configure().sweep.dir, "resume": "force"}))
    assert (asked, len(engine_log.asked)) == (8, 12)


def test_only_a_damaged_record_is_generated_again(configure: Configure, engine_log: Counting) -> None:
    engine_log.interrupt_after = 8
    points = scaled(configure, 1.5, 2.0)
    with pytest.raises(KeyboardInterrupt):
        sweep(points)
    engine_log.interrupt_after = None
    journal = configure().sweep.root / "journal"
    file = next(file for file in journal.rglob("*.jsonl") if file.read_bytes().count(b"\n") == 4)  # of a complete point
    lines = file.read_bytes().split(b"\n")
    lines[2] = lines[2].replace(b"token_ids", b"token_idz")
    file.write_bytes(b"\n".join(lines))
    [problem] = Journal(journal).read(file.parent.name).problems
    assert problem.startswith(f"{file}, line 3: the checksum does not match")
    sweep(points)
    assert len(engine_log.asked) == 12 + 1


def test_moved_folder_is_used_at_its_new_place(
    configure: Configure, engine_log: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path))  # a process keeps the value of its first sweep
    before, after = tmp_path / "before", tmp_path / "a%20b?c #d é"

    def points(folder: Path, *factors: float) -> list[Point]:
        return scaled(configure, *factors, sweep={"dir": str(folder)})

    sweep(points(before, 2.0))
    before.rename(after)
    _artifact_repos_cache.clear()  # as in a new process
    asked = len(engine_log.asked)
    runner = sweep(points(after, 2.0, 4.0))
    assert len(engine_log.asked) == asked + 3 and not runner.problems
    assert runner.publisher is not None and runner.publisher.earlier == 2
    assert not before.exists()
    client = MlflowClient(uri_of(after / "mlflow.db"))
    tables = {
        run.info.run_name: json.loads(Path(client.download_artifacts(run.info.run_id, "generations.json")).read_text())
        for run in client.search_runs(["1"])
        if run.data.tags["sweep.role"] != "sweep"
    }
    assert {name: len(table["data"]) for name, table in tables.items()} == {"control": 3, "factor=2": 3, "factor=4": 3}
    assert load("a", after)["name"].tolist() == [name for name in ("control", "factor=2", "factor=4") for _ in range(3)]


def test_results_are_published_to_another_tracker_without_generating(
    configure: Configure, engine_log: Counting, tmp_path: Path
) -> None:
    sweep(scaled(configure, 2.0))
    asked = len(engine_log.asked)
    other = f"sqlite:///{tmp_path / 'other.db'}"
    sweep(scaled(configure, 2.0, tracking={"uri": other}))
    client = MlflowClient(other)
    runs = client.search_runs([client.search_experiments(filter_string="name = 'sweep'")[0].experiment_id])
    assert {run.info.run_name: run.info.status for run in runs} == dict.fromkeys(
        ("a", "control", "factor=2"), "FINISHED"
    )
    assert len(engine_log.asked) == asked


def test_points_of_changed_prompts_replace_the_old_ones(
    configure: Configure, engine_log: Counting, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.jsonl"
    for text in ("Hi", "Ho"):
        file.write_text(json.dumps({"prompt": text}) + "\n")
        points = scaled(configure, 2.0, prompts={"path": str(file)})
        sweep(points)
    tables = tables_of(configure())
    assert set(tables) == {"control", "factor=2"} and tables["control"][0][0] == "Ho"
    aside = [run for run in runs_of(configure()) if run.data.tags["sweep.id"] == "a (superseded)"]
    assert len(aside) == 2


def test_points_that_are_the_same_under_two_names_are_run_once(
    configure: Configure, engine_log: Counting, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def point(vector: str, prompts: str) -> Point:
        for name in (vector, prompts):
            copy = tmp_path / name
            if name.endswith(".safetensors"):
                save_file({"v": torch.ones(64)}, copy)
            else:
                copy.write_text('{"prompt": "Hi"}\n')
        transform = {"name": "add_vector", "coefficient": 1.0, "vector": {"path": str(tmp_path / vector)}}
        config = configure(transform=transform, prompts={"path": str(tmp_path / prompts)})
        return Point(config, (("transform.vector.path", vector), ("prompts.path", prompts)))

    points = [point(v, p) for p in ("p.jsonl", "q.jsonl") for v in ("v.safetensors", "w.safetensors")]
    runner = sweep(points)
    assert len({id(runner.result(point)) for point in points}) == 1 and runner.result(points[0]) is not None
    assert len(engine_log.asked) == 3  # the control's two runs, and the point
    assert caplog.text.count("is the same as") == 3
    before = {run.info.run_id for run in runs_of(configure())}
    assert len(before) == 3
    sweep(points[::-1])
    assert len(engine_log.asked) == 3 and {run.info.run_id for run in runs_of(configure())} == before


def test_a_changed_scorer_scores_again_and_generates_nothing(
    configure: Configure, engine_log: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    for value in (0.25, 0.75):
        (tmp_path / "own_scorer.py").write_text(f"def judge(answer):\n    return {value}\n")
        sys.modules.pop("own_scorer", None)
        importlib.invalidate_caches()
        sweep(scaled(configure, 2.0, scoring={"quality": ["own_scorer:judge"]}, plugins=["own_scorer"]))
        means = {run.data.metrics.get("quality/judge") for run in runs_of(configure()) if in_views(run)}
        assert means == {value, None}
    assert len(engine_log.asked) == 9


def in_views(run: Run) -> bool:
    return run.data.tags["sweep.id"] == "a"


def test_points_that_are_the_same_in_two_batches_are_run_once(
    configure: Configure, engine_log: Counting, tmp_path: Path
) -> None:
    for name in ("p.jsonl", "q.jsonl"):
        (tmp_path / name).write_text('{"prompt": "Hi"}\n')
    first, second = (scaled(configure, 2.0, prompts={"path": str(tmp_path / n)}) for n in ("p.jsonl", "q.jsonl"))
    with SweepRunner(first[0].config, "a", "sweep …", Terminal()) as runner:
        runner.run(first)
        runner.run(second)
    assert runner.result(second[0]) is runner.result(first[0]) is not None
    assert len(engine_log.asked) == 3 and len(runs_of(configure())) == 3


def test_damaged_archive_is_rebuilt(configure: Configure, engine_log: Counting, tmp_path: Path) -> None:
    points = scaled(configure, 2.0)
    before = sweep(points)
    asked = len(engine_log.asked)
    for file in (before.folder / "points").glob("*.parquet"):
        data = bytearray(file.read_bytes())
        data[40:60] = b"\xff" * 20
        file.write_bytes(data)
    other = {"tracking": {"uri": f"sqlite:///{tmp_path / 'other.db'}"}}
    elsewhere = scaled(configure, 2.0, **other)
    for _ in range(2):
        with pytest.raises(JournalError, match="is damaged and was moved to"):
            sweep(elsewhere)
    sweep(elsewhere)
    client = MlflowClient(other["tracking"]["uri"])
    runs = client.search_runs([client.search_experiments(filter_string="name = 'sweep'")[0].experiment_id])
    published = {run.info.run_name: run.info.status for run in runs if run.data.tags["sweep.role"] != "sweep"}
    assert published == {"control": "FINISHED", "factor=2": "FINISHED"} and len(engine_log.asked) == asked
