"""The same command again: nothing is lost, nothing is done twice."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from safetensors.torch import save_file

from sweep import versions
from sweep.config import SweepConfig
from sweep.disk.journal import Journal
from sweep.engines.base import Engine, Failure, Generation, Request
from sweep.errors import ConfigError, JournalError, TooManyFailures
from sweep.point import Point
from sweep.runner import Runner
from sweep.terminal import Terminal
from sweep.workload import Key

Configure = Callable[..., SweepConfig]
FULL = {"logprobs": 5, "teacher_forced": True}


class Counting:
    """The shared engine, which remembers what it was asked besides the gate, and can be told to be interrupted."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[Key] = []
        self.interrupt_after: int | None = None
        self.refused: set[tuple[int, int]] = set()
        self._generate = engine.generate
        monkeypatch.setattr(engine, "generate", self.generate)

    def generate(self, requests: Iterator[Request]) -> Iterator[Generation | Failure]:
        done = 0
        for answer in self._generate(requests):
            if isinstance(answer.key, Key):
                if done == self.interrupt_after:
                    raise KeyboardInterrupt
                done += 1
                self.asked.append(answer.key)
                if (answer.key.point, answer.key.prompt) in self.refused:
                    yield Failure(answer.key, "refused for the test")
                    continue
            yield answer


@pytest.fixture
def engine_log(on_shared_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Counting:
    return Counting(on_shared_engine, monkeypatch)


def scaled(configure: Configure, *factors: float, **changes: object) -> list[Point]:
    return [
        Point(configure(transform={"name": "scale", "factor": f}, **changes), (("transform.factor", f),))
        for f in factors
    ]


def sweep(points: list[Point], name: str = "a") -> Runner:
    with Runner(points[0].config, name, "sweep …", Terminal()) as runner:
        runner.run(points)
    return runner


def runs_of(config: SweepConfig) -> list[Run]:
    client = MlflowClient(f"sqlite:///{config.sweep.root / 'mlflow.db'}")
    [experiment] = client.search_experiments(filter_string="name = 'sweep'")
    return list(client.search_runs([experiment.experiment_id]))


def tables_of(config: SweepConfig, sweep_id: str = "a") -> dict[str, list[list[object]]]:
    client = MlflowClient(f"sqlite:///{config.sweep.root / 'mlflow.db'}")
    found: dict[str, list[list[object]]] = {}
    for run in runs_of(config):
        if run.data.tags["sweep.role"] != "sweep" and run.data.tags["sweep.id"] == sweep_id:
            assert run.info.status == "FINISHED" and run.info.run_name not in found
            table = Path(client.download_artifacts(run.info.run_id, "generations.json"))
            found[run.info.run_name] = json.loads(table.read_text())["data"]
    return found


def test_a_finished_sweep_is_not_done_again(configure: Configure, engine_log: Counting) -> None:
    points = scaled(configure, 1.5, 2.0)
    sweep(points)
    before, asked = {run.info.run_id: run.data.metrics for run in runs_of(configure())}, len(engine_log.asked)
    again = sweep(points)
    assert again.engine_starts == 0 and len(engine_log.asked) == asked
    assert {run.info.run_id: run.data.metrics for run in runs_of(configure())} == before
    assert again.publisher is not None and again.publisher.earlier == 3
    assert again.publisher.nothing_new


@pytest.mark.parametrize("scoring", [{}, FULL], ids=["plain", "forced"])
def test_an_interrupted_sweep_goes_on_from_the_next_prompt(
    configure: Configure, engine_log: Counting, tmp_path: Path, scoring: dict[str, object]
) -> None:
    def points(folder: str) -> list[Point]:
        return scaled(configure, 1.5, 2.0, 4.0, scoring=scoring, sweep={"dir": str(tmp_path / folder)})

    undisturbed = points("undisturbed")
    sweep(undisturbed)
    needed, engine_log.asked = len(engine_log.asked), []
    interrupted = points("interrupted")
    for engine_log.interrupt_after in (2, 3, 4, 5):
        with pytest.raises(KeyboardInterrupt):
            sweep(interrupted)
        assert {run.info.status for run in runs_of(interrupted[0].config)} <= {"FINISHED", "KILLED"}
    engine_log.interrupt_after = None
    sweep(interrupted)
    assert len(engine_log.asked) == needed
    assert {run.info.status for run in runs_of(interrupted[0].config)} == {"FINISHED"}
    assert tables_of(interrupted[0].config) == tables_of(undisturbed[0].config)


def test_another_sweep_reuses_generations(configure: Configure, engine_log: Counting) -> None:
    sweep(scaled(configure, 1.5, 2.0))
    asked = len(engine_log.asked)
    sweep(scaled(configure, 2.0, scoring={"quality": ["chrf"]}), "b")
    assert len(engine_log.asked) == asked
    reused = {
        r.info.run_name: r.data.tags.get("sweep.reused") for r in runs_of(configure()) if r.data.tags["sweep.id"] == "b"
    }
    assert reused == {"b": None, "control": "3", "factor=2": "3"}
    assert tables_of(configure(), "b")["factor=2"][0][1] == tables_of(configure())["factor=2"][0][1]


def test_resume_false_begins_anew(configure: Configure, engine_log: Counting) -> None:
    sweep(scaled(configure, 2.0))
    asked = len(engine_log.asked)
    anew = {"dir": str(configure().sweep.dir), "resume": "false"}
    sweep(scaled(configure, 2.0, sweep=anew), "a.2")
    assert len(engine_log.asked) == 2 * asked
    assert tables_of(configure(), "a.2") == tables_of(configure())


def test_a_point_that_fails_fails_alone_and_is_tried_again(configure: Configure, engine_log: Counting) -> None:
    engine_log.refused = {(1, 1)}  # the second prompt of the first point after the control
    points = scaled(configure, 1.5, 2.0)
    runner = sweep(points)
    statuses = {run.info.run_name: run.info.status for run in runs_of(configure())}
    assert statuses == {"a": "FAILED", "control": "FINISHED", "factor=1.5": "FAILED", "factor=2": "FINISHED"}
    assert "prompt 'sky': refused for the test" in str(runner.results[points[0].key].error)
    asked, engine_log.refused = len(engine_log.asked), set()
    sweep(points)
    assert len(engine_log.asked) <= asked + 2  # what was answered is known
    assert {run.info.run_name: run.info.status for run in runs_of(configure())} == dict.fromkeys(statuses, "FINISHED")


@pytest.mark.parametrize("setting", [{"on_error": "stop"}, {"max_failures": 1}])
def test_too_many_failures_end_the_sweep(
    configure: Configure, engine_log: Counting, setting: dict[str, object]
) -> None:
    engine_log.refused = {(i, 0) for i in range(1, 12)}
    points = scaled(configure, *(1.0 + i / 10 for i in range(1, 10)), sweep={"dir": configure().sweep.dir} | setting)
    with pytest.raises(TooManyFailures, match="points failed, more than sweep"):
        sweep(points)
    assert [run.info.status for run in runs_of(configure())].count("RUNNING") == 0


def test_another_version_of_the_engine_is_not_mixed_in_unasked(
    configure: Configure, engine_log: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine_log.interrupt_after = 8
    points = scaled(configure, 1.5, 2.0)
    with pytest.raises(KeyboardInterrupt):
        sweep(points)
    engine_log.interrupt_after = None
    monkeypatch.setattr("sweep.memory.engine_version", lambda name: f"{name} 99.0")
    with pytest.raises(ConfigError, match=f"begun with {versions.engine_version('vllm')}, and vllm 99.0 is installed"):
        sweep(points)
    asked = len(engine_log.asked)
    sweep(scaled(configure, 1.5, 2.0, sweep={"dir": configure().sweep.dir, "resume": "force"}))
    assert len(engine_log.asked) < asked + 9


def test_a_damaged_record_is_generated_again_and_nothing_else(configure: Configure, engine_log: Counting) -> None:
    engine_log.interrupt_after = 8
    points = scaled(configure, 1.5, 2.0)
    with pytest.raises(KeyboardInterrupt):
        sweep(points)
    engine_log.interrupt_after = None
    journal = configure().sweep.root / "journal"
    file = next(file for file in journal.rglob("*.jsonl") if file.read_bytes().count(b"\n") == 4)  # a complete point's
    lines = file.read_bytes().split(b"\n")
    lines[2] = lines[2].replace(b"token_ids", b"token_idz")
    file.write_bytes(b"\n".join(lines))
    [problem] = Journal(journal).read(file.parent.name).problems
    assert problem.startswith(f"{file}, line 3: its checksum does not fit")
    sweep(points)
    assert len(engine_log.asked) == 12 + 1


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


def test_points_of_changed_prompts_take_the_place_of_the_old_ones(
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
    with Runner(first[0].config, "a", "sweep …", Terminal()) as runner:
        runner.run(first)
        runner.run(second)
    assert runner.result(second[0]) is runner.result(first[0]) is not None
    assert len(engine_log.asked) == 3 and len(runs_of(configure())) == 3


def test_a_damaged_archive_is_made_again(configure: Configure, engine_log: Counting, tmp_path: Path) -> None:
    points = scaled(configure, 2.0)
    before = sweep(points)
    asked = len(engine_log.asked)
    for file in (before.folder / "points").glob("*.parquet"):
        data = bytearray(file.read_bytes())
        data[40:60] = b"\xff" * 20
        file.write_bytes(data)
    other = {"tracking": {"uri": f"sqlite:///{tmp_path / 'other.db'}"}}
    elsewhere = scaled(configure, 2.0, **other)
    for _ in range(3):
        try:
            sweep(elsewhere)
            break
        except JournalError as error:
            assert "is damaged, and was put aside" in str(error)
    client = MlflowClient(other["tracking"]["uri"])
    runs = client.search_runs([client.search_experiments(filter_string="name = 'sweep'")[0].experiment_id])
    published = {run.info.run_name: run.info.status for run in runs if run.data.tags["sweep.role"] != "sweep"}
    assert published == {"control": "FINISHED", "factor=2": "FINISHED"} and len(engine_log.asked) == asked
