"""The server engine against vLLM's own server: what the offline engine answers, whatever happens on the way.

What it must do as all engines is in `test_engine_conformance`.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from conftest import MAX_MODEL_LEN
from servers import Fault, VLLMServer, disturbing, free_port, vllm_server
from sweep.config import ModelConfig, SweepConfig
from sweep.engines import ServerConfig
from sweep.engines.base import Engine, Failure, Generation, Request, Sampling
from sweep.engines.gate import GatePrompt, identity_gate
from sweep.engines.server import KEY_VARIABLE
from sweep.engines.supervisor import Supervisor
from sweep.errors import ConfigError, EngineDied, EngineError
from sweep.inputs.checkpoint import Checkpoint, find
from sweep.inputs.embedding import EmbeddingTable, open_table
from sweep.point import Point
from sweep.runner import Runner
from sweep.terminal import Terminal
from tiny_models import make_model

KEY = "only-for-these-tests-5d1c"
GREEDY = Sampling(max_tokens=8, ignore_eos=True)
PROMPTS = [tuple(range(5, 5 + n)) for n in (3, 17, 40, 8, 25, 11)]
WINDOW = 16

Configure = Callable[..., SweepConfig]
Answers = dict[object, Generation | Failure]


@pytest.fixture(scope="module", autouse=True)
def key() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, KEY)
        yield


@pytest.fixture(scope="module")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServer]:
    with vllm_server(tiny, tmp_path_factory.mktemp("server"), "--enable-prompt-embeds", key=KEY) as running:
        yield running


@pytest.fixture
def connect(checkpoint: Checkpoint, tmp_path: Path) -> Iterator[Callable[..., Engine]]:
    """Open the server engine at an address; it is closed afterwards."""
    opened: list[Engine] = []

    def open_at(url: str, patience: float = 20.0, model: Checkpoint = checkpoint, **changes: object) -> Engine:
        config = replace(ServerConfig(url=url, patience=patience, max_in_flight=WINDOW), **changes)  # type: ignore[arg-type]
        opened.append(config.open(model.files, MAX_MODEL_LEN, tmp_path))
        return opened[-1]

    yield open_at
    for engine in opened:
        engine.close()


@pytest.fixture
def remote(server: VLLMServer, connect: Callable[..., Engine]) -> Engine:
    return connect(server.url)


def runs_of(config: SweepConfig) -> dict[str, Run]:
    client = MlflowClient(f"sqlite:///{config.sweep.root / 'mlflow.db'}")
    return {run.info.run_name: run for run in client.search_runs(["1"])}


def requests(table: EmbeddingTable, sampling: Sampling = GREEDY, factor: float = 2.0) -> list[Request]:
    return [Request(i, ids, table.rows(ids) * factor, sampling) for i, ids in enumerate(PROMPTS)]


def answers(engine: Engine, asked: Iterable[Request]) -> Answers:
    return {answer.key: answer for answer in engine.generate(asked)}


SAMPLINGS = {
    "greedy": GREEDY,
    "end of text": Sampling(max_tokens=60),
    "log-probabilities": replace(GREEDY, logprobs=5),
    "samples": Sampling(max_tokens=8, temperature=1.0, top_p=0.9, top_k=50, seed=2**62 - 1, n=3, logprobs=2),
    "stop strings": Sampling(max_tokens=60, ignore_eos=True, stop=("e", "\x16", "L")),
    "to the end of the context": Sampling(max_tokens=1000, ignore_eos=True),
}


@pytest.mark.parametrize("kind", SAMPLINGS)
def test_answers_are_those_of_the_offline_engine(
    remote: Engine, engine: Engine, table: EmbeddingTable, kind: str
) -> None:
    """Texts, token ids, finish reasons and log-probabilities, to the last bit."""
    asked = requests(table, SAMPLINGS[kind])
    expected = answers(engine, asked)
    assert all(isinstance(answer, Generation) for answer in expected.values())
    assert answers(remote, asked) == expected
    by_ids = [replace(request, embeds=None) for request in asked]
    assert answers(remote, by_ids) == answers(engine, by_ids) != expected


def test_forced_answers_are_as_probable_as_to_the_offline_engine(
    remote: Engine, engine: Engine, table: EmbeddingTable
) -> None:
    said = (9, 200, 31, 77)
    asked = [
        Request(i, ids + said, torch.cat([table.rows(ids) * 3.0, table.rows(said)]), GREEDY, scored=1 + i % 4)
        for i, ids in enumerate(PROMPTS)
    ]
    expected, got = answers(engine, asked), answers(remote, asked)
    for request in asked:
        own, other = got[request.key], expected[request.key]
        assert isinstance(own, Generation) and isinstance(other, Generation)
        assert own.scored == pytest.approx(other.scored, abs=1e-4)
        assert len(own.scored) == request.scored


def sweep(
    configure: Configure, folder: Path, factors: Iterable[float], engine: dict[str, object], **changes: object
) -> tuple[Runner, pd.DataFrame]:
    """Sweep on an engine; return it and the table of all generations and their scores."""
    changes |= {"engine": engine, "sweep": {"dir": str(folder / str(engine["name"]))}}
    points = [
        Point(configure(transform={"name": "scale", "factor": factor}, **changes), (("transform.factor", factor),))
        for factor in factors
    ]
    with Runner(configure(**changes), "compared", "sweep …", Terminal()) as runner:
        runner.run(points)
    table = pd.read_parquet(runner.folder / "report" / "generations.parquet")
    return runner, table.sort_values(["point", "prompt_id"], ignore_index=True)


def test_a_whole_sweep_is_that_of_the_offline_engine(
    server: VLLMServer, configure: Configure, on_shared_engine: Engine, tmp_path: Path
) -> None:
    """Every column of the table, scores among them."""
    scoring = {"logprobs": 3}
    _, expected = sweep(configure, tmp_path, [1.5, 4.0], {"name": "vllm"}, scoring=scoring)
    engine = {"name": "server", "url": f"{server.url}/v1/"}
    _, table = sweep(configure, tmp_path, [1.5, 4.0], engine, scoring=scoring)
    assert len(table) == 9 and table["generation"].nunique() > 3
    pd.testing.assert_frame_equal(table, expected, check_exact=True)
    tags = {name: run.data.tags for name, run in runs_of(configure(sweep={"dir": str(tmp_path / "server")})).items()}
    assert tags["control"]["sweep.server"] == server.url and tags["control"]["sweep.engine"] == "server"
    written = [path.read_bytes() for path in (tmp_path / "server").rglob("*") if path.is_file()]
    assert len(written) > 5 and not any(KEY.encode() in content for content in written)


def test_the_server_forgets_an_abandoned_stream(remote: Engine, server: VLLMServer, table: EmbeddingTable) -> None:
    expected = answers(remote, requests(table))
    long = [replace(r, key=(r.key, i)) for i in range(5) for r in requests(table, replace(GREEDY, max_tokens=200))]
    stream = remote.generate([*requests(table), *long])
    next(stream)
    assert server.metric("vllm:num_requests_running") > 0
    stream.close()  # type: ignore[attr-defined]
    until = time.monotonic() + 5
    while server.metric("vllm:num_requests_running") + server.metric("vllm:num_requests_waiting"):
        assert time.monotonic() < until, "the server is still at work"
        time.sleep(0.02)
    assert answers(remote, requests(table)) == expected


BAD = {
    "nan": "its embeddings are not finite in torch.float32",
    "inf": "its embeddings are not finite in torch.float32",
    "width": "its embeddings are (17, 1) torch.float32, not (17, 64) torch.float32",
    "dtype": "its embeddings are (17, 64) torch.float64, not (17, 64) torch.float32",
    "ids": "the server refused it: HTTP 400: Token id 1000000 is out of vocabulary",
    "penalty": "a repetition penalty would not see the tokens of its prompt",
    "long": f"its 256 tokens leave no room for an answer; engine.max_model_len is {MAX_MODEL_LEN}",
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_request_fails_alone(remote: Engine, table: EmbeddingTable, bad: str) -> None:
    before = answers(remote, requests(table))
    first, request, *others = requests(table)
    rows = table.rows(request.token_ids)
    wrong = {
        "nan": replace(request, embeds=rows.clone().index_fill_(0, torch.tensor([2]), torch.nan)),
        "inf": replace(request, embeds=rows * torch.inf),
        "width": replace(request, embeds=rows[:, :1]),
        "dtype": replace(request, embeds=rows.double()),
        "ids": replace(request, embeds=None, token_ids=(10**6,)),
        "penalty": replace(request, sampling=replace(GREEDY, repetition_penalty=1.2)),
        "long": replace(request, token_ids=(7,) * 256, embeds=table.rows((7,) * 256)),
    }[bad]
    got = answers(remote, [first, replace(wrong, key="bad"), *others])
    assert got.pop("bad") == Failure("bad", BAD[bad])
    assert got == {key: answer for key, answer in before.items() if key != request.key}


def refusal(connect: Callable[..., Engine], *arguments: object, **changes: object) -> str:
    with pytest.raises(ConfigError) as caught:
        connect(*arguments, **changes)
    message = str(caught.value)
    assert len(message) < 400 and KEY not in message
    return message


def test_keys_that_are_wrong_or_missing_are_said(
    server: VLLMServer, connect: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "another-9c2e")
    wrong = refusal(connect, server.url)
    assert "the server wants a key, and the key in $VLLM_API_KEY is not the one" in wrong and "9c2e" not in wrong
    monkeypatch.delenv(KEY_VARIABLE)
    assert "wants a key, and $VLLM_API_KEY is not set" in refusal(connect, server.url)
    monkeypatch.setenv(KEY_VARIABLE, "two words")
    assert "$VLLM_API_KEY is no key" in refusal(connect, server.url)
    monkeypatch.setenv(KEY_VARIABLE, f"{KEY}\n")  # as files have it
    connect(server.url)


def test_servers_that_do_not_fit_are_said(
    server: VLLMServer, connect: Callable[..., Engine], tmp_path: Path, tiny: Path, checkpoint: Checkpoint
) -> None:
    began = time.monotonic()
    nowhere = f"http://127.0.0.1:{free_port()}"
    assert f"engine.url: {nowhere}: no server answers there (ConnectError" in refusal(connect, nowhere)
    assert time.monotonic() - began < 10
    assert "no vLLM server (GET /v1/models: HTTP 404" in refusal(connect, f"{server.url}/elsewhere")
    assert "does not serve 'llama'. Known: " in refusal(connect, server.url, served_model="llama")
    bf16 = Checkpoint(ModelConfig(id=str(tiny), dtype="bfloat16"), tiny)
    assert "runs its model in float32, and model.dtype is bfloat16" in refusal(connect, server.url, model=bf16)
    gpt2 = find(ModelConfig(id=str(make_model(tmp_path / "gpt2", "gpt2"))))
    narrow = replace(gpt2, folder=narrowed(tmp_path / "narrow"))
    assert "another model: its embeddings are 64 wide, and model.id's 32" in refusal(connect, server.url, model=narrow)
    longer = ServerConfig(url=server.url)
    with pytest.raises(ConfigError, match=r"has room for 256 tokens of prompt and answer, and the sweep needs 300"):
        longer.open(checkpoint.files, 300, tmp_path)


def narrowed(folder: Path) -> Path:
    """Write a model whose rows are 32 wide."""
    from transformers import AutoModelForCausalLM, GPT2Config

    config = GPT2Config(vocab_size=272, n_embd=32, n_layer=1, n_head=2, n_positions=512, bos_token_id=1, eos_token_id=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_another_model_of_the_same_size_fails_the_identity_gate(
    remote: Engine, connect: Callable[..., Engine], server: VLLMServer, table: EmbeddingTable, tmp_path: Path
) -> None:
    identity_gate(remote, [GatePrompt(str(i), ids, table.rows(ids)) for i, ids in enumerate(PROMPTS)], 8)
    other = find(ModelConfig(id=str(make_model(tmp_path / "other", seed=1))))
    engine, rows = connect(server.url, model=other), open_table(other).rows
    with pytest.raises(ConfigError, match=r"fails the identity gate: the prompt '.' decodes to"):
        identity_gate(engine, [GatePrompt(str(i), ids, rows(ids)) for i, ids in enumerate(PROMPTS)], 8)


def test_a_server_that_takes_no_embeddings_is_said(tiny: Path, tmp_path: Path, connect: Callable[..., Engine]) -> None:
    with vllm_server(tiny, tmp_path, "--served-model-name", "one", "two") as server:
        says = "takes no embeddings: it must be started with --enable-prompt-embeds"
        assert says in refusal(connect, server.url)
        assert says in refusal(connect, server.url, served_model="two")


@pytest.mark.parametrize("fault", [429, 503, 500, 502, 504, "drop", "cut"])
def test_every_request_is_answered_through_a_disturbed_connection(
    server: VLLMServer, connect: Callable[..., Engine], table: EmbeddingTable, fault: Fault
) -> None:
    """Every other one is not answered at first; a proxy stands before the real server."""
    came: defaultdict[bytes, list[float]] = defaultdict(list)
    asked = [replace(r, key=(i, r.key), sampling=replace(GREEDY, seed=i)) for i in range(4) for r in requests(table)]
    expected = answers(connect(server.url), asked)

    def fault_of(body: bytes) -> Fault | None:
        came[body].append(time.monotonic())
        return fault if len(came[body]) == 1 and (b'"seed": 0' in body or b'"seed": 2' in body) else None

    with disturbing(server.url, fault_of) as proxy:
        assert answers(connect(proxy), asked) == expected
    pauses = [times[1] - times[0] for times in came.values() if len(times) > 1]
    assert len(pauses) == 12 and len(came) == 25 and sum(map(len, came.values())) == 37  # one was to meet the server
    if fault in (429, 503):  # who says when to come back is listened to
        assert min(pauses) > 1


def test_a_request_at_which_the_server_fails_again_and_again_fails_alone(
    server: VLLMServer, connect: Callable[..., Engine], table: EmbeddingTable
) -> None:
    with disturbing(server.url, lambda body: 500 if b'"seed": 13' in body else None) as proxy:
        first, *others = requests(table)
        got = answers(connect(proxy), [replace(first, sampling=replace(GREEDY, seed=13)), *others])
    assert got[0] == Failure(0, "the server failed at it 4 times: HTTP 500: the proxy says so")
    assert all(isinstance(got[request.key], Generation) for request in others)


def test_one_whose_connection_always_breaks_is_found_out_by_the_supervisor(
    server: VLLMServer, connect: Callable[..., Engine], table: EmbeddingTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweep.engines.server_talk.FIRST_PAUSE", 0.01)
    with disturbing(server.url, lambda body: "drop" if b'"seed": 13' in body else None) as proxy:
        supervisor = Supervisor(ServerConfig(url=proxy), lambda config: connect(config.url))  # type: ignore[attr-defined]
        first, *others = requests(table)
        got = {a.key: a for a in supervisor.generate([replace(first, sampling=replace(GREEDY, seed=13)), *others])}
    failure = got.pop(0)
    assert isinstance(failure, Failure) and "broke off a request 4 times" in failure.reason
    assert got == answers(connect(server.url), others)


def test_a_server_that_is_only_ever_busy_ends_patience(
    server: VLLMServer, connect: Callable[..., Engine], table: EmbeddingTable
) -> None:
    busy = threading.Event()
    with disturbing(server.url, lambda body: 503 if busy.is_set() else None) as proxy:
        engine = connect(proxy, patience=2.0)
        busy.set()
        began = time.monotonic()
        with pytest.raises(EngineError, match="has answered nothing for 2 s: HTTP 503: the proxy says so") as caught:
            answers(engine, requests(table))
        assert not isinstance(caught.value, EngineDied) and 2 <= time.monotonic() - began < 10
        busy.clear()
        assert len(answers(engine, requests(table))) == len(PROMPTS)


def test_an_answer_that_does_not_come_in_time_is_asked_for_again(
    server: VLLMServer, connect: Callable[..., Engine], table: EmbeddingTable
) -> None:
    slow = [b'"seed": 13']
    with disturbing(server.url, lambda body: "wait" if slow and slow[0] in body and slow.pop() else None) as proxy:
        first, *others = requests(table)
        asked = [replace(first, sampling=replace(GREEDY, seed=13)), *others]
        assert answers(connect(proxy, read_timeout=0.5), asked) == answers(connect(server.url), asked)
    assert not slow


def test_a_key_that_is_taken_back_ends_it(
    server: VLLMServer, connect: Callable[..., Engine], table: EmbeddingTable
) -> None:
    expired = threading.Event()
    with disturbing(server.url, lambda body: 401 if expired.is_set() else None) as proxy:
        engine = connect(proxy)
        expired.set()
        with pytest.raises(EngineError, match="does not let us in any more: HTTP 401"):
            answers(engine, requests(table))


def test_a_server_that_is_killed_and_started_again_is_gone_on_with(
    server: VLLMServer, configure: Configure, on_shared_engine: Engine, tmp_path: Path
) -> None:
    """In the middle of a sweep, whose answers are afterwards those of the offline engine."""
    factors = [1 + i / 8 for i in range(1, 17)]
    sampling = {"max_tokens": 60, "ignore_eos": True}
    before, killed = server.metric("vllm:request_success_total"), list[bool]()

    def kill() -> None:
        until = time.monotonic() + 60
        while not (enough := server.metric("vllm:request_success_total") >= before + 20) and time.monotonic() < until:
            time.sleep(0.02)
        server.kill()
        killed.append(enough)
        server.start()

    thread = threading.Thread(target=kill)
    thread.start()
    engine = {"name": "server", "url": server.url, "max_in_flight": WINDOW}
    runner, table = sweep(configure, tmp_path, factors, engine, sampling=sampling)
    thread.join()
    assert killed == [True] and runner.engine_starts == 2
    assert len(runner.results) == 17 and not any(result.error for result in runner.results.values())
    _, expected = sweep(configure, tmp_path, factors, {"name": "vllm"}, sampling=sampling)
    pd.testing.assert_frame_equal(table, expected, check_exact=True)


def test_log_probabilities_of_another_kind_and_logits_that_are_no_numbers_are_refused_and_a_server_that_stays_away_died(
    connect: Callable[..., Engine], tmp_path: Path
) -> None:
    """A mean over rows of this size overflows in GPT-2's layer norm, though every entry that is sent is finite."""
    gpt2 = find(ModelConfig(id=str(make_model(tmp_path / "gpt2", "gpt2"))))
    table = open_table(gpt2)
    options = ("--enable-prompt-embeds", "--logprobs-mode", "processed_logprobs")
    with vllm_server(gpt2.folder, tmp_path, *options) as server:
        engine = connect(server.url, patience=3.0, model=gpt2)
        plain, *_ = requests(table)
        for asked in (replace(plain, sampling=replace(GREEDY, logprobs=3)), replace(plain, scored=2)):
            [failure] = engine.generate([asked])
            assert isinstance(failure, Failure) and "--logprobs-mode raw_logprobs" in failure.reason, failure
        large, *_ = requests(table, factor=2e38)
        [failure] = engine.generate([large])
        assert isinstance(failure, Failure) and "non-finite logits" in failure.reason, failure
        long = replace(GREEDY, max_tokens=200)
        stream = engine.generate(Request(i, PROMPTS[0], None, long if i else GREEDY) for i in range(9))
        assert next(stream).key == 0
        server.kill()
        began = time.monotonic()
        with pytest.raises(EngineDied, match=f"The server at {server.url} is gone"):
            list(stream)
        assert 3 <= time.monotonic() - began < 15
