"""Worker pool: processes give the same results as threads, and a process that dies affects only its current task."""

from __future__ import annotations

import gc
import os
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import odd_plugin
import psutil
import pytest
import torch

from sweep.app.sweep_runner import SweepRunner
from sweep.config.schema import SweepConfig
from sweep.console.terminal import Terminal
from sweep.engines.base import Completion, Engine
from sweep.errors import ConfigError
from sweep.inputs.checkpoint import find
from sweep.inputs.config import ModelConfig
from sweep.inputs.embedding_loader import open_table
from sweep.inputs.prompt_set import PromptSet
from sweep.planning.plan import PlannedPoint
from sweep.planning.results import Answers, ControlAnswers, Progress
from sweep.points.fingerprint import PointFingerprint
from sweep.points.point import Point
from sweep.storage.archive import Archive
from sweep.workers import open_worker_pool
from sweep.workers.base import Built, Unbuilt, WorkerLost
from sweep.workers.process_pool import ProcessPool
from sweep.workers.thread_pool import ThreadPool

Configure = Callable[..., SweepConfig]
PLUGIN = [odd_plugin.__name__]


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPool]:
    """A pool of two processes."""
    pool = ProcessPool(2, PLUGIN, 1)
    pool.prepare()
    yield pool
    pool.close()


def scaled(configure: Configure, factor: float, **changes: object) -> SweepConfig:
    return configure(transform={"name": "scale", "factor": factor}, **changes)


def test_the_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def count(cores: int, configured: int | None = None) -> int:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
        pool = open_worker_pool(configured)
        return pool._size if isinstance(pool, ProcessPool) else 0

    assert [count(cores) for cores in (1, 2, 4, 8, 16, 64)] == [0, 1, 1, 2, 4, 4]
    assert count(64, 0) == 0 and count(1, 3) == 3


def test_an_invalid_number_of_processes_is_rejected(configure: Configure) -> None:
    with pytest.raises(ConfigError, match=r"sweep\.helpers must be in \[0, 64\]"):
        configure(sweep={"helpers": -1})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_requests_equal_those_of_threads(configure: Configure, processes: ProcessPool, tiny: Path, dtype: str) -> None:
    checkpoint = find(ModelConfig(id=str(tiny), dtype=dtype))
    encoded = PromptSet.__reduce__(_corpus(configure))[1][0]
    corpus = PromptSet(encoded, open_table(checkpoint), checkpoint)
    config = configure(transform={"name": "noise", "sigma": 0.3}, scoring={"nearest_rows": 6})
    arguments = corpus, config, [2, 0, 1], frozenset([0]), 64
    threads = ThreadPool()
    by_threads, by_processes = threads.build(*arguments).result(), processes.build(*arguments).result()
    threads.close()
    assert [built.request.key for built in by_processes if isinstance(built, Built)] == [2, 0, 1]
    for one, other in zip(by_threads, by_processes, strict=True):
        assert isinstance(one, Built) and isinstance(other, Built)
        assert replace(one.request, embeds=None) == replace(other.request, embeds=None)
        assert one.measured.perturbation == pytest.approx(other.measured.perturbation, rel=1e-6)
        assert (one.measured.neighbours.rows == other.measured.neighbours.rows).all()
        if other.request.key == 0:
            assert one.request.embeds is None and other.request.embeds is None
        else:
            assert one.request.embeds is not None and other.request.embeds is not None
            assert other.request.embeds.dtype == getattr(torch, dtype)
            assert torch.equal(one.request.embeds, other.request.embeds)


def test_scores_equal_those_of_threads(configure: Configure, processes: ProcessPool, tmp_path: Path) -> None:
    corpus = _corpus(configure)
    results = []
    threads = ThreadPool()
    for pool, folder in ((threads, "threads"), (processes, "processes")):
        config = scaled(configure, 3.0, scoring={"quality": ["exact_match", "bleu"], "nearest_rows": 6})
        archive = Archive(tmp_path / folder)
        progress = _answered(pool, corpus, config)
        control: Answers = [(Completion("other", (9, 8), "stop"),) for _ in corpus.prompts]
        scored = pool.score(corpus, progress.end(ControlAnswers(control), {"a": "b"}, None, None), archive).result()
        assert archive.get("some") == scored.archived and scored.seconds > 0
        record = scored.archived.record
        results.append((record.summaries, record.tags, record.axes, archive.table("some"), sorted(scored.values)))
    threads.close()
    assert results[0] == results[1]
    assert "divergence/token_agreement" in results[0][0] and "perturbation/nearest_token_flips" in results[0][0]


def test_a_prompt_that_a_transform_rejects_fails_alone(configure: Configure, processes: ProcessPool) -> None:
    corpus = _corpus(configure)
    lengths = [len(encoded.token_ids) for encoded in corpus.prompts]
    config = configure(transform={"name": "test-refuse", "length": min(lengths)})
    results = processes.build(corpus, config, range(len(lengths)), frozenset(), 64).result()
    for length, result in zip(lengths, results, strict=True):
        if length > min(lengths):
            assert isinstance(result, Unbuilt) and f"{length} rows are too many" in result.reason
            assert result.traceback is not None and "odd_plugin.py" in result.traceback
        else:
            assert isinstance(result, Built)


def test_a_task_that_kills_its_process_is_retried_once(
    configure: Configure, processes: ProcessPool, tmp_path: Path
) -> None:
    """Tasks in the queue behind it are executed in any case."""
    corpus = _corpus(configure)
    before = {child.process.pid for child in processes._processes}
    futures = []
    for times in (1, 99):
        folder = tmp_path / str(times)
        folder.mkdir()
        deadly = configure(transform={"name": "test-kill", "folder": str(folder), "times": times})
        futures.append(processes.build(corpus, deadly, [0], frozenset(), 64))
        futures += [processes.build(corpus, scaled(configure, 2.0), [1], frozenset(), 64) for _ in range(6)]
    for number, future in enumerate(futures):
        if number == 7:
            with pytest.raises(WorkerLost, match=r"scores points, has ended \(exit code -9\)"):
                future.result(120)
        else:
            assert isinstance(future.result(120)[0], Built)
    assert [len(list((tmp_path / name).iterdir())) for name in ("1", "99")] == [1, 2]
    assert len(before - {child.process.pid for child in processes._processes}) >= 1


@pytest.mark.parametrize("kind", ["test-unsent", "test-unread", "test-derived"])
def test_transforms_that_cannot_be_pickled_run_in_the_main_process(
    configure: Configure, processes: ProcessPool, tmp_path: Path, kind: str
) -> None:
    """Transforms that cannot be pickled or unpickled; the last one can, because it is created again."""
    corpus, config = _corpus(configure), configure(transform={"name": kind})
    archive = Archive(tmp_path / "points")
    _await_all(processes)
    pids = [child.process.pid for child in processes._processes]
    finished = _answered(processes, corpus, config).end(ControlAnswers(), {}, None, None)
    record = processes.score(corpus, finished, archive).result(60).archived.record
    assert record.error is None and record.summaries["perturbation/relative_l2"].mean == pytest.approx(1.0)
    assert [child.process.pid for child in processes._processes] == pids


def test_the_main_process_executes_all_tasks_if_processes_do_not_start(
    configure: Configure, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = ProcessPool(2, ["no_such_module"], 1)
    corpus, config = _corpus(configure), scaled(configure, 2.0)
    finished = _answered(pool, corpus, config).end(ControlAnswers(), {}, None, None)
    started = [child.process.pid for child in pool._processes]
    for _ in range(5):
        assert _answered(pool, corpus, config).answered
    scored = pool.score(corpus, finished, Archive(tmp_path / "points")).result(60)
    assert scored.archived.record.error is None
    assert [child.process.pid for child in pool._processes] == started
    assert caplog.text.count("The main process does its work instead") == 1
    pool.close()


def test_points_do_not_keep_requests_waiting(configure: Configure, processes: ProcessPool, tmp_path: Path) -> None:
    """Points go to the first process, requests to the last."""
    corpus = _corpus(configure)
    processes.build(corpus, scaled(configure, 2.0), [0], frozenset(), 64).result()
    _await_all(processes)
    processors = [psutil.Process(child.process.pid) for child in processes._processes]
    processors[0].suspend()
    try:
        progress = _answered(processes, corpus, scaled(configure, 2.0))
        (tmp_path / "file").touch()
        archive = Archive(tmp_path / "file" / "folder")
        futures = [processes.score(corpus, progress.end(ControlAnswers(), {}, None, None), archive) for _ in range(5)]
        assert processes.build(corpus, scaled(configure, 2.0), [1], frozenset(), 64).result(60)
        assert not any(future.done() for future in futures)
    finally:
        processors[0].resume()
    for future in futures:
        assert "cannot be written" in str(future.exception(60))


def test_unused_prompt_set_is_removed_from_the_processes(configure: Configure, processes: ProcessPool) -> None:
    corpus, config = _corpus(configure), scaled(configure, 2.0)
    processes.build(corpus, config, [0], frozenset(), 64).result()
    number = processes._numbers[corpus]
    del corpus
    gc.collect()
    assert number not in processes._corpora and number in processes._unused_numbers
    other = _corpus(configure)
    processes.build(other, config, [0], frozenset(), 64).result()
    assert not processes._unused_numbers
    with pytest.raises(KeyError):
        for child in processes._processes:
            child.call("build", number, pickle.dumps(config), [0], frozenset(), 64).result()


def test_a_closed_pool_leaves_no_processes(configure: Configure) -> None:
    pool = ProcessPool(2, (), 1)
    pool.build(_corpus(configure), scaled(configure, 2.0), [0], frozenset(), 64).result()
    started = [psutil.Process(child.process.pid) for child in pool._processes]
    pool.close()
    pool.close()
    until = time.monotonic() + 10
    while any(process.is_running() for process in started) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(process.is_running() for process in started)


def test_a_scorer_that_fails_makes_its_point_fail(configure: Configure, processes: ProcessPool, tmp_path: Path) -> None:
    corpus, archive = _corpus(configure), Archive(tmp_path / "points")
    config = configure(plugins=PLUGIN, scoring={"quality": ["exact_match", "odd_plugin:fails_on_two"]})
    finished = _answered(processes, corpus, config).end(ControlAnswers(), {}, None, None)
    record = processes.score(corpus, finished, archive).result().archived.record
    assert record.error is not None and "division by zero" in record.error and not record.summaries
    assert record.traceback is not None and "odd_plugin.py" in record.traceback
    assert archive.get("some") is not None


def test_a_scorer_that_changed_after_the_plan_is_rejected(
    configure: Configure, processes: ProcessPool, tmp_path: Path
) -> None:
    corpus, archive = _corpus(configure), Archive(tmp_path / "points")
    config = configure(plugins=PLUGIN, scoring={"quality": ["odd_plugin:fails_on_two"]})
    finished = _answered(processes, corpus, config).end(ControlAnswers(), {}, None, None)
    edited = replace(
        finished, point_fingerprint=replace(finished.point_fingerprint, scorers='{"quality/fails_on_two":"another"}')
    )
    error = processes.score(corpus, edited, archive).result().archived.record.error
    assert error == "the module of a measure has changed since the plan; run the same command again"


def test_a_sweep_has_the_same_results_with_processes(
    configure: Configure, on_shared_engine: Engine, tmp_path: Path
) -> None:
    """A point that kills the process in which it is built fails alone."""
    results = []
    for number in (0, 1):
        (folder := tmp_path / f"killed-{number}").mkdir()
        changes = {"sweep": {"dir": str(tmp_path / str(number)), "helpers": number}, "plugins": PLUGIN}
        kill = {"name": "test-kill", "folder": str(folder), "spared": os.getpid()}
        transforms = [{"name": "scale", "factor": 2.0}, {"name": "noise", "sigma": 0.5}, kill]
        points = [Point(configure(transform=t, **changes), (("transform", str(t["name"])),)) for t in transforms]
        with SweepRunner(configure(**changes), "helped", "sweep …", Terminal()) as runner:
            runner.run(points)
            results.append({r.point.name: (r.error, r.summaries) for r in runner.results.values()})
        assert not runner.problems
    killed = [sweep.pop("transform=test-kill") for sweep in results]
    assert killed[0][0] is None and "has ended (exit code -9)" in str(killed[1][0])
    assert results[0] == results[1] and len(results[0]) == 3
    assert all(error is None and summaries for error, summaries in results[0].values())


def _corpus(configure: Configure) -> PromptSet:
    from sweep.inputs import prompts
    from sweep.inputs.tokenization import encode

    config = configure()
    checkpoint = find(config.model)
    return PromptSet(encode(prompts.load(config.prompts), checkpoint), open_table(checkpoint), checkpoint)


def _await_all(processes: ProcessPool) -> None:
    """Wait for processes that replace those killed by an earlier test."""
    for child in processes._processes:
        child.call("remove_corpus", -1).result(60)


def _answered(pool: ProcessPool | ThreadPool, corpus: PromptSet, config: SweepConfig) -> Progress:
    """Return a point with answers that do not depend on the pool."""
    point_fingerprint = PointFingerprint((), "print", "some")
    planned = PlannedPoint(point=Point(config), point_fingerprint=point_fingerprint, index=3, corpus=corpus)
    progress = Progress(planned, started=1.0)
    numbers = range(len(corpus.prompts))
    for built in pool.build(corpus, config, numbers, frozenset(), 64).result(60):
        assert isinstance(built, Built)
        number = int(str(built.request.key))
        progress.measured[number] = built.measured
        progress.answers[number] = (Completion("an answer", (number, 8, 7), "stop"),)
    return progress
