"""Requests of given answers: they follow their prompts, are scored once, and hold up no point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from test_scheduler import CountingPool, Journalled, answered, planned_group

from sweep.config.schema import SweepConfig
from sweep.engines.base import Request
from sweep.execution.scheduler import Key, RequestScheduler
from sweep.launch.coordinator import _is_answered
from sweep.planning.plan import EngineGroup, describe
from sweep.planning.results import GIVEN, Progress
from sweep.workers.thread_pool import ThreadPool

Configure = Callable[..., SweepConfig]
Record = dict[tuple[str, str], Journalled]


@pytest.fixture
def group(configure: Configure) -> EngineGroup:
    """A control with two runs and two points, each with three references in two of the three prompts."""
    return planned_group(configure, scoring={"reference_logprob": True})


def run(
    group: EngineGroup, pool: ThreadPool, recall: Any = lambda planned: {}, *, at_once: bool = True
) -> tuple[list[Request], list[Progress], dict[str, Record]]:
    """Answer all requests; return them, the finished runs, and what the journal would have, by fingerprint.

    Args:
        at_once: whether each request is answered before the next is drawn, else after all that can be drawn.
    """
    scheduled = RequestScheduler(group, {}, recall, pool)
    requests: list[Request] = []
    recorded: dict[str, Record] = {}
    waiting: list[Request] = []
    while True:
        waiting += [request for request in scheduled] if not at_once else [*filter(None, [next(scheduled, None)])]
        if not waiting:
            break
        for request in waiting:
            requests.append(request)
            generation = answered(request)
            point, kind, prompt = scheduled.journal_key(cast(Key, request.key))
            answer = Journalled(generation.completions, generation.scored)
            recorded.setdefault(point.fingerprint, {})[kind, prompt] = answer
            scheduled.receive(generation)
        waiting = []
    pool.close()
    assert not scheduled.active and not scheduled.failed
    return requests, list(scheduled.finished), recorded


@pytest.mark.parametrize("at_once", [True, False])
def test_given_answers_follow_each_transformed_prompt(group: EngineGroup, at_once: bool) -> None:
    requests, finished, _ = run(group, ThreadPool(), at_once=at_once)
    given = {cast(Key, request.key): request for request in requests if request.scored}
    assert len(given) == 3 * 3 and {key.forced for key in given} == {GIVEN}
    assert len(finished) == 4  # the control twice
    for progress in finished:
        scores = {} if progress.is_floor else {(0, GIVEN, 0): -1.0, (2, GIVEN, 0): -1.0, (2, GIVEN, 1): -1.0}
        assert progress.forced == scores
    prompts = {cast(Key, r.key): r for r in requests if not r.scored}
    table = group.points[0].corpus.table
    for key, request in given.items():
        prompt, tokens = prompts[Key(key.run, key.prompt)], request.token_ids[-request.scored :]
        assert tokens == group.points[0].given[key.prompt].sequences[key.sample]
        assert request.token_ids == prompt.token_ids + tokens
        assert request.sampling.max_tokens == 1
        rows = torch.cat([cast(torch.Tensor, prompt.embeds), table.rows(tokens).to(table.dtype)])
        assert torch.equal(cast(torch.Tensor, request.embeds), rows)
    control, first = (next(k for k in given if k.run == run and k.prompt == 0) for run in (0, 1))
    assert not torch.equal(given[control].embeds[0], given[first].embeds[0])  # type: ignore[index]


def test_recorded_scores_are_not_asked_for_again(group: EngineGroup) -> None:
    _, _, recorded = run(group, ThreadPool())
    recall = lambda planned: recorded[planned.point_fingerprint.fingerprint]  # noqa: E731
    pool = CountingPool()
    requests, finished, _ = run(group, pool, recall)
    assert requests == [] and len(finished) == 4
    assert not any(with_embeds for _, _, with_embeds in pool.built)

    for point in recorded.values():  # one score is missing: only its prompt's embeddings come back
        kind = [key for key in point if key[0].startswith(GIVEN) and key[1] == "two"][-1]
        del point[kind]
    pool = CountingPool()
    requests, finished, _ = run(group, pool, recall)
    assert [cast(Key, r.key).prompt for r in requests] == [2] * 3 and len(finished) == 4
    assert {j for _, j, with_embeds in pool.built if with_embeds} == {2}
    assert all(len(progress.forced) == 3 for progress in finished if not progress.is_floor)


def test_a_dry_run_counts_given_answers(configure: Configure, group: EngineGroup) -> None:
    assert next(iter(describe([group], 3))).endswith(" output tokens, 9 given answers")
    assert "given" not in next(iter(describe([planned_group(configure)], 3)))


def test_answers_of_a_sweep_without_them_are_completed(configure: Configure, group: EngineGroup) -> None:
    _, _, recorded = run(planned_group(configure), ThreadPool())
    requests, finished, _ = run(group, ThreadPool(), lambda planned: recorded[planned.point_fingerprint.fingerprint])
    assert all(request.scored for request in requests) and len(requests) == 9 and len(finished) == 4


def test_a_point_is_answered_once_its_given_answers_are(group: EngineGroup) -> None:
    """The coordinator scores points that a shard has left in the journal, without an engine."""
    _, _, recorded = run(group, ThreadPool())

    class Resume:
        def recall(self, planned: Any) -> Record:
            return recorded[planned.point_fingerprint.fingerprint]

    point = group.points[1]
    assert _is_answered(point, cast(Any, Resume()))
    record = recorded[point.point_fingerprint.fingerprint]
    del record[next(key for key in record if key[0].startswith(GIVEN))]
    assert not _is_answered(point, cast(Any, Resume()))


def test_teacher_forcing_and_given_answers_together(configure: Configure) -> None:
    group = planned_group(configure, scoring={"reference_logprob": True, "teacher_forced": True})
    requests, finished, _ = run(group, ThreadPool())
    plain, _, _ = run(planned_group(configure, scoring={"teacher_forced": True}), ThreadPool())
    assert len(requests) == len(plain) + 9 and len(finished) == 4
