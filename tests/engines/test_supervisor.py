"""Supervisor: repeated, suspect and failed requests, and restarts, with an engine whose crashes are scripted.

Crashes and restarts of the real engine are tested in `test_vllm_failures`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mortal_engine import Config, Fate, Mortal, requests, run

from streams import Stream
from sweep.engines import supervisor
from sweep.engines.base import Engine, EngineConfig, Failure, Generation, Request
from sweep.engines.quarantine import PARTS
from sweep.engines.supervisor import CULPRITS_FOUND, FAILURES_IN_A_ROW, HALVINGS, UNEXPLAINED_CRASHES, Supervisor
from sweep.errors import EngineDied, EngineError, EngineOutOfMemory


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "RETRY_PAUSE", 0.0)


@given(
    count=st.integers(1, 80),
    culprits=st.frozensets(st.integers(0, 79), max_size=3),
    window=st.integers(1, 40),
    named=st.booleans(),
)
@example(count=49, culprits=frozenset({0, 48}), window=1, named=False)  # the last request is a culprit
def test_only_requests_that_crash_the_engine_fail(
    count: int, culprits: frozenset[int], window: int, named: bool
) -> None:
    culprits = frozenset(key for key in culprits if key < count)
    fate = Fate(culprits, named)
    answered, failed, watch = run(fate, count, window)
    assert failed == culprits and answered == set(range(count)) - culprits
    # Two crashes to become suspects, two (40, 5, 1) to get from a window to one request, and two with that one alone.
    assert watch.crashes <= 6 * len(culprits)
    # No engine is started when nothing is left to answer.
    assert watch.starts == watch.crashes + (fate.answered > 0)


def test_named_culprits_cost_two_crashes_in_total() -> None:
    _, failed, watch = run(Fate(frozenset({3, 7, 8}), names_culprits=True), 100)
    assert failed == {3, 7, 8} and watch.crashes == 2


def test_suspects_run_separately_and_fewer_at_a_time() -> None:
    fate = Fate(frozenset({70}))
    run(fate, 200, window=64)
    sizes = [len(flight) for flight in fate.deaths]
    assert sizes == [64, 64, 64 // PARTS, 1, 1]
    assert fate.deaths[4] < fate.deaths[2] < fate.deaths[0] & fate.deaths[1]


def test_two_crashes_by_chance_fail_no_request() -> None:
    answered, failed, watch = run(Fate(lives=[0, 0]), 50)
    assert not failed and len(answered) == 50 and watch.crashes == 2


def test_an_engine_that_has_answered_before_survives_many_culprits_in_a_row() -> None:
    """An engine that crashes even on a request that it has answered before is not restarted."""
    fate = Fate(frozenset(range(10, 22)))
    watch = Supervisor(Config(), fate.open)
    assert len(list(watch.generate(requests(10)))) == 10
    results = list(watch.generate(requests(30)))
    failed = {result.key for result in results if isinstance(result, Failure)}
    assert failed == set(fate.culprits) and len(results) == 30
    fate.culprits = frozenset(range(30))
    with pytest.raises(EngineDied, match="killed"):
        list(watch.generate(requests(30)))


def test_too_many_culprits_end_the_sweep() -> None:
    fate = Fate(frozenset(range(1, 2000, 2)))
    watch = Supervisor(Config(window=1), fate.open)
    with pytest.raises(EngineDied, match="killed"):
        list(watch.generate(requests(2000)))
    assert watch.crashes == 2 * CULPRITS_FOUND + 2


def test_answered_requests_are_not_sent_again() -> None:
    sent = []

    class Recording(Mortal):
        def generate(self, requests: Iterable[Request]) -> Iterator[Generation | Failure]:
            recorded = (sent.append(request.key) or request for request in requests)  # type: ignore[func-returns-value]
            return super().generate(recorded)

    fate = Fate(lives=[20])
    watch = Supervisor(Config(window=8), lambda config: Recording(config, fate))  # type: ignore[arg-type]
    assert len(list(watch.generate(requests(60)))) == 60
    repeated = [key for key, times in Counter(sent).items() if times > 1]
    assert repeated == sorted(fate.deaths[0]) and len(repeated) == 8


def test_a_crashed_engine_is_restarted_in_a_separate_process() -> None:
    fate = Fate(lives=[5])
    run(fate, 50)
    assert [config.own_process for config in fate.configs] == [False, True]


def test_out_of_memory_lowers_concurrency_without_suspects() -> None:
    fate = Fate(memory=9)
    answered, failed, watch = run(fate, 100, window=32)
    assert len(answered) == 100 and not failed
    assert [config.window for config in fate.configs] == [32, 16, 8] and watch.crashes == 2


def test_a_request_too_large_for_the_memory_fails_and_concurrency_is_restored() -> None:
    class Small(Mortal):
        def generate(self, requests: Iterable[Request]) -> Iterator[Generation | Failure]:
            try:
                yield from super().generate(requests)
            except EngineDied as error:
                raise EngineOutOfMemory(str(error)) from error

    fate = Fate(frozenset({40}))
    windows = []

    def start(config: EngineConfig) -> Engine:
        assert isinstance(config, Config)
        windows.append(config.window)
        return Small(config, fate)

    watch = Supervisor(Config(window=32), start)
    results = list(watch.generate(requests(100)))
    assert [result.key for result in results if isinstance(result, Failure)] == [40] and len(results) == 100
    assert min(windows) == 32 // 2**HALVINGS and windows[-1] == 32


def test_an_engine_that_always_crashes_is_not_restarted() -> None:
    fate = Fate(lives=[0] * 1000)
    watch = Supervisor(Config(), fate.open)
    failed = []
    with pytest.raises(EngineDied, match="by chance; the engine crashed 11 times and is not restarted"):
        failed += list(watch.generate(requests(100)))
    assert len(fate.configs) == 11


def test_too_many_unexplained_crashes_end_the_sweep() -> None:
    fate = Fate(lives=[40] * 1000)
    watch = Supervisor(Config(window=4), fate.open)
    results = []
    with pytest.raises(EngineDied, match="by chance"):
        for result in watch.generate(requests(10_000)):
            results.append(result)
    assert len(results) == 40 * watch.crashes and watch.crashes == UNEXPLAINED_CRASHES + 1
    assert all(isinstance(result, Generation) for result in results)


def test_a_first_start_that_fails_is_not_retried() -> None:
    fate = Fate(starts=[EngineError("no such model")])
    with pytest.raises(EngineError, match="no such model"):
        Supervisor(Config(), fate.open)
    assert len(fate.configs) == 1


def test_a_first_start_without_enough_memory_is_retried_with_less_concurrency() -> None:
    fate = Fate(starts=[EngineOutOfMemory("full")] * 2)
    Supervisor(Config(), fate.open)
    assert [config.window for config in fate.configs] == [32, 16, 8]
    with pytest.raises(EngineOutOfMemory):
        Supervisor(Config(), Fate(starts=[EngineOutOfMemory("full")] * 9).open)


def test_a_restart_that_fails_is_retried_a_few_times() -> None:
    slow = EngineError("the GPU is still full")
    answered, _, watch = run(Fate(lives=[5], starts=[None, slow, slow]), 50)
    assert len(answered) == 50 and watch.starts == 2
    fate = Fate(lives=[5], starts=[None] + [slow] * 100)
    with pytest.raises(EngineError, match="still full"):
        run(fate, 50)
    assert len(fate.configs) == FAILURES_IN_A_ROW + 1


def test_answers_lead_to_requests_also_after_a_crash() -> None:
    stream = Stream(requests(10))
    watch = Supervisor(Config(), Fate(frozenset({4}), lives=[2]).open)
    keys = set()
    for answer in watch.generate(stream):
        keys.add(int(str(answer.key)))
        if isinstance(answer, Generation) and int(str(answer.key)) < 10:
            [more] = [replace(request, key=int(str(answer.key)) + 10) for request in requests(1)]
            stream.waiting.append(more)
    assert keys == {*range(10), *range(10, 20)} - {14}


def test_requests_that_are_no_longer_needed_are_not_repeated() -> None:
    """For example, if one prompt of a point has failed, the other prompts of the point are not needed."""
    fate = Fate(frozenset(range(20, 40)))
    watch, failed = Supervisor(Config(), fate.open), list[Failure]()
    for answer in watch.generate(requests(60), still_needed=lambda key: not failed or key not in fate.culprits):
        if isinstance(answer, Failure):
            failed.append(answer)
    assert len(failed) == 1 and watch.crashes == 5


def test_exceptions_of_the_request_iterator_propagate() -> None:
    def broken() -> Iterator[Request]:
        yield from requests(10)
        raise LookupError("mine")

    watch = Supervisor(Config(window=4), Fate(lives=[3]).open)
    with pytest.raises(LookupError, match="mine"):
        list(watch.generate(broken()))
    assert len(list(watch.generate(requests(5)))) == 5


def test_requests_are_drawn_no_further_ahead_than_the_window() -> None:
    drawn = 0

    def counted() -> Iterator[Request]:
        nonlocal drawn
        for request in requests(300):
            drawn += 1
            yield request

    watch = Supervisor(Config(window=8), Fate(frozenset({100}), lives=[50]).open)
    for done, _ in enumerate(watch.generate(counted())):
        assert drawn - done <= 8
    assert drawn == 300


def test_crashes_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    run(Fate(frozenset({3}), lives=[2]), 5)
    messages = [record.getMessage() for record in caplog.records if record.name == "sweep.engines.supervisor"]
    assert messages[0] == "killed (crash 1). Restarting the engine; requests to repeat: 5."
    assert messages[1] == "killed (crash 2). Restarting the engine; suspect requests, run 1 at a time: 5."
