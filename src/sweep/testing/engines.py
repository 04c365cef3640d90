"""Conformance tests for engines.

    from sweep.testing import EngineBench, check_engine

    def test_mine(tmp_path):
        open_mine = lambda: MyConfig(window=16).open(checkpoint.files, 256, tmp_path)
        check_engine(EngineBench(open_mine, checkpoint, max_model_len=256, window=16))

This test opens the engine and runs every check. Use a small checkpoint in float32, so that rounding does not decide
between tokens. A failed check raises an `AssertionError` that describes what the engine did.
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
    engine_answers.greedy_answers_match_the_model,
    engine_answers.embeddings_and_token_ids_agree,
    engine_answers.identity_check_accepts_and_rejects,
    engine_streams.answers_do_not_depend_on_order_or_batch,
    engine_streams.answers_come_as_they_finish,
    engine_streams.requests_are_drawn_lazily,
    engine_streams.answers_may_lead_to_requests,
    engine_answers.samples_use_consecutive_seeds,
    engine_answers.sampling_follows_the_distribution,
    engine_answers.penalties_count_prompts_and_answers,
    engine_answers.stop_strings_end_answers,
    engine_answers.end_of_text_ends_answers,
    engine_answers.maximum_length_ends_answers,
    engine_answers.log_probabilities_match_the_model,
    engine_answers.forced_answers_match_the_model,
    engine_streams.bad_requests_fail_alone,
    engine_streams.request_iterator_errors_propagate,
    engine_streams.abandoned_streams_are_discarded,
)


def check_engine(bench: EngineBench) -> None:
    """Open an engine, run all checks on it, and check that closing and killing it work.

    Raises:
        AssertionError: a check failed.
    """
    started = bench.start()
    try:
        for check in ENGINE_CHECKS:
            check(bench, started.engine)
    finally:
        started.close()
    check_death(bench)


def check_death(bench: EngineBench) -> None:
    """Kill the processes of an engine while it answers, and check that it raises `EngineDied` and can be closed.

    An engine without processes passes.

    Raises:
        AssertionError: the engine reports the death late or not at all.
    """
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
            assert time.monotonic() - killed < END_TIMEOUT, "the engine reported the death of its processes too late"
        else:
            raise AssertionError(f"the killed engine answered {len(answered)} requests and did not raise EngineDied")
    finally:
        started.close()
