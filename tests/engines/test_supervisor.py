"""What is repeated, suspected, condemned and given up, against an engine whose deaths are chosen.

How the real engine dies and is started again is tried in `test_vllm_death`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams import Stream
from sweep.engines import supervisor
from sweep.engines.base import Completion, Engine, EngineConfig, Failure, Generation, ModelFiles, Request, Sampling
from sweep.engines.supervisor import FAILURES_IN_A_ROW, HALVINGS, KILLERS_FOUND, UNEXPLAINED_DEATHS, Supervisor
from sweep.engines.triage import PARTS
from sweep.errors import EngineDied, EngineError, EngineOutOfMemory


@dataclass
class Fate:
    """What befalls engines.

    Attributes:
        killers: keys of requests that kill an engine at once, when they are in flight.
        named: whether the engine can name them.
        memory: how many requests in flight are more than it has memory for.
        lives: after how many answers each engine dies without a reason; those that follow live for ever.
        starts: what becomes of each start; those that follow succeed.
        configs: how each engine was started.
        deaths: the requests in flight at each.
    """

    killers: frozenset[int] = frozenset()
    named: bool = False
    memory: int = 1000
    lives: list[int] = field(default_factory=list)
    starts: list[EngineError | None] = field(default_factory=list)
    configs: list[Config] = field(default_factory=list)
    deaths: list[set[int]] = field(default_factory=list)

    def open(self, config: EngineConfig) -> Engine:
        assert isinstance(config, Config)
        self.configs.append(config)
        if self.starts and (error := self.starts.pop(0)) is not None:
            raise error
        return Mortal(config, self)


@dataclass(frozen=True, slots=True)
class Config(EngineConfig):
    name: ClassVar[str] = "mortal"
    window: int = 32
    own_process: bool = False

    def open(self, model: ModelFiles, max_model_len: int, cache_dir: Path) -> Engine:
        raise NotImplementedError

    def fresh(self) -> Config:
        return replace(self, own_process=True)

    def smaller(self) -> Config | None:
        return replace(self, window=self.window // 2) if self.window > 1 else None


class Mortal(Engine):
    """Answers what it has been asked for the longest time, until it dies."""

    def __init__(self, config: Config, fate: Fate) -> None:
        self.version, self.config, self.fate, self.closed = "mortal 1", config, fate, False
        self.left = fate.lives.pop(0) if fate.lives else 10**6

    def generate(self, requests: Iterable[Request]) -> Iterator[Generation | Failure]:
        waiting, flight = iter(requests), dict[int, Request]()
        while True:
            while len(flight) < self.config.window and (request := next(waiting, None)) is not None:
                flight[int(str(request.key))] = request
            if not flight:
                return
            assert not self.closed
            if killers := self.fate.killers & flight.keys():
                self.die(flight, EngineDied("killed", tuple(killers) if self.fate.named else ()))
            if len(flight) > self.fate.memory:
                self.die(flight, EngineOutOfMemory("out of memory"))
            if self.left == 0:
                self.die(flight, EngineDied("by chance"))
            self.left -= 1
            request = flight.pop(next(iter(flight)))
            yield Generation(request.key, (Completion(f"answer {request.key}", (), "stop"),))

    def die(self, flight: dict[int, Request], error: EngineDied) -> None:
        self.fate.deaths.append(set(flight))
        raise error

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "RETRY_PAUSE", 0.0)


def requests(count: int) -> Iterator[Request]:
    for key in range(count):
        yield Request(key, (1,), None, Sampling(max_tokens=1))


def run(fate: Fate, count: int, window: int = 32) -> tuple[set[int], set[int], Supervisor]:
    """Return what was answered, what failed, and who saw to it; nothing twice."""
    watch = Supervisor(Config(window=window), fate.open)
    got = list(watch.generate(requests(count)))
    assert max(Counter(answer.key for answer in got).values(), default=1) == 1
    answered = {int(str(answer.key)) for answer in got if isinstance(answer, Generation)}
    assert watch.deaths == len(fate.deaths)
    return answered, {int(str(answer.key)) for answer in got} - answered, watch


@given(
    count=st.integers(1, 80),
    killers=st.frozensets(st.integers(0, 79), max_size=3),
    window=st.integers(1, 40),
    named=st.booleans(),
)
def test_those_that_kill_fail_and_no_others(count: int, killers: frozenset[int], window: int, named: bool) -> None:
    killers = frozenset(key for key in killers if key < count)
    fate = Fate(killers, named)
    answered, failed, watch = run(fate, count, window)
    assert failed == killers and answered == set(range(count)) - killers
    # Two deaths for suspicion, two (40, 5, 1) to get from a window to one request, and two of that one alone.
    assert watch.deaths <= 6 * len(killers)
    assert watch.starts <= watch.deaths + 1


def test_killers_that_are_named_cost_two_deaths_in_all() -> None:
    _, failed, watch = run(Fate(frozenset({3, 7, 8}), named=True), 100)
    assert failed == {3, 7, 8} and watch.deaths == 2


def test_suspects_are_run_apart_and_fewer_at_a_time() -> None:
    fate = Fate(frozenset({70}))
    run(fate, 200, window=64)
    sizes = [len(flight) for flight in fate.deaths]
    assert sizes == [64, 64, 64 // PARTS, 1, 1]
    assert fate.deaths[4] < fate.deaths[2] < fate.deaths[0] & fate.deaths[1]


def test_two_deaths_by_chance_condemn_nobody() -> None:
    answered, failed, watch = run(Fate(lives=[0, 0]), 50)
    assert not failed and len(answered) == 50 and watch.deaths == 2


def test_an_engine_that_has_answered_before_survives_many_killers_in_a_row() -> None:
    """And one that cannot even repeat what it has answered is given up."""
    fate = Fate(frozenset(range(10, 22)))
    watch = Supervisor(Config(), fate.open)
    assert len(list(watch.generate(requests(10)))) == 10
    got = list(watch.generate(requests(30)))
    assert {answer.key for answer in got if isinstance(answer, Failure)} == set(fate.killers) and len(got) == 30
    fate.killers = frozenset(range(30))
    with pytest.raises(EngineDied, match="killed"):
        list(watch.generate(requests(30)))


def test_a_sweep_of_killers_is_given_up() -> None:
    fate = Fate(frozenset(range(1, 2000, 2)))
    watch = Supervisor(Config(window=1), fate.open)
    with pytest.raises(EngineDied, match="killed"):
        list(watch.generate(requests(2000)))
    assert watch.deaths == 2 * KILLERS_FOUND + 2


def test_what_is_answered_is_not_asked_again() -> None:
    asked = []

    class Recording(Mortal):
        def generate(self, requests: Iterable[Request]) -> Iterator[Generation | Failure]:
            kept = (asked.append(request.key) or request for request in requests)  # type: ignore[func-returns-value]
            return super().generate(kept)

    fate = Fate(lives=[20])
    watch = Supervisor(Config(window=8), lambda config: Recording(config, fate))  # type: ignore[arg-type]
    assert len(list(watch.generate(requests(60)))) == 60
    repeated = [key for key, times in Counter(asked).items() if times > 1]
    assert repeated == sorted(fate.deaths[0]) and len(repeated) == 8


def test_an_engine_that_died_is_started_again_in_a_process_of_its_own() -> None:
    fate = Fate(lives=[5])
    run(fate, 50)
    assert [config.own_process for config in fate.configs] == [False, True]


def test_out_of_memory_lowers_concurrency_and_raises_no_suspicion() -> None:
    fate = Fate(memory=9)
    answered, failed, watch = run(fate, 100, window=32)
    assert len(answered) == 100 and not failed
    assert [config.window for config in fate.configs] == [32, 16, 8] and watch.deaths == 2


def test_a_request_too_large_for_the_memory_fails_and_concurrency_is_as_before() -> None:
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
    got = list(watch.generate(requests(100)))
    assert [answer.key for answer in got if isinstance(answer, Failure)] == [40] and len(got) == 100
    assert min(windows) == 32 // 2**HALVINGS and windows[-1] == 32


def test_an_engine_that_always_dies_is_given_up() -> None:
    fate = Fate(lives=[0] * 1000)
    watch = Supervisor(Config(), fate.open)
    failed = []
    with pytest.raises(EngineDied, match="by chance; it died 11 times and is not started again"):
        failed += list(watch.generate(requests(100)))
    assert len(fate.configs) <= 2 + 2 + 2 * FAILURES_IN_A_ROW


def test_an_engine_that_dies_again_and_again_is_given_up() -> None:
    fate = Fate(lives=[40] * 1000)
    watch = Supervisor(Config(window=4), fate.open)
    got = []
    with pytest.raises(EngineDied, match="by chance"):
        for answer in watch.generate(requests(10_000)):
            got.append(answer)
    assert len(got) == 40 * watch.deaths and watch.deaths == UNEXPLAINED_DEATHS + 1
    assert all(isinstance(answer, Generation) for answer in got)


def test_a_first_start_that_fails_is_not_tried_again() -> None:
    fate = Fate(starts=[EngineError("no such model")])
    with pytest.raises(EngineError, match="no such model"):
        Supervisor(Config(), fate.open)
    assert len(fate.configs) == 1


def test_a_first_start_without_enough_memory_is_tried_smaller() -> None:
    fate = Fate(starts=[EngineOutOfMemory("full")] * 2)
    Supervisor(Config(), fate.open)
    assert [config.window for config in fate.configs] == [32, 16, 8]
    with pytest.raises(EngineOutOfMemory):
        Supervisor(Config(), Fate(starts=[EngineOutOfMemory("full")] * 9).open)


def test_a_restart_that_fails_is_tried_again_for_a_while() -> None:
    slow = EngineError("the GPU is still full")
    answered, _, watch = run(Fate(lives=[5], starts=[None, slow, slow]), 50)
    assert len(answered) == 50 and watch.starts == 2
    fate = Fate(lives=[5], starts=[None] + [slow] * 100)
    with pytest.raises(EngineError, match="still full"):
        run(fate, 50)
    assert len(fate.configs) <= FAILURES_IN_A_ROW + 1


def test_answers_lead_to_requests_also_after_a_death() -> None:
    stream = Stream(requests(10))
    watch = Supervisor(Config(), Fate(frozenset({4}), lives=[2]).open)
    got = set()
    for answer in watch.generate(stream):
        got.add(int(str(answer.key)))
        if isinstance(answer, Generation) and int(str(answer.key)) < 10:
            [more] = [replace(request, key=int(str(answer.key)) + 10) for request in requests(1)]
            stream.waiting.append(more)
    assert got == {*range(10), *range(10, 20)} - {14}


def test_what_is_not_wanted_any_more_is_not_repeated() -> None:
    """As when one prompt of a point has failed: the others of the point need not be tried apart."""
    fate = Fate(frozenset(range(20, 40)))
    watch, failed = Supervisor(Config(), fate.open), list[Failure]()
    for answer in watch.generate(requests(60), wanted=lambda key: not failed or key not in fate.killers):
        if isinstance(answer, Failure):
            failed.append(answer)
    assert len(failed) == 1 and watch.deaths == 5


def test_what_building_a_request_raises_passes_through() -> None:
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


def test_the_user_is_told(caplog: pytest.LogCaptureFixture) -> None:
    run(Fate(frozenset({3}), lives=[2]), 5)
    told = [record.getMessage() for record in caplog.records if record.name == "sweep.engines.supervisor"]
    assert told[0] == "killed (death 1). Restart; requests to repeat: 5."
    assert told[1] == "killed (death 2). Restart; requests suspected, and run apart by 1: 5."
