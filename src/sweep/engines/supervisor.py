"""Keeps an engine alive: one that dies is started again, and only what it had not answered is repeated.

What kills the engine again and again is found and fails alone, see `triage`; an engine that runs out of memory works on
fewer requests at a time from then on.  Restarts are bounded.  An engine that neither dies nor answers is waited for.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import replace

from sweep.engines.base import Engine, EngineConfig, Failure, Generation, Request, Sampling
from sweep.engines.triage import Finding, Triage
from sweep.errors import ConfigError, EngineDied, EngineError, EngineOutOfMemory

log = logging.getLogger(__name__)

# Deaths that told nothing, failed starts and finds of killers, with no answer between them: then it is the machine.
FAILURES_IN_A_ROW = 4
# Deaths in all that no request was found to be the cause of: each costs a start, of 15 seconds to some minutes.
UNEXPLAINED_DEATHS = 50
# How often requests in all are found to be the cause: then it is the model, or what is tried on it.
KILLERS_FOUND = 32
# How often concurrency is halved for lack of memory before requests are suspected.
HALVINGS = 3
# Seconds before a start is tried again: a GPU may be slow to give back the memory of a process that was killed.
RETRY_PAUSE = 2.0

HALF = " with half as many requests at a time"


class Supervisor(Engine):
    """An engine that survives its deaths.

    Attributes:
        config: how the engine is run now.
        starts: how often one was started.
        deaths: how often one died.
    """

    def __init__(self, config: EngineConfig, open_engine: Callable[[EngineConfig], Engine]) -> None:
        """Start the engine.

        Args:
            open_engine: starts an engine of some configuration; called again, in the thread that draws answers, after
                each death.

        Raises:
            ConfigError, EngineError: it did not start.
        """
        self.config = self._given = config
        self.starts = self.deaths = 0
        self._open = open_engine
        self._in_a_row = self._unexplained = self._killers_found = self._halvings = 0
        self._answered: Request | None = None
        self._engine: Engine | None = None
        self.version = self._running().version

    def generate(
        self, requests: Iterable[Request], wanted: Callable[[Hashable], bool] = lambda key: True
    ) -> Iterator[Generation | Failure]:
        """Answer requests; see `Engine.generate`.  Those that kill the engine fail, and no others.

        Args:
            wanted: whether a request of that key is still to be answered; if not, it is neither sent nor repeated.

        Raises:
            EngineError: the engine died too often, or could not be started again.
        """
        triage = Triage(requests, wanted)
        while triage.pending():
            engine, died = self._running(), None
            try:
                self._prove(engine)
                for answer in engine.generate(triage):
                    request = triage.answered(answer.key)
                    if isinstance(answer, Generation):
                        self._in_a_row, self._answered = 0, request
                    yield answer
            except EngineDied as error:
                # As a copy: the frames of the original keep the engine's memory alive.
                died = type(error)(str(error), error.culprits)
            if died is not None:
                del engine
                try:
                    self._recover(died, triage)
                finally:
                    self.close()
                while triage.condemned:
                    yield Failure(triage.condemned.popleft().key, f"the engine died of it twice: {died}")

    def memory_gib(self) -> float | None:
        """Return the GPU memory that the engine holds; see `Engine.memory_gib`."""
        return self._engine.memory_gib() if self._engine else None

    def close(self) -> None:
        """Close the engine; see `Engine.close`."""
        if self._engine is not None:
            engine, self._engine = self._engine, None
            engine.close()

    def _running(self) -> Engine:
        """Return the engine, starting it if need be; a start that fails is tried again if it may yet succeed."""
        while self._engine is None:
            try:
                self._engine = self._open(self.config)
                self.starts += 1
            except ConfigError as error:
                if not self.starts:
                    raise
                # What it was right to start is gone, or has become something else.
                self._start_failed(EngineError(str(error)))
            except EngineError as error:
                self._start_failed(error)
        return self._engine

    def _start_failed(self, error: EngineError) -> None:
        """Wait for another try, unless it would be in vain."""
        self._in_a_row += 1
        halved = isinstance(error, EngineOutOfMemory) and self._halve()
        if self._in_a_row > FAILURES_IN_A_ROW or not (self.starts or halved):
            raise error
        log.warning("%s. Another try%s.", str(error).removesuffix("."), HALF if halved else "")
        time.sleep(RETRY_PAUSE)

    def _prove(self, engine: Engine) -> None:
        """Before it may be given up, ask what has been answered before: many killers may stand in a row.

        Raises:
            EngineDied: it was not the requests.
        """
        if self._in_a_row == FAILURES_IN_A_ROW and self._answered is not None:
            known = replace(self._answered, sampling=Sampling(max_tokens=1), scored=0)
            if any(isinstance(answer, Generation) for answer in engine.generate([known])):
                self._in_a_row = 0

    def _recover(self, died: EngineDied, triage: Triage) -> None:
        """Decide how to go on.

        Raises:
            EngineDied: not at all.
        """
        self.deaths += 1
        self.config = self.config.fresh()
        if isinstance(died, EngineOutOfMemory) and self._halve():
            repeated = triage.repeat()
            log.warning("%s (death %d). Restart%s; requests to repeat: %d.", died, self.deaths, HALF, repeated)
            return
        finding = triage.died(died.culprits)
        if finding is Finding.KILLERS:
            self._in_a_row += 1
            self._killers_found += 1
            self._unexplained = max(0, self._unexplained - 1)
            if isinstance(died, EngineOutOfMemory):  # it was not the number of requests
                self.config, self._halvings = self._given.fresh(), 0
        elif finding is Finding.NOTHING:
            self._in_a_row += 1
            self._unexplained += 1
        spent = self._unexplained > UNEXPLAINED_DEATHS or self._killers_found > KILLERS_FOUND
        if spent or self._in_a_row > FAILURES_IN_A_ROW:
            raise type(died)(f"{died}; it died {self.deaths} times and is not started again.")
        log.warning("%s (death %d). Restart; %s.", died, self.deaths, triage.describe())

    def _halve(self) -> bool:
        """Have the next engine work on half as many requests at a time, if that can be and has not been done enough."""
        smaller = self.config.smaller()
        if smaller is None or self._halvings == HALVINGS:
            return False
        self.config = smaller.fresh()
        self._halvings += 1
        return True
