"""Tests of `RequestScheduler`: timestamps, and the cost of teacher forcing on the engine's thread."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import torch

from sweep.config.schema import SweepConfig
from sweep.engines.base import Completion, Generation, Origin, Request
from sweep.errors import TransformError
from sweep.execution import forcing, scheduler
from sweep.execution.scheduler import Key, RequestScheduler
from sweep.inputs.prompt_set import PromptSet
from sweep.planning.plan import EngineGroup, Task, make_plan
from sweep.planning.results import CONTROL, OWN, Answers, ControlAnswers
from sweep.points.fingerprint import Fingerprints
from sweep.points.point import Point, with_controls
from sweep.transforms import Context
from sweep.transforms.norms import Scale
from sweep.workers import tasks
from sweep.workers.base import Built, Unbuilt
from sweep.workers.thread_pool import ThreadPool


def answered(request: Request) -> Generation:
    """Return an answer whose tokens identify its prompt."""
    if request.scored:
        return Generation(request.key, (), (-1.0,) * request.scored)
    token = 10 + cast(Key, request.key).prompt
    samples = (Completion("x", (token, sample), "stop") for sample in range(request.sampling.n))
    return Generation(request.key, tuple(samples))


def planned_group(configure: Callable[..., SweepConfig], **changes: object) -> EngineGroup:
    """Plan two points and their control."""
    points = [Point(configure(transform={"name": "scale", "factor": f}, **changes), (("f", f),)) for f in (1.5, 2.0)]
    points = with_controls(points)
    fingerprints = Fingerprints()
    point_fingerprints = fingerprints.identify(points)
    tasks = [
        Task(point=p, point_fingerprint=i, index=n)
        for n, (p, i) in enumerate(zip(points, point_fingerprints, strict=True))
    ]
    [group] = make_plan(tasks, fingerprints.inputs)
    return group


def test_points_never_end_before_they_start_if_the_clock_is_set_back(
    configure: Callable[..., SweepConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_700_000_000.0
    monkeypatch.setattr("sweep.execution.scheduler.time.time", lambda: now)
    pool = ThreadPool()
    scheduled = RequestScheduler(planned_group(configure), {}, lambda planned: {}, pool)
    scheduled.receive(answered(next(scheduled)))
    now -= 3600.0
    for request in scheduled:
        scheduled.receive(answered(request))
    pool.close()
    ends = [progress.end(ControlAnswers(), {}, None, None) for progress in scheduled.finished]
    assert len(ends) == 4  # the control's second run among them
    assert all(0 <= finished.ended - finished.started < 60 for finished in ends)


def test_control_answers_are_hashed_once_per_sample(
    configure: Callable[..., SweepConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hashing them for each forced request would be quadratic: a million answers per point of a thousand prompts."""
    calls: list[tuple[Answers, int]] = []
    digest_of = scheduler.digest_of

    def counting(answers: Answers, sample: int) -> str:
        calls.append((answers, sample))
        return digest_of(answers, sample)

    monkeypatch.setattr(scheduler, "digest_of", counting)
    changes = {"scoring": {"teacher_forced": True}, "sampling": {"max_tokens": 8, "temperature": 1.0, "n": 2}}
    group = planned_group(configure, **changes)
    pool = ThreadPool()
    kinds: dict[tuple[int, int, str | None, int], str] = {}
    scheduled = RequestScheduler(group, {}, lambda planned: {}, pool)
    for request in scheduled:
        key = cast(Key, request.key)
        kinds[key.run, key.prompt, key.forced, key.sample] = scheduled.journal_key(key)[1]
        scheduled.receive(answered(request))
    pool.close()
    assert [progress.planned.point.is_control for progress in scheduled.finished].count(False) == 2
    assert sum(forced == "control's answer" for _, _, forced, _ in kinds) == 2 * 3 * 2  # points, prompts, samples
    assert [sample for _, sample in calls] == [0, 1]
    for sample, number in ((0, ""), (1, " #2")):
        text = repr([(10, sample), (11, sample), (12, sample)])
        named = f"control's answer {hashlib.sha256(text.encode()).hexdigest()[:16]}{number}"
        assert {kind for (_, _, forced, k), kind in kinds.items() if forced == "control's answer" and k == sample} == {
            named
        }


class CountingPool(ThreadPool):
    """Notes the requests that are built: the factor, the prompt, and whether the embeddings are returned."""

    def __init__(self) -> None:
        self.built: list[tuple[float, int, bool]] = []

    def build(
        self,
        corpus: PromptSet,
        config: SweepConfig,
        prompts: Sequence[int],
        measure_only: frozenset[int],
        max_rows: int,
    ) -> Future[list[Built | Unbuilt]]:
        factor = getattr(config.transform.stages[0].transform, "factor", 0.0)
        self.built += [(factor, j, j not in measure_only) for j in prompts]
        return super().build(corpus, config, prompts, measure_only, max_rows)


def forced_requests(group: EngineGroup, pool: ThreadPool, recall: Any = lambda planned: {}) -> dict[Key, Request]:
    """Answer all requests, and return the teacher-forcing ones."""
    scheduled = RequestScheduler(group, {}, recall, pool)
    requests = {}
    for request in scheduled:
        if request.scored:
            requests[cast(Key, request.key)] = request
        scheduled.receive(answered(request))
    pool.close()
    assert not scheduled.active and not scheduled.failed
    assert not scheduled._kept._kept and scheduled._kept._entries == 0
    return requests


@pytest.fixture
def forced_group(configure: Callable[..., SweepConfig]) -> EngineGroup:
    return planned_group(configure, scoring={"teacher_forced": True})


def test_a_transform_is_applied_once_for_each_prompt(
    forced_group: EngineGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied: list[tuple[float, str]] = []
    apply = Scale.apply

    def counting(self: Scale, rows: torch.Tensor, context: Context) -> torch.Tensor:
        applied.append((self.factor, context.prompt_id))
        return apply(self, rows, context)

    monkeypatch.setattr(Scale, "apply", counting)
    requests = forced_requests(forced_group, ThreadPool())
    ids = [encoded.prompt.id for encoded in forced_group.points[0].prompts]
    assert sorted(applied) == sorted((factor, i) for factor in (1.5, 2.0) for i in ids)
    assert sum(key.forced == CONTROL for key in requests) == 2 * len(ids)


def test_prompts_beyond_the_limit_are_built_again_by_the_pool(
    forced_group: EngineGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = forced_requests(forced_group, ThreadPool())
    first = forced_group.points[1].prompts[0]
    monkeypatch.setattr(
        forcing, "MAX_KEPT_ENTRIES", len(first.token_ids) * forced_group.points[0].corpus.table.hidden_size
    )
    pool = CountingPool()
    again = forced_requests(forced_group, pool)
    counts = Counter(built for built in pool.built if built[0])  # without the control, which has two runs
    assert set(counts.values()) == {1, 2}
    assert again.keys() == kept.keys()
    for key, request in kept.items():
        assert request.token_ids == again[key].token_ids
        assert torch.equal(cast(torch.Tensor, request.embeds), cast(torch.Tensor, again[key].embeds))


@dataclass(frozen=True)
class Journalled:
    """An answer of an earlier run."""

    completions: tuple[Completion, ...] = ()
    scored: tuple[float, ...] = ()
    origin: Origin = field(default_factory=lambda: Origin("engine"))
    is_from_this_sweep: bool = True


def test_answers_of_an_earlier_run_are_forced_without_building_twice(forced_group: EngineGroup) -> None:
    """Their embeddings return from the pool, unless the journal also has the control's answers after them."""
    fresh = forced_requests(forced_group, ThreadPool())
    recorded: dict[str, dict[tuple[str, str], Journalled]] = {}
    for planned in forced_group.points:
        answers = recorded.setdefault(planned.point_fingerprint.fingerprint, {})
        for j, encoded in enumerate(planned.prompts):
            answers["answer", encoded.prompt.id] = Journalled((Completion("x", (10 + j, 0), "stop"),))
    pool = CountingPool()
    again = forced_requests(forced_group, pool, lambda planned: recorded[planned.point_fingerprint.fingerprint])
    assert again.keys() == fresh.keys()
    assert sorted(built for built in pool.built if built[0]) == [
        (factor, j, True) for factor in (1.5, 2.0) for j in range(len(forced_group.points[0].prompts))
    ]

    digest = scheduler.digest_of([(Completion("x", (10 + j, 0), "stop"),) for j in range(len(planned.prompts))], 0)
    for planned in forced_group.points:
        for encoded in planned.prompts:
            scored = Journalled(scored=(-1.0, -1.0))
            recorded[planned.point_fingerprint.fingerprint][f"{CONTROL} {digest}", encoded.prompt.id] = scored
    pool = CountingPool()
    again = forced_requests(forced_group, pool, lambda planned: recorded[planned.point_fingerprint.fingerprint])
    assert {key.forced for key in again} == {OWN}
    assert not any(with_embeds for factor, _, with_embeds in pool.built if factor)


def test_a_prompt_that_cannot_be_built_again_fails_its_point_alone(
    forced_group: EngineGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forcing, "MAX_KEPT_ENTRIES", 0)
    build, calls = tasks.build, Counter[tuple[float, int]]()

    def failing(key: int, config: SweepConfig, *arguments: Any) -> Any:
        factor = getattr(config.transform.stages[0].transform, "factor", 0.0)
        calls[factor, key] += 1
        if factor == 1.5 and calls[factor, key] > 1:
            raise TransformError("scale: its file has changed")
        return build(key, config, *arguments)

    monkeypatch.setattr(tasks, "build", failing)
    pool = ThreadPool()
    scheduled = RequestScheduler(forced_group, {}, lambda planned: {}, pool)
    for request in scheduled:
        scheduled.receive(answered(request))
    pool.close()
    [(progress, reason, _)] = scheduled.failed
    assert progress.planned.point.axes == (("f", 1.5),)
    assert reason.endswith("scale: its file has changed")
    assert not scheduled.active and len(scheduled.finished) == 3  # the control twice, and the other point
