"""Server engine with a real vLLM server: same answers as the offline engine, also with a disturbed connection.

Behaviour that all engines share is tested in `test_engine_conformance`. All tests here share
one server: they stay in one file, because each test process starts its own.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from server_requests import (
    BAD,
    GREEDY,
    PROMPTS,
    SAMPLINGS,
    WINDOW,
    Configure,
    Pause,
    answers,
    bad_request,
    engines_at,
    error_of,
    narrowed,
    recorded_pauses,
    requests,
    runs_of,
    sweep,
    wait_until,
)

from proxies import Fault, disturbing
from servers import VLLMServer, free_port
from services import VLLM_KEY
from sweep.core.provenance import engine_version
from sweep.engines import ServerConfig
from sweep.engines.base import Engine, Failure, Generation, Request
from sweep.engines.identity_check import IdentityPrompt, check_identity
from sweep.engines.server.config import KEY_VARIABLE
from sweep.engines.server.engine import ServerEngine
from sweep.engines.supervisor import Supervisor
from sweep.errors import ConfigError, EngineDied, EngineError
from sweep.inputs.checkpoint import Checkpoint, find
from sweep.inputs.config import ModelConfig
from sweep.inputs.embedding_loader import open_table
from sweep.inputs.embedding_table import EmbeddingTable
from tiny_models import make_model

FINISHED, AT_LENGTH = "vllm:request_success_total", 'finished_reason="length"'  # a metric and one of its labels
pytestmark = pytest.mark.slow


@pytest.fixture
def connect(checkpoint: Checkpoint, tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    """Return a function that opens the server engine for an address; the engines are closed afterwards."""
    with engines_at(checkpoint, tmp_path) as open_at:
        yield open_at


@pytest.fixture(scope="module", autouse=True)
def key() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, VLLM_KEY)
        yield


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[Pause]:
    return recorded_pauses(monkeypatch)


@pytest.fixture
def remote(served: VLLMServer, connect: Callable[..., Engine]) -> Engine:
    return connect(served.url)


@pytest.mark.parametrize("kind", SAMPLINGS)
def test_answers_equal_the_offline_engines(remote: Engine, engine: Engine, table: EmbeddingTable, kind: str) -> None:
    """Texts, token ids, finish reasons and log-probabilities, to the last bit."""
    asked = requests(table, SAMPLINGS[kind])
    expected = answers(engine, asked)
    assert all(isinstance(answer, Generation) for answer in expected.values())
    assert answers(remote, asked) == expected
    by_ids = [replace(request, embeds=None) for request in asked]
    assert answers(remote, by_ids) == answers(engine, by_ids) != expected


def test_log_probabilities_of_forced_answers_equal_the_offline_engines(
    remote: Engine, engine: Engine, table: EmbeddingTable
) -> None:
    forced = (9, 200, 31, 77)
    asked = [
        Request(i, ids + forced, torch.cat([table.rows(ids) * 3.0, table.rows(forced)]), GREEDY, scored=1 + i % 4)
        for i, ids in enumerate(PROMPTS)
    ]
    offline_answers, server_answers = answers(engine, asked), answers(remote, asked)
    for request in asked:
        generation, expected = server_answers[request.key], offline_answers[request.key]
        assert isinstance(generation, Generation) and isinstance(expected, Generation)
        assert generation.scored == pytest.approx(expected.scored, abs=1e-4)
        assert len(generation.scored) == request.scored


def test_whole_sweep_equals_the_offline_engines(
    served: VLLMServer, configure: Configure, on_shared_engine: Engine, tmp_path: Path
) -> None:
    """Every column of the table, scores among them."""
    scoring = {"logprobs": 3}
    _, expected = sweep(configure, tmp_path, [1.5, 4.0], {"name": "vllm"}, scoring=scoring)
    engine = {"name": "server", "url": f"{served.url}/v1/"}
    _, table = sweep(configure, tmp_path, [1.5, 4.0], engine, scoring=scoring)
    assert len(table) == 9 and table["generation"].nunique() > 3
    pd.testing.assert_frame_equal(table, expected, check_exact=True)
    tags = {name: run.data.tags for name, run in runs_of(configure(sweep={"dir": str(tmp_path / "server")})).items()}
    assert tags["control"]["sweep.server"] == served.url
    assert tags["control"]["sweep.engine"] == f"{engine_version('vllm')} (server)"
    assert tags["control"]["sweep.served_model"] == f"{configure().model.id}, max_model_len 256"
    written = [path.read_bytes() for path in (tmp_path / "server").rglob("*") if path.is_file()]
    assert len(written) > 5 and not any(VLLM_KEY.encode() in content for content in written)


def test_abandoned_stream_is_aborted_on_the_server(remote: Engine, served: VLLMServer, table: EmbeddingTable) -> None:
    expected = answers(remote, requests(table))
    long = [replace(r, key=(r.key, i)) for i in range(5) for r in requests(table, replace(GREEDY, max_tokens=200))]
    before = served.metric(FINISHED, AT_LENGTH)
    stream = remote.generate([*requests(table), *long])
    next(stream)
    wait_until(lambda: served.metric("vllm:num_requests_running") > 0)
    stream.close()  # type: ignore[attr-defined]
    wait_until(lambda: served.metric("vllm:num_requests_running") + served.metric("vllm:num_requests_waiting") == 0)
    assert served.metric(FINISHED, AT_LENGTH) - before <= len(PROMPTS)  # none of the long ones
    assert answers(remote, requests(table)) == expected


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_request_fails_alone(remote: Engine, table: EmbeddingTable, bad: str) -> None:
    before = answers(remote, requests(table))
    first, request, *others = requests(table)
    wrong = bad_request(bad, request, table)
    results = answers(remote, [first, replace(wrong, key="bad"), *others])
    assert results.pop("bad") == Failure("bad", BAD[bad])
    assert results == {key: answer for key, answer in before.items() if key != request.key}


def test_wrong_and_missing_keys(
    served: VLLMServer, connect: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "another-9c2e")
    wrong = error_of(connect, served.url)
    assert "the server requires an API key, but the key in $VLLM_API_KEY is wrong" in wrong and "9c2e" not in wrong
    monkeypatch.delenv(KEY_VARIABLE)
    assert "requires an API key, but $VLLM_API_KEY is not set" in error_of(connect, served.url)
    monkeypatch.setenv(KEY_VARIABLE, "two words")
    assert "$VLLM_API_KEY is not an API key" in error_of(connect, served.url)
    monkeypatch.setenv(KEY_VARIABLE, f"{VLLM_KEY}\n")  # as read from a file
    connect(served.url)


def test_servers_that_do_not_fit_the_sweep(
    served: VLLMServer, connect: Callable[..., Engine], tmp_path: Path, tiny: Path, checkpoint: Checkpoint
) -> None:
    began = time.monotonic()
    nowhere = f"http://127.0.0.1:{free_port()}"
    assert f"engine.url: {nowhere}: no server answers at this address (ConnectError" in error_of(connect, nowhere)
    assert time.monotonic() - began < 10
    assert "this is not a vLLM server (GET /v1/models: HTTP 404" in error_of(connect, f"{served.url}/elsewhere")
    assert "does not serve 'llama'. Available: " in error_of(connect, served.url, served_model="llama")
    bf16 = Checkpoint(ModelConfig(id=str(tiny), dtype="bfloat16"), tiny)
    assert "runs its model in float32, but model.dtype is bfloat16" in error_of(connect, served.url, model=bf16)
    gpt2 = find(ModelConfig(id=str(make_model(tmp_path / "gpt2", "gpt2"))))
    narrow = replace(gpt2, folder=narrowed(tmp_path / "narrow"))
    wrong_width = "its embeddings have 64 columns, but those of model.id have 32"
    assert wrong_width in error_of(connect, served.url, model=narrow)
    longer = ServerConfig(url=served.url)
    with pytest.raises(ConfigError, match=r"has room for 256 tokens of prompt and answer, but the sweep needs 300"):
        longer.open(checkpoint.files, 300, tmp_path)


def test_another_model_of_the_same_size_fails_the_identity_check(
    remote: Engine, connect: Callable[..., Engine], served: VLLMServer, table: EmbeddingTable, tmp_path: Path
) -> None:
    check_identity(remote, [IdentityPrompt(str(i), ids, table.rows(ids)) for i, ids in enumerate(PROMPTS)], 8)
    other = find(ModelConfig(id=str(make_model(tmp_path / "other", seed=1))))
    engine, rows = connect(served.url, model=other), open_table(other).rows
    with pytest.raises(ConfigError, match=r"fails the identity check: the prompt '.' decodes to"):
        check_identity(engine, [IdentityPrompt(str(i), ids, rows(ids)) for i, ids in enumerate(PROMPTS)], 8)


@pytest.mark.parametrize("fault", [429, 503, 500, 502, 504, "drop", "cut"])
def test_every_request_is_answered_through_a_disturbed_connection(
    served: VLLMServer, connect: Callable[..., Engine], table: EmbeddingTable, pauses: list[Pause], fault: Fault
) -> None:
    """A proxy in front of the real server disturbs the first attempt of every other request."""
    attempts: Counter[bytes] = Counter()
    asked = [replace(r, key=(i, r.key), sampling=replace(GREEDY, seed=i)) for i in range(4) for r in requests(table)]
    expected = answers(connect(served.url), asked)
    pauses.clear()

    def fault_of(body: bytes) -> Fault | None:
        content = re.sub(rb'"request_id": "[^"]*"', b"", body)  # it differs between attempts
        attempts[content] += 1
        return fault if attempts[content] == 1 and (b'"seed": 0' in body or b'"seed": 2' in body) else None

    with disturbing(served.url, fault_of) as proxy:
        assert answers(connect(proxy), asked) == expected
    assert sorted(attempts.values()) == [1] * 13 + [2] * 12  # one of them is the handshake
    # The server's `Retry-After` is respected.
    assert pauses == [(0, 1.0 if fault in (429, 503) else None)] * 12


def test_request_with_repeated_server_errors_fails_alone(
    served: VLLMServer, connect: Callable[..., Engine], table: EmbeddingTable
) -> None:
    with disturbing(served.url, lambda body: 500 if b'"seed": 13' in body else None) as proxy:
        first, *others = requests(table)
        results = answers(connect(proxy), [replace(first, sampling=replace(GREEDY, seed=13)), *others])
    assert results[0] == Failure(0, "the server failed at it 4 times: HTTP 500: the proxy says so")
    assert all(isinstance(results[request.key], Generation) for request in others)


def test_a_request_whose_connection_always_breaks_is_isolated_by_the_supervisor(
    served: VLLMServer, connect: Callable[..., Engine], table: EmbeddingTable
) -> None:
    with disturbing(served.url, lambda body: "drop" if b'"seed": 13' in body else None) as proxy:
        supervisor = Supervisor(ServerConfig(url=proxy), lambda config: connect(config.url))  # type: ignore[attr-defined]
        first, *others = requests(table)
        results = answers(supervisor, [replace(first, sampling=replace(GREEDY, seed=13)), *others])
    failure = results.pop(0)
    assert isinstance(failure, Failure) and "broke the connection of a request 4 times" in failure.reason
    assert results == answers(connect(served.url), others)


def test_a_server_that_is_always_busy_exceeds_patience(
    served: VLLMServer, connect: Callable[..., Engine], table: EmbeddingTable
) -> None:
    busy = threading.Event()
    with disturbing(served.url, lambda body: 503 if busy.is_set() else None) as proxy:
        engine = connect(proxy, patience=0.5)
        busy.set()
        began = time.monotonic()
        message = r"has not answered any request for 0\.5 s \(engine\.patience\): HTTP 503: the proxy says so"
        with pytest.raises(EngineError, match=message) as caught:
            answers(engine, requests(table))
        assert not isinstance(caught.value, EngineDied) and 0.5 <= time.monotonic() - began < 10
        busy.clear()
        assert len(answers(engine, requests(table))) == len(PROMPTS)


def test_a_request_that_exceeds_the_read_timeout_is_retried(
    served: VLLMServer, connect: Callable[..., Engine], table: EmbeddingTable
) -> None:
    slow = [b'"seed": 13']
    with disturbing(served.url, lambda body: "wait" if slow and slow[0] in body and slow.pop() else None) as proxy:
        first, *others = requests(table)
        asked = [replace(first, sampling=replace(GREEDY, seed=13)), *others]
        assert answers(connect(proxy, read_timeout=0.5), asked) == answers(connect(served.url), asked)
    assert not slow


def test_a_revoked_key_ends_the_sweep(
    served: VLLMServer, connect: Callable[..., Engine], table: EmbeddingTable
) -> None:
    expired = threading.Event()
    with disturbing(served.url, lambda body: 401 if expired.is_set() else None) as proxy:
        engine = connect(proxy)
        expired.set()
        with pytest.raises(EngineError, match="does not accept the API key any more: HTTP 401"):
            answers(engine, requests(table))


def test_a_sweep_continues_when_a_killed_server_is_restarted(
    served: VLLMServer,
    configure: Configure,
    on_shared_engine: Engine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server is killed during a sweep; the answers equal those of the offline engine."""
    factors = [1 + i / 8 for i in range(1, 9)]
    sampling = {"max_tokens": 60, "ignore_eos": True}
    generate, received = ServerEngine.generate, list[object]()

    def generate_and_kill(engine: ServerEngine, requests: Iterable[Request]) -> Iterator[Generation | Failure]:
        with closing(generate(engine, requests)) as stream:  # type: ignore[type-var]
            for answer in stream:
                received.append(answer.key)
                if len(received) == 5:  # of 27; at most one window of others is in flight
                    served.kill()
                    served.start()
                yield answer

    monkeypatch.setattr(ServerEngine, "generate", generate_and_kill)
    engine = {"name": "server", "url": served.url, "max_in_flight": WINDOW}
    runner, table = sweep(configure, tmp_path, factors, engine, sampling=sampling)
    assert runner.engine_starts == 2
    assert len(runner.results) == 9 and not any(result.error for result in runner.results.values())
    _, expected = sweep(configure, tmp_path, factors, {"name": "vllm"}, sampling=sampling)
    pd.testing.assert_frame_equal(table, expected, check_exact=True)
