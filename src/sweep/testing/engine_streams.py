"""Checks of how an engine takes requests and gives answers back: order, windows, failures, interruptions."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from sweep.engines.base import Engine, Failure, Generation, Request
from sweep.testing.bench import GREEDY, PROMPTS, RANDOM, EngineBench, answers_of, generations_of, tokens_of


def order_and_company_do_not_matter(bench: EngineBench, engine: Engine) -> None:
    """Greedy answers and random ones are the same backwards, and alone."""
    for sampling in (GREEDY, RANDOM):
        asked = bench.requests(sampling)
        forwards = tokens_of(answers_of(engine, asked))
        assert tokens_of(answers_of(engine, asked[::-1])) == forwards, f"{sampling}: answers depend on the order"
        alone: dict[object, Any] = {}
        for request in asked:
            alone |= tokens_of(answers_of(engine, [request]))
        assert alone == forwards, f"{sampling}: answers depend on their company"


def answers_come_as_they_finish(bench: EngineBench, engine: Engine) -> None:
    """A long one holds up none of the short ones beside it."""
    # As long as can be: an engine in another process begins with it before it is handed the others.
    long = replace(GREEDY, max_tokens=bench.max_model_len - len(PROMPTS[0]))
    asked = [bench.request("long", PROMPTS[0], long), *bench.requests(replace(GREEDY, max_tokens=2))]
    order = [answer.key for answer in generations_of(engine, asked[: bench.window])]
    assert order[-1] == "long", f"the long answer came before short ones: {order}"


def requests_are_drawn_as_they_are_needed(bench: EngineBench, engine: Engine) -> None:
    """No further ahead of the answers than the window, and answers come before the last is drawn."""
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
    """A stream that has run out is asked again while requests are in flight, and as the last of them is answered."""
    waiting, seen = deque([bench.request(0, PROMPTS[0])]), list[object]()

    class Stream(Iterator[Request]):
        def __next__(self) -> Request:
            if not waiting:
                raise StopIteration
            return waiting.popleft()

    for generation in generations_of(engine, Stream()):
        seen.append(generation.key)
        if len(seen) < 4:
            waiting.append(bench.request(len(seen), PROMPTS[len(seen)]))
    assert seen == ["0", "1", "2", "3"], f"of requests that answers led to, these were answered: {seen}"


def bad_requests_fail_alone(bench: EngineBench, engine: Engine) -> None:
    """Each among good ones, whose answers stay the same then and afterwards."""
    expected = answers_of(engine, bench.requests())
    good = bench.request("bad", PROMPTS[1])
    rows = good.embeds
    assert rows is not None
    long = tuple(5 + i % 50 for i in range(bench.max_model_len))
    bad = {
        "NaN": replace(good, embeds=rows.clone().index_fill_(0, torch.tensor([2]), torch.nan)),
        "infinity": replace(good, embeds=rows * torch.inf),
        "a narrow one": replace(good, embeds=rows[:, :1]),
        "a wide one": replace(good, embeds=torch.cat([rows, rows], 1)),
        "a short one": replace(good, embeds=rows[:-1]),
        "another dtype": replace(good, embeds=rows.double()),
        "a flat one": replace(good, embeds=rows.flatten()),
        "unknown tokens": replace(good, embeds=None, token_ids=(10**6,)),
        "nothing": replace(good, embeds=rows[:0], token_ids=()),
        "no tokens": replace(good, embeds=None, token_ids=()),
        "too much": bench.request("bad", long),
        "all scored": replace(good, scored=len(good.token_ids)),
    }
    first, *others = bench.requests()
    for what, request in bad.items():
        got = {answer.key: answer for answer in engine.generate([first, request, *others])}
        failure = got.pop("bad")
        assert isinstance(failure, Failure) and failure.reason, f"{what} is answered"
        kept = {key: answer.completions for key, answer in got.items() if isinstance(answer, Generation)}
        assert kept == expected, f"{what} changes the answers to other requests"
    assert answers_of(engine, bench.requests()) == expected, "bad requests change later answers"


def what_drawing_raises_passes_through(bench: EngineBench, engine: Engine) -> None:
    """Unchanged, and the engine goes on."""
    expected = answers_of(engine, bench.requests())

    def broken() -> Iterator[Request]:
        yield from bench.requests()
        raise LookupError("mine")

    try:
        answers_of(engine, broken())
    except LookupError as error:
        assert str(error) == "mine"
    else:
        raise AssertionError("what drawing a request raised was swallowed")
    assert answers_of(engine, bench.requests()) == expected


def an_abandoned_stream_is_forgotten(bench: EngineBench, engine: Engine) -> None:
    """Requests in flight are not answered to who asks next."""
    expected = answers_of(engine, bench.requests())
    stream = engine.generate(bench.requests(replace(GREEDY, max_tokens=1 + 20)))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert answers_of(engine, bench.requests()) == expected
