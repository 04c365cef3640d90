"""Tests of `GroupExecutor`: groups share one stream of requests, and an error ends only the groups that it concerns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sweep.config.schema import SweepConfig
from sweep.console.terminal import Terminal
from sweep.core.timing import SharedCosts
from sweep.engines.base import Engine, Failure, Generation, ModelFiles, Request
from sweep.engines.supervisor import Supervisor
from sweep.errors import EngineError, JournalError, SweepHeld, TooManyFailures
from sweep.execution import prefetch
from sweep.execution.group_executor import GroupExecutor
from sweep.execution.request_stream import GroupRun
from sweep.execution.resume import ResumeIndex
from sweep.inputs.lora import LoraAdapter
from sweep.planning.plan import EngineGroup, PlannedPoint, Task, make_plan
from sweep.planning.results import PointResult
from sweep.points.fingerprint import Fingerprints
from sweep.points.point import Point, with_controls
from sweep.publishing.scoring_stage import ScoringStage
from sweep.storage.archive import Archive
from sweep.storage.journal import Journal
from sweep.testing.scripted import ScriptedConfig
from sweep.workers.thread_pool import ThreadPool

Configure = Callable[..., SweepConfig]
WINDOW = 16  # requests of the engine at a time
PROMPTS = 3
REQUESTS = 3 * 2 * PROMPTS  # of a group of two points, each with a control that runs twice


class Groups:
    """A group executor, with an engine that notes its requests and can fail."""

    def __init__(self, configure: Configure, folder: Path) -> None:
        self.configure = lambda **changes: configure(engine={"name": "scripted", "window": WINDOW}, **changes)
        self.log: list[str] = []  # "NUMBER?" for a request of a group, and "NUMBER!" for its answer
        self.fail_at: int | None = None  # number of answers after which the engine fails
        self.results: list[PointResult] = []
        self.archive = Archive(folder / "points")
        self.pool = ThreadPool()
        journal = Journal(folder / "journal")
        self.resume = ResumeIndex(self.archive, journal, "s", "true")
        settings = self.configure(sweep={"dir": str(folder), "on_error": "stop"}).sweep
        self.executor = GroupExecutor(settings, journal, self.resume, self.pool, SharedCosts(), Terminal())

    def watch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        generate = Supervisor.generate

        def watched(
            engine: Supervisor, requests: Iterable[Request], needed: Any = lambda key: True
        ) -> Iterator[Generation | Failure]:
            for answer in generate(engine, Noted(requests, self.log), needed):
                if isinstance(answer.key, tuple):
                    if sum(line.endswith("!") for line in self.log) == self.fail_at:
                        raise EngineError("the engine failed")
                    self.log.append(f"{answer.key[0]}!")
                yield answer

        monkeypatch.setattr(Supervisor, "generate", watched)

    def plan(self, *factors: float) -> EngineGroup:
        """Plan points whose answers differ in length, so that they do not end at the same time."""
        points = []
        for factor in factors:
            sampling = {"max_tokens": int(4 * factor), "ignore_eos": True}
            config = self.configure(transform={"name": "scale", "factor": factor}, sampling=sampling)
            points.append(Point(config, (("factor", factor),)))
        fingerprints = Fingerprints()
        points = with_controls(points)
        identified = fingerprints.identify(points)
        tasks = [
            Task(point=p, point_fingerprint=i, index=n) for n, (p, i) in enumerate(zip(points, identified, strict=True))
        ]
        [group] = make_plan(tasks, fingerprints.inputs)
        return group

    def stage(self) -> ScoringStage:
        return ScoringStage(
            self.pool, self.archive, lambda result, archived: self.results.append(result), SharedCosts()
        )

    def begin(
        self, stage: ScoringStage, *factors: float, on_answer: Callable[[int], None] = lambda n: None
    ) -> GroupRun:
        return self.executor.begin_group(self.plan(*factors), stage, lambda: None, on_answer)

    def names(self) -> dict[str, bool]:
        """Return the finished points, and whether each has failed."""
        return {result.point.name: result.error is not None for result in self.results}


class Noted(Iterator[Request]):
    """Requests, each of which is noted. Like the stream of requests it can continue after it has ended."""

    def __init__(self, requests: Iterable[Request], log: list[str]) -> None:
        self._requests, self._log = iter(requests), log

    def __next__(self) -> Request:
        request = next(self._requests)
        if isinstance(request.key, tuple):  # else of the identity check
            self._log.append(f"{request.key[0]}?")
        return request


@pytest.fixture
def groups(configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Groups]:
    made = Groups(configure, tmp_path)
    made.watch(monkeypatch)
    yield made
    made.executor.close()
    made.pool.close()


def test_a_group_begins_before_the_last_answers_of_the_one_before(groups: Groups) -> None:
    stages = [groups.stage(), groups.stage()]
    first = groups.begin(stages[0], 1.5, 4.0)
    assert groups.log.count("0?") == REQUESTS and not first.ended.is_set()
    assert REQUESTS - groups.log.count("0!") in range(2, WINDOW + 1)
    second = groups.begin(stages[1], 2.5, 3.0)
    assert groups.log.index("1?") < len(groups.log) - 1 - groups.log[::-1].index("0!")  # the batch did not empty
    assert first.ended.is_set() and not second.ended.is_set()
    groups.executor.drain()
    assert second.ended.is_set() and first.error is None and second.error is None
    for stage in stages:
        stage.close()
    assert len(groups.results) == 8 and not any(result.error for result in groups.results)
    assert groups.log.count("1?") == groups.log.count("1!") == REQUESTS


def test_drain_stops_early(groups: Groups) -> None:
    stage = groups.stage()
    run = groups.begin(stage, 1.5, 4.0)
    before = groups.log.count("0!")
    groups.executor.drain(until=lambda: groups.log.count("0!") > before)
    assert groups.log.count("0!") == before + 1 and not run.ended.is_set()
    groups.executor.drain()
    assert run.ended.is_set()
    stage.close()


def test_an_error_of_one_group_leaves_the_others(groups: Groups) -> None:
    """For example, because another worker has taken its shard over."""

    def refuse(tokens: int) -> None:
        if groups.log.count("0?") == REQUESTS:
            raise SweepHeld("taken over")

    stages = [groups.stage(), groups.stage()]
    first = groups.begin(stages[0], 1.5, 4.0, on_answer=refuse)
    second = groups.begin(stages[1], 2.5, 3.0)
    groups.executor.drain()
    assert isinstance(first.error, SweepHeld) and second.error is None
    for stage in stages:
        stage.close()
    assert {"factor=2.5": False, "factor=3": False}.items() <= groups.names().items()


def test_too_many_failures_end_their_group_only(groups: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [groups.stage(), groups.stage()]
    stages[0].failed = 1
    first = groups.begin(stages[0], 1.5, 4.0)
    second = groups.begin(stages[1], 2.5, 3.0)
    groups.executor.drain()
    assert isinstance(first.error, TooManyFailures) and second.error is None
    for stage in stages:
        stage.close()


def test_shards_with_other_adapters_reopen_the_engine_with_all(
    groups: Groups, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each new adapter restarts the engine once, changes between shards do not. Shards have one `max_model_len`."""
    opened: list[list[str]] = []
    opening = ScriptedConfig.open

    def watched(config: ScriptedConfig, model: ModelFiles, max_model_len: int, cache_dir: Path) -> Engine:
        opened.append([adapter.folder.name for adapter in model.adapters])
        return opening(config, model, max_model_len, cache_dir)

    monkeypatch.setattr(ScriptedConfig, "open", watched)
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text('{"r": 4}')
    names = ("one", "two", "one", "two", "three", "one", None)
    for factor, used in zip((3.0, 2.0, 3.1, 2.1, 2.2, 3.2, 2.3), names, strict=True):
        adapters: tuple[LoraAdapter, ...] = ()
        if used is not None:
            adapters = (LoraAdapter(used, tmp_path / used / "adapter_model.safetensors"),)
        stage = groups.stage()
        run = groups.executor.begin_group(
            replace(groups.plan(factor), adapters=adapters, max_model_len=128), stage, lambda: None, lambda n: None
        )
        groups.executor.drain()
        stage.close()
        assert run.error is None
    assert [set(names) for names in opened] == [{"one"}, {"one", "two"}, {"one", "two", "three"}]
    assert groups.executor.engine_starts == 3


def test_an_engine_that_fails_ends_all_groups(groups: Groups) -> None:
    ended: list[str] = []
    stages = [groups.stage(), groups.stage()]
    first = groups.begin(stages[0], 1.5, 4.0)
    groups.fail_at = groups.log.count("0!") + 1
    second = groups.executor.begin_group(
        groups.plan(2.5, 3.0), stages[1], lambda: None, lambda n: None, on_end=lambda: ended.append("second")
    )
    assert str(first.error) == str(second.error) == "the engine failed"
    assert groups.executor.engine is None and ended == ["second"]
    groups.fail_at = None
    for stage in stages:
        stage.close()
    third_stage = groups.stage()
    third = groups.begin(third_stage, 3.5)  # on a new engine
    groups.executor.drain()
    assert third.error is None
    third_stage.close()
    assert groups.names()["factor=3.5"] is False and groups.names()["factor=4"] is True


def test_a_journal_that_cannot_be_closed_ends_only_its_group(groups: Groups) -> None:
    def refuse() -> None:
        raise JournalError("the disk is full")

    stages = [groups.stage(), groups.stage()]
    first = groups.begin(stages[0], 1.5, 4.0)
    first.journal.close = refuse  # type: ignore[method-assign]
    second = groups.begin(stages[1], 2.5, 3.0)
    groups.executor.drain()
    assert isinstance(first.error, JournalError) and first.ended.is_set() and second.error is None
    for stage in stages:
        stage.close()


def test_answers_that_cannot_be_recalled_end_only_their_group(groups: Groups, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "AHEAD", 1)
    recall, calls = groups.resume.recall, list[str]()

    def failing(planned: PlannedPoint) -> Any:
        calls.append(planned.point.name)
        if planned.point.name == "factor=3":
            raise JournalError("no permission")
        return recall(planned)

    monkeypatch.setattr(groups.resume, "recall", failing)
    stages = [groups.stage(), groups.stage()]
    first = groups.begin(stages[0], 1.5, 4.0)
    second = groups.begin(stages[1], 2.5, 3.0)
    groups.executor.drain()
    assert first.error is None and isinstance(second.error, JournalError) and calls[-1] == "factor=3"
    stages[0].close()
    assert len(groups.results) == 4 and not any(groups.names().values())
    stages[1].abandon(0.0)


def test_a_point_that_lacks_only_the_score_of_its_reference_is_finished(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the engine has no room to ask for a further request after the last one."""
    items = [{"prompt": "Hi", "reference": "ho"}, {"prompt": "Ho", "reference": "hi"}]
    monkeypatch.setattr(f"{__name__}.WINDOW", 1)
    made = Groups(
        partial(configure, prompts={"items": items}, scoring={"reference_logprob": True, "noise_floor": False}),
        tmp_path,
    )
    stage = made.stage()
    made.executor.run_group(made.plan(1.5), stage, lambda: None, on_answer=lambda n: None)
    stage.close()
    complete = made.names()
    assert len(complete) == 2
    recall = made.resume.recall

    def incomplete(planned: PlannedPoint) -> Any:
        kinds = recall(planned)
        unknown = () if planned.point.is_control else {kind for kind, _ in kinds if kind not in ("answer", "floor")}
        return {key: answer for key, answer in kinds.items() if key[0] not in unknown}

    monkeypatch.setattr(made.resume, "recall", incomplete)
    made.results.clear()
    stage = made.stage()
    made.executor.run_group(made.plan(1.5), stage, lambda: None, on_answer=lambda n: None)
    stage.close()
    assert made.names() == complete
    made.executor.close()
    made.pool.close()
