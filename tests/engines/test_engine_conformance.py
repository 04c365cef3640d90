"""Conformance of all registered engines; vLLM in this process and in a separate process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import MAX_MODEL_LEN
from services import VLLM_KEY
from sweep.engines import ENGINES, EngineConfig, ServerConfig, TransformersConfig, VLLMConfig
from sweep.engines.base import Completion, Engine, Failure, Generation, Request
from sweep.engines.server.config import KEY_VARIABLE
from sweep.inputs.checkpoint import Checkpoint
from sweep.inputs.embedding_loader import open_table
from sweep.testing import (
    ENGINE_CHECKS,
    EngineBench,
    EngineCheck,
    ScriptedConfig,
    Started,
    check_death,
    check_engine,
    engine_answers,
    engine_streams,
)
from sweep.testing.scripted_engine import ScriptedModel

SHARED = "vllm"  # the engine that all tests share; it stays open
PROCESS = "vllm-process"
SERVER = "server"
CONFIGS: dict[str, tuple[EngineConfig, int]] = {  # configuration and window
    SHARED: (VLLMConfig(), 16),
    PROCESS: (VLLMConfig(max_num_seqs=8, window=16, kv_cache_gib=0.1, in_process=False), 16),
    "transformers": (TransformersConfig(max_batch_size=8), 8),
    SERVER: (ServerConfig(max_in_flight=16), 16),  # the fixture sets its address
    "scripted": (ScriptedConfig(window=16), 16),
}


NAMES = [pytest.param(name, marks=pytest.mark.slow if name in (PROCESS, SERVER) else ()) for name in CONFIGS]


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def bench(
    name: str, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> EngineBench:
    (config, window), cache = CONFIGS[name], tmp_path_factory.mktemp("cache")
    if name == SERVER:
        config = replace(config, url=request.getfixturevalue("served").url)

    def start() -> Engine:
        if name == SHARED:
            engine: Engine = request.getfixturevalue("engine")
            return engine
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(KEY_VARIABLE, VLLM_KEY)
            return config.open(checkpoint.files, MAX_MODEL_LEN, cache)

    reference = (
        ScriptedModel(checkpoint.hidden_size, open_table(checkpoint).size).logits if name == "scripted" else None
    )
    return EngineBench(start, checkpoint, MAX_MODEL_LEN, window, penalties=name != SERVER, reference=reference)


@pytest.fixture(scope="module")
def started(bench: EngineBench, name: str) -> Iterator[Started]:
    started = bench.start()
    yield started
    if name != SHARED:
        started.close()


@pytest.mark.parametrize("check", ENGINE_CHECKS, ids=lambda check: check.__name__)
def test_registered_engines_conform(check: EngineCheck, bench: EngineBench, started: Started) -> None:
    check(bench, started.engine)


def test_check_engine(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """With an engine that answers one request at a time."""
    config = TransformersConfig(max_batch_size=1)
    check_engine(EngineBench(lambda: config.open(checkpoint.files, 128, tmp_path), checkpoint, 128, window=1))


def test_every_engine_is_tested() -> None:
    assert {config.name for config, _ in CONFIGS.values()} == set(ENGINES)


def test_importing_the_registry_imports_no_engine_library() -> None:
    code = "import sys, sweep.engines; print([m for m in ('torch', 'transformers', 'vllm') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


Answers = Iterator[Generation | Failure]


class Broken(Engine):
    """An engine whose requests or answers are modified."""

    def __init__(self, engine: Engine, answer: Callable[[Engine, Iterable[Request]], Answers]) -> None:
        self.version, self.engine, self.answer = engine.version, engine, answer

    def generate(self, requests: Iterable[Request]) -> Answers:
        return self.answer(self.engine, requests)

    def close(self) -> None:
        self.engine.close()


def changed_requests(change: Callable[[Request], Request]) -> Callable[[Engine, Iterable[Request]], Answers]:
    return lambda engine, requests: engine.generate(change(request) for request in requests)


def changed_sampling(**changes: object) -> Callable[[Engine, Iterable[Request]], Answers]:
    return changed_requests(lambda r: replace(r, sampling=replace(r.sampling, **changes)))  # type: ignore[arg-type]


def changed_completions(change: Callable[[Completion], Completion]) -> Callable[[Engine, Iterable[Request]], Answers]:
    def answer(engine: Engine, requests: Iterable[Request]) -> Answers:
        for result in engine.generate(requests):
            if isinstance(result, Generation):
                result = replace(result, completions=tuple(change(completion) for completion in result.completions))
            yield result

    return answer


def at_the_end(engine: Engine, requests: Iterable[Request]) -> Answers:
    yield from list(engine.generate(requests))


def in_order(engine: Engine, requests: Iterable[Request]) -> Answers:
    for request in requests:
        yield from engine.generate([request])


def all_drawn_first(engine: Engine, requests: Iterable[Request]) -> Answers:
    yield from engine.generate(list(requests))


def swallows_errors(engine: Engine, requests: Iterable[Request]) -> Answers:
    with suppress(LookupError):
        yield from engine.generate(requests)


def answers_invalid_requests(engine: Engine, requests: Iterable[Request]) -> Answers:
    for answer in engine.generate(requests):
        yield Generation(answer.key, ()) if isinstance(answer, Failure) else answer


def larger_logprobs(engine: Engine, requests: Iterable[Request]) -> Answers:
    for result in engine.generate(requests):
        if isinstance(result, Generation):
            result = replace(result, scored=tuple(x + 0.01 for x in result.scored))
        yield result


@pytest.mark.parametrize(
    ("check", "broken"),
    [
        (engine_answers.greedy_answers_match_the_model, changed_requests(lambda r: replace(r, embeds=None))),
        (engine_answers.embeddings_and_token_ids_agree, changed_requests(lambda r: r if r.embeds is None else replace(r, embeds=r.embeds * 3))),
        (engine_answers.identity_check_accepts_and_rejects, changed_requests(lambda r: replace(r, embeds=None))),
        (engine_streams.answers_do_not_depend_on_order_or_batch, changed_sampling(seed=None)),
        (engine_streams.answers_come_as_they_finish, in_order),
        (engine_streams.requests_are_drawn_lazily, all_drawn_first),
        (engine_streams.requests_are_drawn_lazily, at_the_end),
        (engine_streams.answers_may_lead_to_requests, at_the_end),
        (engine_answers.samples_use_consecutive_seeds, changed_sampling(seed=3)),
        (engine_answers.sampling_follows_the_distribution, changed_sampling(temperature=0.4)),
        (engine_answers.sampling_follows_the_distribution, changed_sampling(top_k=0)),
        (engine_answers.sampling_follows_the_distribution, changed_sampling(top_p=1.0)),
        (engine_answers.penalties_count_prompts_and_answers, changed_sampling(repetition_penalty=1.0)),
        (engine_answers.penalties_count_prompts_and_answers, changed_requests(lambda r: replace(r, token_ids=(0,) * len(r.token_ids)))),
        (engine_answers.stop_strings_end_answers, changed_sampling(stop=())),
        (engine_answers.end_of_text_ends_answers, changed_sampling(ignore_eos=True)),
        (engine_answers.end_of_text_ends_answers, changed_completions(lambda c: replace(c, token_ids=c.token_ids[:-1]))),
        (engine_answers.maximum_length_ends_answers, changed_completions(lambda c: replace(c, finish_reason="stop"))),
        (engine_answers.log_probabilities_match_the_model, changed_completions(lambda c: replace(c, logprobs=c.logprobs[::-1]))),
        (engine_answers.log_probabilities_match_the_model, changed_sampling(logprobs=4)),
        (engine_answers.forced_answers_match_the_model, larger_logprobs),
        (engine_streams.bad_requests_fail_alone, answers_invalid_requests),
        (engine_streams.request_iterator_errors_propagate, swallows_errors),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["transformers"], indirect=True, scope="module")
def test_the_checks_detect_broken_engines(
    bench: EngineBench, started: Started, check: EngineCheck, broken: Callable[[Engine, Iterable[Request]], Answers]
) -> None:
    with pytest.raises((AssertionError, KeyError)):
        check(bench, Broken(started.engine, broken))


@pytest.mark.parametrize("name", [name for name in NAMES if name.values != (SHARED,)], indirect=True, scope="module")
def test_closed_and_killed_engines_leave_no_processes(bench: EngineBench, started: Started, name: str) -> None:
    """The last test of the module, because it closes the engines of the others."""
    assert bool(started.processes) == (name == PROCESS)
    started.close()
    check_death(bench)
