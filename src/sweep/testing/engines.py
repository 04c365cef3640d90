"""Conformance of engines: what each must hold to, whoever wrote it.

    from sweep.testing import EngineBench, check_engine

    def test_mine(tmp_path):
        open_mine = lambda: MyConfig(window=16).open(checkpoint.files, 256, tmp_path)
        check_engine(EngineBench(open_mine, checkpoint, max_model_len=256, window=16))

opens the engine and runs every check.  The checkpoint is to be small and in fp32, so that rounding does not decide
between tokens.  A check that fails raises an `AssertionError` that says what the engine did.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from sweep.engines.base import Engine, Generation, Sampling
from sweep.errors import EngineDied
from sweep.testing import engine_answers, engine_streams
from sweep.testing.bench import END_TIMEOUT, GREEDY, PROMPTS, EngineBench

EngineCheck = Callable[[EngineBench, Engine], None]
ENGINE_CHECKS: tuple[EngineCheck, ...] = (
    engine_answers.answers_are_those_of_the_model,
    engine_answers.embeddings_answer_as_token_ids_do,
    engine_answers.the_identity_gate_can_be_passed_and_failed,
    engine_streams.order_and_company_do_not_matter,
    engine_streams.answers_come_as_they_finish,
    engine_streams.requests_are_drawn_as_they_are_needed,
    engine_streams.answers_may_lead_to_requests,
    engine_answers.samples_count_their_seeds_up,
    engine_answers.tokens_are_drawn_with_their_probabilities,
    engine_answers.penalties_read_prompts_and_answers,
    engine_answers.stop_strings_end_answers,
    engine_answers.the_end_of_text_ends_answers,
    engine_answers.the_context_ends_answers,
    engine_answers.log_probabilities_are_those_of_the_model,
    engine_answers.forced_answers_have_their_likelihood,
    engine_streams.bad_requests_fail_alone,
    engine_streams.what_drawing_raises_passes_through,
    engine_streams.an_abandoned_stream_is_forgotten,
)


def check_engine(bench: EngineBench) -> None:
    """Open an engine, run all checks on it, and see it closed and killed.

    Raises:
        AssertionError: it does not conform.
    """
    started = bench.start()
    try:
        for check in ENGINE_CHECKS:
            check(bench, started.engine)
    finally:
        started.close()
    check_death(bench)


def check_death(bench: EngineBench) -> None:
    """Kill the processes of an engine while it answers: it says so, and can be closed.  One without any passes."""
    started = bench.start()
    try:
        if not started.processes:
            return
        long = Sampling(max_tokens=bench.max_model_len - 8, ignore_eos=True)
        stream = started.engine.generate(bench.request(i, PROMPTS[0], long if i else GREEDY) for i in range(64))
        assert isinstance(next(stream), Generation)
        for process in started.processes:
            process.kill()
        killed = time.monotonic()
        try:
            answered = [answer.key for answer in stream]
        except EngineDied:
            assert time.monotonic() - killed < END_TIMEOUT, "the engine is late to say that it died"
        else:
            raise AssertionError(f"killed, the engine answered {len(answered)} requests and said nothing of it")
    finally:
        started.close()
