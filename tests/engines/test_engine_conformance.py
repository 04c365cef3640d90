"""Every registered engine holds to the contract, vLLM in this process and in one of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import MAX_MODEL_LEN
from servers import VLLMServer, vllm_server
from sweep.engines import ENGINES, EngineConfig, ServerConfig, TransformersConfig, VLLMConfig
from sweep.engines.base import Completion, Engine, Failure, Generation, Request
from sweep.inputs.checkpoint import Checkpoint
from sweep.testing import (
    ENGINE_CHECKS,
    EngineBench,
    EngineCheck,
    Started,
    check_death,
    check_engine,
    engine_answers,
    engine_streams,
)

SHARED = "vllm"  # the engine of all tests, which stays open
SERVER = "server"
CONFIGS: dict[str, tuple[EngineConfig, int]] = {  # with the window of each
    SHARED: (VLLMConfig(), 16),
    "vllm-process": (VLLMConfig(max_num_seqs=8, window=16, kv_cache_gib=0.1, in_process=False), 16),
    "transformers": (TransformersConfig(max_batch_size=8), 8),
    SERVER: (ServerConfig(max_in_flight=16), 16),  # whose address is found later
}


@pytest.fixture(scope="module", params=list(CONFIGS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def bench(
    name: str, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> EngineBench:
    (config, window), cache = CONFIGS[name], tmp_path_factory.mktemp("cache")
    if name == SERVER:
        config = replace(config, url=request.getfixturevalue("server").url)

    def start() -> Engine:
        if name == SHARED:
            engine: Engine = request.getfixturevalue("engine")
            return engine
        return config.open(checkpoint.files, MAX_MODEL_LEN, cache)

    return EngineBench(start, checkpoint, MAX_MODEL_LEN, window, penalties=name != SERVER)


@pytest.fixture(scope="module")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServer]:
    with vllm_server(tiny, tmp_path_factory.mktemp("server"), "--enable-prompt-embeds") as running:
        yield running


@pytest.fixture(scope="module")
def started(bench: EngineBench, name: str) -> Iterator[Started]:
    started = bench.start()
    yield started
    if name != SHARED:
        started.close()


@pytest.mark.parametrize("check", ENGINE_CHECKS, ids=lambda check: check.__name__)
def test_registered_engines_conform(check: EngineCheck, bench: EngineBench, started: Started) -> None:
    check(bench, started.engine)


def test_the_battery_in_one_call(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """On an engine that answers one request at a time."""
    config = TransformersConfig(max_batch_size=1)
    check_engine(EngineBench(lambda: config.open(checkpoint.files, 128, tmp_path), checkpoint, 128, window=1))


def test_every_engine_is_tried() -> None:
    assert {config.name for config, _ in CONFIGS.values()} == set(ENGINES)


def test_knowing_the_engines_imports_none_of_their_libraries() -> None:
    code = "import sys, sweep.engines; print([m for m in ('torch', 'transformers', 'vllm') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


Answers = Iterator[Generation | Failure]


class Broken(Engine):
    """A true engine that is asked or answers wrongly."""

    def __init__(self, engine: Engine, answer: Callable[[Engine, Iterable[Request]], Answers]) -> None:
        self.version, self.engine, self.answer = engine.version, engine, answer

    def generate(self, requests: Iterable[Request]) -> Answers:
        return self.answer(self.engine, requests)

    def close(self) -> None:
        self.engine.close()


def asked(change: Callable[[Request], Request]) -> Callable[[Engine, Iterable[Request]], Answers]:
    return lambda engine, requests: engine.generate(change(request) for request in requests)


def sampled(**changes: object) -> Callable[[Engine, Iterable[Request]], Answers]:
    return asked(lambda r: replace(r, sampling=replace(r.sampling, **changes)))  # type: ignore[arg-type]


def said(change: Callable[[Completion], Completion]) -> Callable[[Engine, Iterable[Request]], Answers]:
    def answer(engine: Engine, requests: Iterable[Request]) -> Answers:
        for own in engine.generate(requests):
            if isinstance(own, Generation):
                own = replace(own, completions=tuple(change(completion) for completion in own.completions))
            yield own

    return answer


def at_the_end(engine: Engine, requests: Iterable[Request]) -> Answers:
    yield from list(engine.generate(requests))


def in_order(engine: Engine, requests: Iterable[Request]) -> Answers:
    for request in requests:
        yield from engine.generate([request])


def all_drawn_first(engine: Engine, requests: Iterable[Request]) -> Answers:
    yield from engine.generate(list(requests))


def swallowed(engine: Engine, requests: Iterable[Request]) -> Answers:
    with suppress(LookupError):
        yield from engine.generate(requests)


def merciful(engine: Engine, requests: Iterable[Request]) -> Answers:
    """Answers what it should refuse."""
    for answer in engine.generate(requests):
        yield Generation(answer.key, ()) if isinstance(answer, Failure) else answer


def more_probable(engine: Engine, requests: Iterable[Request]) -> Answers:
    for own in engine.generate(requests):
        yield replace(own, scored=tuple(x + 0.01 for x in own.scored)) if isinstance(own, Generation) else own


@pytest.mark.parametrize(
    ("check", "broken"),
    [
        (engine_answers.answers_are_those_of_the_model, asked(lambda r: replace(r, embeds=None))),
        (engine_answers.embeddings_answer_as_token_ids_do, asked(lambda r: r if r.embeds is None else replace(r, embeds=r.embeds * 3))),
        (engine_answers.the_identity_gate_can_be_passed_and_failed, asked(lambda r: replace(r, embeds=None))),
        (engine_streams.order_and_company_do_not_matter, sampled(seed=None)),
        (engine_streams.answers_come_as_they_finish, in_order),
        (engine_streams.requests_are_drawn_as_they_are_needed, all_drawn_first),
        (engine_streams.requests_are_drawn_as_they_are_needed, at_the_end),
        (engine_streams.answers_may_lead_to_requests, at_the_end),
        (engine_answers.samples_count_their_seeds_up, sampled(seed=3)),
        (engine_answers.tokens_are_drawn_with_their_probabilities, sampled(temperature=0.4)),
        (engine_answers.tokens_are_drawn_with_their_probabilities, sampled(top_k=0)),
        (engine_answers.tokens_are_drawn_with_their_probabilities, sampled(top_p=1.0)),
        (engine_answers.penalties_read_prompts_and_answers, sampled(repetition_penalty=1.0)),
        (engine_answers.penalties_read_prompts_and_answers, asked(lambda r: replace(r, token_ids=(0,) * len(r.token_ids)))),
        (engine_answers.stop_strings_end_answers, sampled(stop=())),
        (engine_answers.the_end_of_text_ends_answers, sampled(ignore_eos=True)),
        (engine_answers.the_end_of_text_ends_answers, said(lambda c: replace(c, token_ids=c.token_ids[:-1]))),
        (engine_answers.the_context_ends_answers, said(lambda c: replace(c, finish_reason="stop"))),
        (engine_answers.log_probabilities_are_those_of_the_model, said(lambda c: replace(c, logprobs=c.logprobs[::-1]))),
        (engine_answers.log_probabilities_are_those_of_the_model, sampled(logprobs=4)),
        (engine_answers.forced_answers_have_their_likelihood, more_probable),
        (engine_streams.bad_requests_fail_alone, merciful),
        (engine_streams.what_drawing_raises_passes_through, swallowed),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["transformers"], indirect=True, scope="module")
def test_the_battery_finds_what_is_broken(
    bench: EngineBench, started: Started, check: EngineCheck, broken: Callable[[Engine, Iterable[Request]], Answers]
) -> None:
    with pytest.raises((AssertionError, KeyError)):
        check(bench, Broken(started.engine, broken))


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != SHARED], indirect=True, scope="module")
def test_closed_and_killed_engines_leave_nothing(bench: EngineBench, started: Started, name: str) -> None:
    """The last test of the module, for it closes what the others are tried on."""
    assert bool(started.processes) == (name == "vllm-process")
    started.close()
    check_death(bench)
