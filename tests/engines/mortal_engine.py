"""An engine for tests that crashes as a script says, and what a supervisor makes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from sweep.engines.base import Completion, Engine, EngineConfig, Failure, Generation, ModelFiles, Request, Sampling
from sweep.engines.supervisor import Supervisor
from sweep.errors import EngineDied, EngineError, EngineOutOfMemory


@dataclass
class Fate:
    """Script for crashes of engines, and a record of what happened.

    Attributes:
        culprits: keys of requests that crash an engine as soon as they are in flight.
        names_culprits: whether the engine names them.
        memory: maximum number of requests in flight before the engine runs out of memory.
        lives: number of answers after which each engine crashes without a cause; later engines never do.
        starts: error of each start, or None; later starts succeed.
        configs: configuration of each start.
        deaths: requests in flight at each crash.
        answered: number of requests answered since the last crash.
    """

    culprits: frozenset[int] = frozenset()
    names_culprits: bool = False
    memory: int = 1000
    lives: list[int] = field(default_factory=list)
    starts: list[EngineError | None] = field(default_factory=list)
    configs: list[Config] = field(default_factory=list)
    deaths: list[set[int]] = field(default_factory=list)
    answered: int = 0

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

    def for_restart(self) -> Config:
        return replace(self, own_process=True)

    def smaller(self) -> Config | None:
        return replace(self, window=self.window // 2) if self.window > 1 else None


class Mortal(Engine):
    """Answers requests in order until it crashes."""

    def __init__(self, config: Config, fate: Fate) -> None:
        self.version, self.config, self.fate, self.closed = "mortal 1", config, fate, False
        self.left = fate.lives.pop(0) if fate.lives else 10**6

    def generate(self, requests: Iterable[Request]) -> Iterator[Generation | Failure]:
        waiting, in_flight = iter(requests), dict[int, Request]()
        while True:
            while len(in_flight) < self.config.window and (request := next(waiting, None)) is not None:
                in_flight[int(str(request.key))] = request
            if not in_flight:
                return
            assert not self.closed
            if culprits := self.fate.culprits & in_flight.keys():
                self.crash(in_flight, EngineDied("killed", tuple(culprits) if self.fate.names_culprits else ()))
            if len(in_flight) > self.fate.memory:
                self.crash(in_flight, EngineOutOfMemory("out of memory"))
            if self.left == 0:
                self.crash(in_flight, EngineDied("by chance"))
            self.left -= 1
            self.fate.answered += 1
            request = in_flight.pop(next(iter(in_flight)))
            yield Generation(request.key, (Completion(f"answer {request.key}", (), "stop"),))

    def crash(self, in_flight: dict[int, Request], error: EngineDied) -> None:
        self.fate.deaths.append(set(in_flight))
        self.fate.answered = 0
        raise error

    def close(self) -> None:
        self.closed = True


def requests(count: int) -> Iterator[Request]:
    for key in range(count):
        yield Request(key, (1,), None, Sampling(max_tokens=1))


def run(fate: Fate, count: int, window: int = 32) -> tuple[set[int], set[int], Supervisor]:
    """Return the keys of answered and failed requests and the supervisor; check that no key occurs twice."""
    watch = Supervisor(Config(window=window), fate.open)
    results = list(watch.generate(requests(count)))
    assert max(Counter(result.key for result in results).values(), default=1) == 1
    answered = {int(str(result.key)) for result in results if isinstance(result, Generation)}
    assert watch.crashes == len(fate.deaths)
    return answered, {int(str(result.key)) for result in results} - answered, watch
