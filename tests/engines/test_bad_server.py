"""Broken servers: slow, endless, invalid or changed answers end with an error in time, and no answer is misattributed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from scripted_connection import COMPLETIONS, IN_TIME, SHORT, endless, engines_on, shorten_pauses

from scripted_server import ScriptedServer, as_http, scripted_server
from sweep.engines.base import Engine, Failure, Generation, Request, Sampling
from sweep.engines.server import in_flight, replies
from sweep.errors import EngineDied, EngineError
from sweep.inputs.checkpoint import Checkpoint

PROMPT = (5, 6, 7)
SAMPLING = Sampling(max_tokens=4, temperature=1.0, seed=1, n=2, logprobs=1, ignore_eos=True)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    shorten_pauses(monkeypatch)
    with scripted_server() as running:
        yield running


@pytest.fixture
def connect(server: ScriptedServer, checkpoint: Checkpoint, tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    with engines_on(server, checkpoint, tmp_path) as open_engine:
        yield open_engine


def answer(engine: Engine, *requests: Request) -> dict[object, Generation | Failure]:
    return {result.key: result for result in engine.generate(requests)}


def one(**changes: Any) -> Request:
    return Request(**{"key": 0, "token_ids": PROMPT, "embeds": None, "sampling": SAMPLING} | changes)


def test_a_valid_answer_is_accepted(server: ScriptedServer, connect: Callable[..., Engine]) -> None:
    [result] = connect().generate([one()])
    assert isinstance(result, Generation)
    assert [completion.token_ids for completion in result.completions] == [(7, 7, 7, 7)] * 2
    assert result.completions[0].logprobs == ({7: -7.5, 8: -8.5},) * 4


Edit = Callable[[dict[str, Any]], object]


def choice(**changes: object) -> Edit:
    return lambda content: content["choices"][1].update(changes)


def whole(**changes: object) -> Edit:
    return lambda content: content.update(changes)


def steps(value: object) -> Edit:
    return choice(logprobs={"top_logprobs": value})


STEP = {"token_id:7": -1.0}
INVALID = "the server's answer is invalid:"
MISATTRIBUTED = "the server's answer belongs to another request:"
ANSWERS: dict[str, tuple[Edit, str]] = {
    "no choices": (whole(choices=None), f"{INVALID} choices should be of type list, not NoneType"),
    "choices of text": (whole(choices=["x", "y"]), f"{INVALID} a choice should be of type dict, not str"),
    "fewer": (lambda content: content["choices"].pop(), f"{INVALID} it has 1 choices, expected 2"),
    "more": (lambda content: content["choices"].append({"index": 2}), f"{INVALID} it has 3 choices, expected 2"),
    "twice": (choice(index=0), f"{INVALID} its choices have the indices [0], expected 0 to 1"),
    "unknown index": (choice(index=7), f"{INVALID} its choices have the indices [0, 7], expected 0 to 1"),
    "index of text": (choice(index="1"), f"{INVALID} a choice's index should be an integer of at least 0, not '1'"),
    "index true": (choice(index=True), f"{INVALID} a choice's index should be an integer of at least 0, not 'True'"),
    "no text": (choice(text=None), f"{INVALID} text should be of type str, not NoneType"),
    "no ids": (choice(token_ids=None), f"{INVALID} token_ids should be of type list, not NoneType"),
    "ids of text": (choice(token_ids=["7"]), f"{INVALID} a token id should be an integer of at least 0, not '7'"),
    "broken ids": (choice(token_ids=[7.5]), f"{INVALID} a token id should be an integer of at least 0, not '7.5'"),
    "negative ids": (choice(token_ids=[-1]), f"{INVALID} a token id should be an integer of at least 0, not '-1'"),
    "unknown ids": (
        choice(token_ids=[7, 7, 7, 272]),
        f"{INVALID} it has the token id 272, but the vocabulary has 272 tokens",
    ),
    "too many": (choice(token_ids=[7] * 5), f"{INVALID} it has 5 tokens, but at most 4 were requested"),
    "reason": (
        choice(finish_reason="content_filter"),
        f"{INVALID} it has the finish reason 'content_filter', expected one of stop, length, repetition",
    ),
    "no reason": (choice(finish_reason=None), f"{INVALID} it has the finish reason 'None', expected one of"),
    "reason of lists": (choice(finish_reason=[[]]), f"{INVALID} it has the finish reason '[[]]', expected one of"),
    "no logprobs": (choice(logprobs=None), f"{INVALID} logprobs should be of type dict, not NoneType"),
    "no steps": (steps(None), f"{INVALID} top_logprobs should be of type list, not NoneType"),
    "a step of none": (steps([STEP, STEP, STEP, None]), f"{INVALID} top_logprobs should be of type dict, not NoneType"),
    "fewer steps": (steps([STEP] * 3), f"{INVALID} it has 4 tokens, but log-probabilities of 3 tokens"),
    "another token": (
        steps([STEP] * 3 + [{"token_id:8": -1.0}]),
        f"{INVALID} it lacks the log-probability of one of its tokens",
    ),
    "names": (steps([{"x": -1.0}] * 4), f"{INVALID} top_logprobs should name tokens like token_id:5, not 'x'"),
    "above 0": (
        steps([{"token_id:7": 0.5}] * 4),
        f"{INVALID} a log-probability should be a number of at most 0, not '0.5'",
    ),
    "of text": (
        steps([{"token_id:7": "-1"}] * 4),
        f"{INVALID} a log-probability should be a number of at most 0, not '-1'",
    ),
    "usage": (whole(usage=[]), f"{INVALID} usage should be of type dict, not list"),
    "counts": (whole(usage={"completion_tokens": 5}), f"{INVALID} it has 8 tokens, but its usage counts 5"),
    "cached": (
        whole(usage={"prompt_tokens_details": {"cached_tokens": 9}}),
        f"{INVALID} its usage counts 9 cached tokens of 3 prompt tokens",
    ),
    "another prompt's length": (
        whole(usage={"prompt_tokens": 9}),
        f"{MISATTRIBUTED} its prompt has 9 tokens, but 3 were sent",
    ),
    "another prompt": (choice(prompt_token_ids=[5, 6, 8]), f"{MISATTRIBUTED} its prompt has other tokens"),
    "another model": (whole(model="big"), f"{MISATTRIBUTED} it comes from another model, 'big'"),
    "another request": (whole(id=f"cmpl-sweep{'0' * 32}-1"), f"{MISATTRIBUTED} it has another request id"),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_an_invalid_answer_fails_its_request_alone(
    server: ScriptedServer, connect: Callable[..., Engine], kind: str
) -> None:
    edit, reason = ANSWERS[kind]

    def reply(body: dict[str, Any]) -> list[bytes] | None:
        if body.get("seed") != 13:
            return None
        content = server.completion(body)
        edit(content)
        return [as_http(content)]

    server.replies[COMPLETIONS] = reply
    engine = connect()
    bad = one(key="bad", sampling=Sampling(max_tokens=4, temperature=1.0, seed=13, n=2, logprobs=1, ignore_eos=True))
    results = answer(engine, one(), bad)
    failed = results.pop("bad")
    assert isinstance(failed, Failure) and failed.reason.startswith(reason), failed
    assert results == answer(engine, one())


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"<html>", "its answer is not JSON (Expecting value"),
        (b'{"choices": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "its answer is nested too deeply"),
        (b'{"choices": NaN}', "its answer is not JSON (it contains NaN)"),
        (b"[]", "its answer is not an object but a list"),
        (b"", "its answer is not JSON (Expecting value"),
    ],
)
def test_a_request_with_an_answer_that_is_not_json_is_retried_and_fails_alone(
    server: ScriptedServer, connect: Callable[..., Engine], body: bytes, reason: str
) -> None:
    server.replies[COMPLETIONS] = lambda sent: [as_http(body)] if sent.get("seed") == 1 else None
    [result] = connect().generate([one()])
    assert isinstance(result, Failure) and result.reason.startswith(f"the server failed at it 4 times: {reason}"), (
        result
    )
    assert len(server.asked) == 1 + 3 + 4  # the handshake, three requests to check log-probabilities, four attempts


def test_an_endless_answer_is_cut_off(server: ScriptedServer, connect: Callable[..., Engine]) -> None:
    server.replies[COMPLETIONS] = lambda body: endless(body) if "seed" in body else None
    [result] = connect().generate([one()])
    assert isinstance(result, Failure) and "4 times: its answer is larger than 1059" in result.reason, result


def test_lone_surrogates_are_replaced(server: ScriptedServer, connect: Callable[..., Engine]) -> None:
    def reply(body: dict[str, Any]) -> list[bytes] | None:
        if "seed" not in body:
            return None
        content = server.completion(body)
        content["choices"][0]["text"] = "a\ud800b\U0001f600"
        return [as_http(content)]

    server.replies[COMPLETIONS] = reply
    [result] = connect().generate([one()])
    assert isinstance(result, Generation)
    assert result.completions[0].text == "a\N{REPLACEMENT CHARACTER}b\U0001f600"


def test_slow_answers_exceed_patience(server: ScriptedServer, connect: Callable[..., Engine]) -> None:
    server.replies[COMPLETIONS] = lambda body: (
        server.drip(server.own_reply(COMPLETIONS, body), 60) if "seed" in body else None
    )
    engine, began = connect(**SHORT), time.monotonic()
    message = r"has not answered any request for 0\.4 s \(engine\.patience\): no complete answer within 0\.8 s"
    with pytest.raises(EngineError, match=message):
        answer(engine, one())
    assert time.monotonic() - began < IN_TIME


def test_broken_connections_end_the_engine(server: ScriptedServer, connect: Callable[..., Engine]) -> None:
    server.replies[COMPLETIONS] = lambda body: [server.own_reply(COMPLETIONS, body)[:-40]] if "seed" in body else None
    with pytest.raises(EngineDied, match="broke the connection of a request 4 times: RemoteProtocolError"):
        answer(connect(), one())


def test_swapped_answers_are_rejected(server: ScriptedServer, connect: Callable[..., Engine]) -> None:
    """Two concurrent requests of equal length each receive the answer to the other."""
    received: dict[int, dict[str, Any]] = {}
    both = threading.Barrier(2, timeout=IN_TIME)

    def reply(body: dict[str, Any]) -> list[bytes] | None:
        if body.get("seed") not in (2, 3):
            return None
        received[body["seed"]] = body
        both.wait()
        return [as_http(server.completion(received[5 - body["seed"]]))]

    server.replies[COMPLETIONS] = reply
    engine = connect()
    requests = [one(key=seed, sampling=Sampling(max_tokens=4, seed=seed)) for seed in (2, 3)]
    reason = f"{MISATTRIBUTED} it has another request id"
    assert answer(engine, *requests) == {2: Failure(2, reason), 3: Failure(3, reason)}


def test_an_answer_without_request_id_is_rejected_if_others_had_one(
    server: ScriptedServer, connect: Callable[..., Engine]
) -> None:
    """A proxy may replace all ids. A server that repeats ids must always do so."""

    def reply(body: dict[str, Any]) -> list[bytes] | None:
        return [as_http(server.completion(body) | {"id": "cmpl-other"})] if body.get("seed") == 2 else None

    server.replies[COMPLETIONS] = reply
    engine = connect(max_in_flight=1)
    other = one(key="other", sampling=Sampling(max_tokens=4, seed=2))
    assert isinstance(answer(engine, other)["other"], Generation)
    plain = one(sampling=Sampling(max_tokens=4, seed=1))
    results = answer(engine, plain, other)
    assert isinstance(results[0], Generation)
    assert results["other"] == Failure("other", f"{MISATTRIBUTED} it lacks the request id")


def test_an_upgrade_between_two_answers_ends_the_engine(server: ScriptedServer, connect: Callable[..., Engine]) -> None:
    engine = connect()
    assert isinstance(answer(engine, one())[0], Generation)
    server.version = "0.33.0"
    message = r"has been replaced \(now 'vllm-0\.33\.0-0123abcd', before 'vllm-0\.32\.0-"
    with pytest.raises(EngineDied, match=message):
        answer(engine, one())


def test_a_late_answer_to_a_cancelled_request_is_ignored(
    server: ScriptedServer, connect: Callable[..., Engine]
) -> None:
    """A second call uses the same keys; the late answer belongs to the first call."""
    late, held = threading.Event(), threading.Event()

    def reply(body: dict[str, Any]) -> Iterator[bytes] | None:
        if body.get("seed") != 9:
            return None

        def wait() -> Iterator[bytes]:
            held.set()
            late.wait(IN_TIME)
            yield as_http(server.completion(body))

        return wait()

    server.replies[COMPLETIONS] = reply
    engine = connect()
    quick, slow = one(sampling=Sampling(max_tokens=2, seed=1)), one(key=1, sampling=Sampling(max_tokens=3, seed=9))
    stream = engine.generate([quick, slow])
    assert next(stream).key == 0
    assert held.wait(IN_TIME)
    stream.close()  # type: ignore[attr-defined]
    late.set()
    [result] = engine.generate([one(key=1, sampling=Sampling(max_tokens=2, seed=1))])
    assert isinstance(result, Generation) and result.completions[0].token_ids == (7, 7)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3", 3.0), ("٣", 3.0), ("-3", None), ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0), ("Fri, 31 Dec 99999 9", None)],
)
def test_retry_after(text: str, seconds: float | None) -> None:
    import httpx

    headers = {"Retry-After": text.encode()}
    assert replies.retry_after(httpx.Response(503, headers=headers)) == seconds  # type: ignore[arg-type]


def test_pauses_double_have_jitter_and_are_limited_by_patience() -> None:
    """The server's `Retry-After` is added."""
    requests: Any = SimpleNamespace(_patience=20.0)
    for attempt, wait, (shortest, longest) in (
        (0, None, (0.125, 0.25)),
        (3, None, (1.0, 2.0)),
        (99, None, (7.5, 15.0)),
        (0, 1.0, (1.125, 1.25)),
        (0, 60.0, (20.0, 20.0)),
    ):
        pauses = [in_flight.InFlight._pause(requests, attempt, wait) for _ in range(200)]
        assert shortest <= min(pauses) <= max(pauses) <= longest
        assert len(set(pauses)) == (1 if shortest == longest else 200)


def test_json_with_too_many_digits_is_rejected() -> None:
    assert replies.parse(b'{"a": ' + b"9" * 5000 + b"}")[1].startswith("its answer is not JSON (Exceeds the limit")
    assert replies.parse(json.dumps({"a": 1}).encode()) == ({"a": 1}, "")
