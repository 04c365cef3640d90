"""Tests of resuming: the same command again loses no answer and generates none twice."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache
from safetensors.torch import save_file

from sweep.api import load
from sweep.app.sweep_runner import SweepRunner
from sweep.config.schema import SweepConfig
from sweep.console.terminal import Terminal
from sweep.engines.base import Engine, Failure, Generation, Request
from sweep.errors import ConfigError, JournalError, TooManyFailures
from sweep.execution.scheduler import Key
from sweep.points.point import Point
from sweep.storage.journal import Journal
from sweep.testing import ScriptedConfig
from sweep.testing.scripted import VERSION
from sweep.tracking.sqlite import uri_of

Configure = Callable[..., SweepConfig]
FULL = {"logprobs": 5, "teacher_forced": True}


class Counting:
    """Scripted engine that records its requests without the identity check's, and can interrupt the sweep.

    Attributes:
        asked: keys of the requests that were answered, over all engines.
        interrupt_after: number of answers of one engine after which the user interrupts it. None: never.
        refused: requests that fail, by the numbers of point and prompt.
        settle: called before the interrupt and after each refusal, so that what follows does not depend on threads.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[Key] = []
        self.interrupt_after: int | None = None
        self.refused: set[tuple[int, int]] = set()
        self.settle: Callable[[], object] = lambda: None
        open_engine = ScriptedConfig.open

        def opened(config: ScriptedConfig, *arguments: Any) -> Engine:
            engine = open_engine(config, *arguments)
            monkeypatch.setattr(engine, "generate", partial(self._generate, engine.generate))
            return engine

        monkeypatch.setattr(ScriptedConfig, "open", opened)

    def _generate(
        self, generate: Callable[..., Iterator[Generation | Failure]], requests: Iterator[Request]
    ) -> Iterator[Generation | Failure]:
        done = 0
        for answer in generate(requests):
            if isinstance(answer.key, Key):
                if done == self.interrupt_after:
                    self.settle()
                    raise KeyboardInterrupt
                done += 1
                self.asked.append(answer.key)
                if (answer.key.run, answer.key.prompt) in self.refused:
                    yield Failure(answer.key, "refused for the test")
                    self.settle()
                    continue
            yield answer


@pytest.fixture
def engine_log(monkeypatch: pytest.MonkeyPatch) -> Counting:
    return Counting(monkeypatch)


@pytest.fixture
def configure(configure: Configure) -> Configure:
    return partial(configure, engine={"name": "scripted"})


def scaled(configure: Configure, *factors: float, **changes: object) -> list[Point]:
    return [
        Point(configure(transform={"name": "scale", "factor": f}, **changes), (("transform.factor", f),))
        for f in factors
    ]


def sweep(points: list[Point], name: str = "a", settled: Counting | None = None) -> SweepRunner:
    """Run a sweep.

    Args:
        settled: engine that waits, where it settles, until all points finished so far are published.
    """
    with SweepRunner(points[0].config, name, "sweep …", Terminal()) as runner:
        if settled is not None:
            settled.settle = partial(publish_all, runner)
        runner.run(points)
    return runner


def publish_all(runner: SweepRunner) -> None:
    assert runner.publisher is not None
    runner.publisher.scoring.drain()
    runner.publisher.start().drain()


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


def test_a_finished_sweep_gets_the_name_that_is_given_later(
    configure: Configure, engine_log: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTHER_TOKEN", "hunter22")

    def named(name: str | None) -> SweepRunner:
        return sweep(scaled(configure, 2.0, sweep={"dir": configure().sweep.dir, "name": name}))

    named("one")
    asked = len(engine_log.asked)
    report = named("two hunter22").folder / "report"
    [parent] = [run for run in runs_of(configure()) if run.data.tags["sweep.role"] == "sweep"]
    assert (parent.info.run_name, parent.info.status) == ("two ***", "FINISHED") and len(engine_log.asked) == asked
    html = (report / "report.html").read_text()
    assert "two ***" in html and "hunter22" not in html
    assert load(report, points=False).attrs["name"] == "two ***"
    for name in ("two hunter22", None):
        again = named(name).publisher
        assert again is not None and again.nothing_new


CONTROL, FIRST, SECOND = "control", "factor=1.5", "factor=2"


@pytest.mark.parametrize(
    ("scoring", "published"),
    [
        # The control, the first point, the control's second run and the other points have three answers each. They are
        # interrupted after 2, 5, 9 and 14 of the 15.
        pytest.param({}, [(2, []), (3, []), (4, [CONTROL, FIRST]), (5, [CONTROL, FIRST, SECOND])], id="plain"),
        # With teacher forcing, each has three requests more for its own answers, and each point three for the control's.
        pytest.param(
            FULL,
            [(2, []), (3, []), (4, []), (5, []), (7, [CONTROL, FIRST]), (6, [CONTROL, FIRST, SECOND])],
            id="forced",
        ),
    ],
)
def test_an_interrupted_sweep_goes_on_from_the_next_prompt(
    configure: Configure,
    engine_log: Counting,
    tmp_path: Path,
    scoring: dict[str, object],
    published: list[tuple[int, list[str]]],
) -> None:
    def points(folder: str) -> list[Point]:
        changes = {"scoring": scoring, "sampling": {"max_tokens": 8, "ignore_eos": True}}
        return scaled(configure, 1.5, 2.0, 4.0, sweep={"dir": str(tmp_path / folder)}, **changes)

    undisturbed = points("undisturbed")
    sweep(undisturbed)
    needed, engine_log.asked = len(engine_log.asked), []
    interrupted = points("interrupted")
    for engine_log.interrupt_after, names in published:
        with pytest.raises(KeyboardInterrupt):
            sweep(interrupted, settled=engine_log)
        statuses = {run.info.run_name: run.info.status for run in runs_of(interrupted[0].config)}
        assert statuses == {"a": "KILLED"} | dict.fromkeys(names, "FINISHED")
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
    assert len(engine_log.asked) == asked + 1  # the other answers are in the journal
    assert {run.info.run_name: run.info.status for run in runs_of(configure())} == dict.fromkeys(statuses, "FINISHED")


@pytest.mark.parametrize(("setting", "failed"), [({"on_error": "stop"}, 1), ({"max_failures": 1}, 2)])
def test_too_many_failures_end_the_sweep(
    configure: Configure, engine_log: Counting, setting: dict[str, object], failed: int
) -> None:
    engine_log.refused = {(i, 0) for i in range(1, 12)}
    points = scaled(configure, *(1.0 + i / 10 for i in range(1, 10)), sweep={"dir": configure().sweep.dir} | setting)
    with pytest.raises(TooManyFailures, match=f"stopped: {failed} points failed \\(sweep"):
        sweep(points, settled=engine_log)
    statuses = {run.info.run_name: run.info.status for run in runs_of(configure())}
    refused = [f"factor=1.{i}" for i in range(1, failed + 1)]
    # At the first refusal, the control still waits for its second run.
    control = {"control": "FINISHED"} if failed > 1 else {}
    assert statuses == {"a": "FAILED"} | control | dict.fromkeys(refused, "FAILED")


def test_another_version_of_the_engine_is_not_mixed_in_unasked(
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


def test_a_damaged_record_is_generated_again_and_nothing_else(configure: Configure, engine_log: Counting) -> None:
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


def test_a_moved_folder_is_used_where_it_is(
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
    with SweepRunner(first[0].config, "a", "sweep …", Terminal()) as runner:
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
    for _ in range(2):
        with pytest.raises(JournalError, match="is damaged and was moved to"):
            sweep(elsewhere)
    sweep(elsewhere)
    client = MlflowClient(other["tracking"]["uri"])
    runs = client.search_runs([client.search_experiments(filter_string="name = 'sweep'")[0].experiment_id])
    published = {run.info.run_name: run.info.status for run in runs if run.data.tags["sweep.role"] != "sweep"}
    assert published == {"control": "FINISHED", "factor=2": "FINISHED"} and len(engine_log.asked) == asked
