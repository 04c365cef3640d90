"""Tests of `RequestScheduler`: timestamps, and the cost of teacher forcing on the engine's thread."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import cast

import pytest

from sweep.config.schema import SweepConfig
from sweep.engines.base import Completion, Generation, Request
from sweep.execution import scheduler
from sweep.execution.scheduler import Key, RequestScheduler
from sweep.planning.plan import EngineGroup, Task, make_plan
from sweep.planning.results import Answers, ControlAnswers
from sweep.points.fingerprint import Fingerprints
from sweep.points.point import Point, with_controls
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
