"""Conformance checks of request streams: order, windows, failures and interruptions."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from sweep.engines.base import Engine, Failure, Generation, Request
from sweep.testing.bench import GREEDY, PROMPTS, RANDOM, EngineBench, answers_of, generations_of, tokens_of


def answers_do_not_depend_on_order_or_batch(bench: EngineBench, engine: Engine) -> None:
    """Greedy and random answers are the same in reverse order and one at a time."""
    for sampling in (GREEDY, RANDOM):
        requests = bench.requests(sampling)
        forwards = tokens_of(answers_of(engine, requests))
        assert tokens_of(answers_of(engine, requests[::-1])) == forwards, f"{sampling}: answers depend on the order"
        alone: dict[object, Any] = {}
        for request in requests:
            alone |= tokens_of(answers_of(engine, [request]))
        assert alone == forwards, f"{sampling}: answers depend on the other requests in the batch"


def answers_come_as_they_finish(bench: EngineBench, engine: Engine) -> None:
    """A long answer does not delay short ones in the same batch."""
    # As long as possible: an engine in another process starts with it before it receives the others.
    long = replace(GREEDY, max_tokens=bench.max_model_len - len(PROMPTS[0]))
    requests = [bench.request("long", PROMPTS[0], long), *bench.requests(replace(GREEDY, max_tokens=2))]
    order = [answer.key for answer in generations_of(engine, requests[: bench.window])]
    assert order[-1] == "long", f"the long answer came before short ones: {order}"


def requests_are_drawn_lazily(bench: EngineBench, engine: Engine) -> None:
    """Requests are drawn at most a window ahead of the answers."""
    drawn, count = 0, 6 * bench.window

    def counted() -> Iterator[Request]:
        nonlocal drawn
        for i in range(count):
            drawn += 1
            yield bench.request(i, PROMPTS[i % len(PROMPTS)], replace(GREEDY, max_tokens=1 + i % 5))

    ahead = [drawn - answered for answered, _ in enumerate(generations_of(engine, counted()))]
    assert len(ahead) == drawn == count
    assert max(ahead) <= bench.window, f"the engine draws {max(ahead)} requests ahead of its answers"


def answers_may_lead_to_requests(bench: EngineBench, engine: Engine) -> None:
    """An exhausted stream is asked again while requests are in flight and after the last answer."""
    waiting, answered = deque([bench.request(0, PROMPTS[0])]), list[object]()

    class Stream(Iterator[Request]):
        def __next__(self) -> Request:
            if not waiting:
                raise StopIteration
            return waiting.popleft()

    for generation in generations_of(engine, Stream()):
        answered.append(generation.key)
        if len(answered) < 4:
            waiting.append(bench.request(len(answered), PROMPTS[len(answered)]))
    assert answered == ["0", "1", "2", "3"], f"expected answers to 4 successive requests, got answers to {answered}"


def bad_requests_fail_alone(bench: EngineBench, engine: Engine) -> None:
    """An invalid request fails and does not change the answers to valid requests, then and later."""
    expected = answers_of(engine, bench.requests())
    good = bench.request("bad", PROMPTS[1])
    rows = good.embeds
    assert rows is not None
    long = tuple(5 + i % 50 for i in range(bench.max_model_len))
    bad = {
        "NaN": replace(good, embeds=rows.clone().index_fill_(0, torch.tensor([2]), torch.nan)),
        "infinity": replace(good, embeds=rows * torch.inf),
        "too few columns": replace(good, embeds=rows[:, :1]),
        "too many columns": replace(good, embeds=torch.cat([rows, rows], 1)),
        "too few rows": replace(good, embeds=rows[:-1]),
        "another dtype": replace(good, embeds=rows.double()),
        "one dimension": replace(good, embeds=rows.flatten()),
        "unknown tokens": replace(good, embeds=None, token_ids=(10**6,)),
        "no rows": replace(good, embeds=rows[:0], token_ids=()),
        "no tokens": replace(good, embeds=None, token_ids=()),
        "too many tokens": bench.request("bad", long),
        "all tokens scored": replace(good, scored=len(good.token_ids)),
    }
    first, *others = bench.requests()
    for name, request in bad.items():
        results = {answer.key: answer for answer in engine.generate([first, request, *others])}
        failure = results.pop("bad")
        assert isinstance(failure, Failure) and failure.reason, f"the invalid request {name!r} is answered"
        kept = {key: answer.completions for key, answer in results.items() if isinstance(answer, Generation)}
        assert kept == expected, f"the invalid request {name!r} changes the answers to other requests"
    assert answers_of(engine, bench.requests()) == expected, "invalid requests change later answers"


def request_iterator_errors_propagate(bench: EngineBench, engine: Engine) -> None:
    """Exceptions of the request iterator propagate unchanged, and the engine stays usable."""
    expected = answers_of(engine, bench.requests())

    def broken() -> Iterator[Request]:
        yield from bench.requests()
        raise LookupError("mine")

    try:
        answers_of(engine, broken())
    except LookupError as error:
        assert str(error) == "mine"
    else:
        raise AssertionError("the engine swallowed an exception of the request iterator")
    assert answers_of(engine, bench.requests()) == expected


def abandoned_streams_are_discarded(bench: EngineBench, engine: Engine) -> None:
    """Requests in flight at the end of a stream are not answered in the next one."""
    expected = answers_of(engine, bench.requests())
    stream = engine.generate(bench.requests(replace(GREEDY, max_tokens=1 + 20)))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert answers_of(engine, bench.requests()) == expected
