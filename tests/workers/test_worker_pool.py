"""Helpers in processes of their own: what they do is what threads do, and one that dies takes nobody with it."""

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

from sweep.config import ModelConfig, SweepConfig
from sweep.disk.archive import Archive
from sweep.engines.base import Completion, Engine
from sweep.errors import ConfigError
from sweep.helpers import open_helpers
from sweep.helpers.base import Built, HelperLost, Unbuilt
from sweep.helpers.processes import Processes
from sweep.helpers.threads import Threads
from sweep.identity import Identity
from sweep.inputs.checkpoint import find
from sweep.inputs.corpus import Corpus
from sweep.inputs.embedding import open_table
from sweep.outcome import Against, Answers, Progress
from sweep.plan import PlannedPoint
from sweep.point import Point
from sweep.runner import Runner
from sweep.terminal import Terminal

Configure = Callable[..., SweepConfig]
PLUGIN = [odd_plugin.__name__]


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    """Two processes."""
    helpers = Processes(2, PLUGIN, 1)
    helpers.prepare()
    yield helpers
    helpers.close()


def scaled(configure: Configure, factor: float, **changes: object) -> SweepConfig:
    return configure(transform={"name": "scale", "factor": factor}, **changes)


def test_how_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def count(cores: int, asked: int | None = None) -> int:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
        helpers = open_helpers(asked)
        return helpers._number if isinstance(helpers, Processes) else 0

    assert [count(cores) for cores in (1, 2, 4, 8, 16, 64)] == [0, 1, 1, 2, 4, 4]
    assert count(64, 0) == 0 and count(1, 3) == 3


def test_a_wrong_number_of_them_is_refused(configure: Configure) -> None:
    with pytest.raises(ConfigError, match=r"sweep\.helpers must be in \[0, 64\]"):
        configure(sweep={"helpers": -1})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_requests_are_those_of_threads(configure: Configure, processes: Processes, tiny: Path, dtype: str) -> None:
    checkpoint = find(ModelConfig(id=str(tiny), dtype=dtype))
    encoded = Corpus.__reduce__(_corpus(configure))[1][0]
    corpus = Corpus(encoded, open_table(checkpoint), checkpoint)
    config = configure(transform={"name": "noise", "sigma": 0.3}, scoring={"nearest_rows": 6})
    asked = corpus, config, [2, 0, 1], frozenset([0]), 64
    threads = Threads()
    here, there = threads.build(*asked).result(), processes.build(*asked).result()
    threads.close()
    assert [own.request.key for own in there if isinstance(own, Built)] == [2, 0, 1]
    for mine, other in zip(here, there, strict=True):
        assert isinstance(mine, Built) and isinstance(other, Built)
        assert replace(mine.request, embeds=None) == replace(other.request, embeds=None)
        assert mine.measured.perturbation == pytest.approx(other.measured.perturbation, rel=1e-6)
        assert (mine.measured.neighbours.rows == other.measured.neighbours.rows).all()
        if other.request.key == 0:
            assert mine.request.embeds is None and other.request.embeds is None
        else:
            assert mine.request.embeds is not None and other.request.embeds is not None
            assert other.request.embeds.dtype == getattr(torch, dtype)
            assert torch.equal(mine.request.embeds, other.request.embeds)


def test_scores_are_those_of_threads(configure: Configure, processes: Processes, tmp_path: Path) -> None:
    corpus = _corpus(configure)
    told = []
    threads = Threads()
    for helpers, folder in ((threads, "threads"), (processes, "processes")):
        config = scaled(configure, 3.0, scoring={"quality": ["exact_match", "bleu"], "nearest_rows": 6})
        archive = Archive(tmp_path / folder)
        progress = _answered(helpers, corpus, config)
        control: Answers = [(Completion("other", (9, 8), "stop"),) for _ in corpus.prompts]
        scored = helpers.score(corpus, progress.end(Against(control), {"a": "b"}, None, None), archive).result()
        assert archive.get("some") == scored.archived and scored.seconds > 0
        record = scored.archived.record
        told.append((record.summaries, record.tags, record.axes, archive.table("some"), sorted(scored.values)))
    threads.close()
    assert told[0] == told[1]
    assert "divergence/token_agreement" in told[0][0] and "perturbation/nearest_token_flips" in told[0][0]


def test_a_prompt_that_a_transform_refuses_fails_alone(configure: Configure, processes: Processes) -> None:
    corpus = _corpus(configure)
    lengths = [len(encoded.token_ids) for encoded in corpus.prompts]
    config = configure(transform={"name": "test-refuse", "length": min(lengths)})
    built = processes.build(corpus, config, range(len(lengths)), frozenset(), 64).result()
    for length, own in zip(lengths, built, strict=True):
        if length > min(lengths):
            assert isinstance(own, Unbuilt) and f"{length} rows are too many" in own.reason
            assert own.traceback is not None and "odd_plugin.py" in own.traceback
        else:
            assert isinstance(own, Built)


def test_what_kills_its_process_once_is_tried_again(configure: Configure, processes: Processes, tmp_path: Path) -> None:
    """And what waited behind it is done, too, however often its process dies."""
    corpus = _corpus(configure)
    before = {remote.process.pid for remote in processes._remotes}
    asked = []
    for times in (1, 99):
        folder = tmp_path / str(times)
        folder.mkdir()
        deadly = configure(transform={"name": "test-kill", "folder": str(folder), "times": times})
        asked.append(processes.build(corpus, deadly, [0], frozenset(), 64))
        asked += [processes.build(corpus, scaled(configure, 2.0), [1], frozenset(), 64) for _ in range(6)]
    for number, job in enumerate(asked):
        if number == 7:
            with pytest.raises(HelperLost, match=r"scores points has ended \(exit code -9\)"):
                job.result(120)
        else:
            assert isinstance(job.result(120)[0], Built)
    assert [len(list((tmp_path / name).iterdir())) for name in ("1", "99")] == [1, 2]
    assert len(before - {remote.process.pid for remote in processes._remotes}) >= 1


@pytest.mark.parametrize("kind", ["test-unsent", "test-unread", "test-derived"])
def test_what_cannot_travel_is_done_here(configure: Configure, processes: Processes, tmp_path: Path, kind: str) -> None:
    """A transform that cannot be pickled, one that cannot be read again; and one that is made again, which can."""
    corpus, config = _corpus(configure), configure(transform={"name": kind})
    archive = Archive(tmp_path / "points")
    _await_all(processes)
    pids = [remote.process.pid for remote in processes._remotes]
    finished = _answered(processes, corpus, config).end(Against(), {}, None, None)
    record = processes.score(corpus, finished, archive).result(60).archived.record
    assert record.error is None and record.summaries["perturbation/relative_l2"].mean == pytest.approx(1.0)
    assert [remote.process.pid for remote in processes._remotes] == pids


def test_processes_that_do_not_start_are_done_without(
    configure: Configure, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    helpers = Processes(2, ["no_such_module"], 1)
    corpus, config = _corpus(configure), scaled(configure, 2.0)
    finished = _answered(helpers, corpus, config).end(Against(), {}, None, None)
    started = [remote.process.pid for remote in helpers._remotes]
    for _ in range(5):
        assert _answered(helpers, corpus, config).answered
    scored = helpers.score(corpus, finished, Archive(tmp_path / "points")).result(60)
    assert scored.archived.record.error is None
    assert [remote.process.pid for remote in helpers._remotes] == started
    assert caplog.text.count("The sweep's own process does what it was for") == 1
    helpers.close()


def test_points_do_not_keep_requests_waiting(configure: Configure, processes: Processes, tmp_path: Path) -> None:
    """Points go to the first process, requests to the last."""
    corpus = _corpus(configure)
    processes.build(corpus, scaled(configure, 2.0), [0], frozenset(), 64).result()
    _await_all(processes)
    processors = [psutil.Process(remote.process.pid) for remote in processes._remotes]
    processors[0].suspend()
    try:
        progress = _answered(processes, corpus, scaled(configure, 2.0))
        (tmp_path / "file").touch()
        archive = Archive(tmp_path / "file" / "folder")
        asked = [processes.score(corpus, progress.end(Against(), {}, None, None), archive) for _ in range(5)]
        assert processes.build(corpus, scaled(configure, 2.0), [1], frozenset(), 64).result(60)
        assert not any(job.done() for job in asked)
    finally:
        processors[0].resume()
    for job in asked:
        assert "cannot be written" in str(job.exception(60))


def test_a_corpus_is_forgotten_with_its_last_user(configure: Configure, processes: Processes) -> None:
    corpus, config = _corpus(configure), scaled(configure, 2.0)
    processes.build(corpus, config, [0], frozenset(), 64).result()
    number = processes._known[corpus]
    del corpus
    gc.collect()
    assert number not in processes._corpora and number in processes._forgotten
    other = _corpus(configure)
    processes.build(other, config, [0], frozenset(), 64).result()
    assert not processes._forgotten
    with pytest.raises(KeyError):
        for remote in processes._remotes:
            remote.ask("build", number, pickle.dumps(config), [0], frozenset(), 64).result()


def test_nothing_is_left_of_them(configure: Configure) -> None:
    helpers = Processes(2, (), 1)
    helpers.build(_corpus(configure), scaled(configure, 2.0), [0], frozenset(), 64).result()
    started = [psutil.Process(remote.process.pid) for remote in helpers._remotes]
    helpers.close()
    helpers.close()
    until = time.monotonic() + 10
    while any(process.is_running() for process in started) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(process.is_running() for process in started)


def test_a_scorer_that_fails_is_its_points_failure(configure: Configure, processes: Processes, tmp_path: Path) -> None:
    corpus, archive = _corpus(configure), Archive(tmp_path / "points")
    config = configure(plugins=PLUGIN, scoring={"quality": ["exact_match", "odd_plugin:fails_on_two"]})
    finished = _answered(processes, corpus, config).end(Against(), {}, None, None)
    record = processes.score(corpus, finished, archive).result().archived.record
    assert record.error is not None and "division by zero" in record.error and not record.summaries
    assert record.traceback is not None and "odd_plugin.py" in record.traceback
    assert archive.get("some") is not None


def test_a_sweep_with_them_is_the_same_sweep(configure: Configure, on_shared_engine: Engine, tmp_path: Path) -> None:
    """And a point that kills whatever it is built in fails alone."""
    told = []
    for number in (0, 1):
        (folder := tmp_path / f"killed-{number}").mkdir()
        changes = {"sweep": {"dir": str(tmp_path / str(number)), "helpers": number}, "plugins": PLUGIN}
        kill = {"name": "test-kill", "folder": str(folder), "spared": os.getpid()}
        transforms = [{"name": "scale", "factor": 2.0}, {"name": "noise", "sigma": 0.5}, kill]
        points = [Point(configure(transform=t, **changes), (("transform", str(t["name"])),)) for t in transforms]
        with Runner(configure(**changes), "helped", "sweep …", Terminal()) as runner:
            runner.run(points)
            told.append({r.point.name: (r.error, r.summaries) for r in runner.results.values()})
        assert not runner.problems
    killed = [sweep.pop("transform=test-kill") for sweep in told]
    assert killed[0][0] is None and "has ended (exit code -9)" in str(killed[1][0])
    assert told[0] == told[1] and len(told[0]) == 3
    assert all(error is None and summaries for error, summaries in told[0].values())


def _corpus(configure: Configure) -> Corpus:
    from sweep.inputs import prompts
    from sweep.inputs.encoding import encode

    config = configure()
    checkpoint = find(config.model)
    return Corpus(encode(prompts.load(config.prompts), checkpoint), open_table(checkpoint), checkpoint)


def _await_all(processes: Processes) -> None:
    """Wait for processes that take the place of ones that an earlier test has killed."""
    for remote in processes._remotes:
        remote.ask("forget", -1).result(60)


def _answered(helpers: Processes | Threads, corpus: Corpus, config: SweepConfig) -> Progress:
    """Return a point whose answers are there, the same whoever built it."""
    identity = Identity((), "print", "some")
    planned = PlannedPoint(point=Point(config), identity=identity, index=3, corpus=corpus)
    progress = Progress(planned, started=1.0)
    numbers = range(len(corpus.prompts))
    for own in helpers.build(corpus, config, numbers, frozenset(), 64).result(60):
        assert isinstance(own, Built)
        number = int(str(own.request.key))
        progress.measured[number] = own.measured
        progress.answers[number] = (Completion("an answer", (number, 8, 7), "stop"),)
    return progress
