"""Engine supervisor: restarts an engine that crashes and repeats only unanswered requests.

A request that crashes the engine repeatedly is isolated and fails alone, see `quarantine`. An engine that runs out of
memory continues with fewer concurrent requests. The number of restarts is bounded. There is no timeout for an engine
that hangs without crashing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import replace

from sweep.engines.base import Engine, EngineConfig, Failure, Generation, Origin, Request, Sampling
from sweep.engines.quarantine import Finding, Quarantine
from sweep.errors import ConfigError, EngineDied, EngineError, EngineOutOfMemory
from sweep.util.counts import counted

log = logging.getLogger(__name__)

# Failures without an answer in between (unexplained crashes, failed starts, culprits found) after which the machine or
# the installation is considered the cause.
FAILURES_IN_A_ROW = 4
# Crashes in total without a culprit. Each costs a start, of 15 seconds to some minutes.
UNEXPLAINED_CRASHES = 50
# Crashes in total with a culprit, after which the model or the sweep itself is considered the cause.
CULPRITS_FOUND = 32
# How often concurrency is halved for lack of memory before requests become suspects.
HALVINGS = 3
# Seconds before the next start: a GPU may be slow to release the memory of a process that was killed.
RETRY_PAUSE = 2.0

HALVED = " with half as many concurrent requests"


class Supervisor(Engine):
    """An engine that is restarted after a crash. Owned by the thread that draws its answers.

    Attributes:
        config: current configuration of the engine.
        starts: number of engine starts.
        crashes: number of engine crashes.
    """

    def __init__(self, config: EngineConfig, open_engine: Callable[[EngineConfig], Engine]) -> None:
        """Start the engine.

        Args:
            config: configuration of the first start.
            open_engine: starts an engine with a configuration. Called again after each crash, in the thread that
                draws answers.

        Raises:
            ConfigError: the engine is unavailable or differs from its configuration.
            EngineError: the engine did not start.
        """
        self.config = self._initial_config = config
        self.starts = self.crashes = 0
        self._open = open_engine
        self._in_a_row = self._unexplained = self._culprits_found = self._halvings = 0
        self._last_answered: Request | None = None
        self._engine: Engine | None = None
        self.version, self._origin = (engine := self._ensure_running()).version, engine.origin

    @property
    def origin(self) -> Origin:
        """The origin that the engine reported at its first start."""
        return self._origin

    def generate(
        self, requests: Iterable[Request], still_needed: Callable[[Hashable], bool] = lambda key: True
    ) -> Iterator[Generation | Failure]:
        """Answer requests; see `Engine.generate`. Only requests that crash the engine fail.

        Args:
            requests: a lazy stream of requests.
            still_needed: whether the request with a key still needs an answer. If not, it is neither sent nor
                repeated.

        Raises:
            EngineError: the engine crashed too often or could not be restarted.
        """
        quarantine = Quarantine(requests, still_needed)
        while quarantine.pending():
            engine, crash = self._ensure_running(), None
            try:
                self._check_alive(engine)
                for answer in engine.generate(quarantine):
                    request = quarantine.mark_answered(answer.key)
                    if isinstance(answer, Generation):
                        self._in_a_row, self._last_answered = 0, request
                    yield answer
            except EngineDied as error:
                # A copy, because the frames of the original keep the engine's memory alive.
                crash = type(error)(str(error), error.culprits)
            if crash is not None:
                del engine
                try:
                    self._recover(crash, quarantine)
                finally:
                    self.close()
                while quarantine.failed:
                    yield Failure(quarantine.failed.popleft().key, f"it crashed the engine twice: {crash}")

    def memory_gib(self) -> float | None:
        """Return the GPU memory that the engine holds; see `Engine.memory_gib`."""
        return self._engine.memory_gib() if self._engine else None

    def close(self) -> None:
        """Close the engine; see `Engine.close`."""
        if self._engine is not None:
            engine, self._engine = self._engine, None
            engine.close()

    def _ensure_running(self) -> Engine:
        """Return the engine; start it if necessary, and retry a failed start if it may succeed."""
        while self._engine is None:
            try:
                self._engine = self._open(self.config)
                self.starts += 1
            except ConfigError as error:
                if not self.starts:
                    raise
                # It started before, so the cause is outside: a server may be away or may have changed.
                self._retry_start(EngineError(str(error)))
            except EngineError as error:
                self._retry_start(error)
        return self._engine

    def _retry_start(self, error: EngineError) -> None:
        """Wait before the next start, or raise the error if another start is pointless."""
        self._in_a_row += 1
        halved = isinstance(error, EngineOutOfMemory) and self._halve()
        if self._in_a_row > FAILURES_IN_A_ROW or not (self.starts or halved):
            raise error
        log.warning("%s. Starting the engine again%s.", str(error).removesuffix("."), HALVED if halved else "")
        time.sleep(RETRY_PAUSE)

    def _check_alive(self, engine: Engine) -> None:
        """Before giving up, repeat an answered request: several culprits can follow each other.

        Raises:
            EngineDied: the engine crashes on that request too.
        """
        if self._in_a_row == FAILURES_IN_A_ROW and self._last_answered is not None:
            request = replace(self._last_answered, sampling=Sampling(max_tokens=1), scored=0)
            if any(isinstance(answer, Generation) for answer in engine.generate([request])):
                self._in_a_row = 0

    def _recover(self, crash: EngineDied, quarantine: Quarantine) -> None:
        """Choose the configuration and the requests of the next start.

        Raises:
            EngineDied: the engine crashed too often.
        """
        self.crashes += 1
        self.config = self.config.for_restart()
        if isinstance(crash, EngineOutOfMemory) and self._halve():
            repeated = quarantine.repeat_in_flight()
            log.warning(
                "%s (crash %d). Restarting the engine%s; requests to repeat: %d.", crash, self.crashes, HALVED, repeated
            )
            return
        finding = quarantine.engine_crashed(crash.culprits)
        if finding is Finding.CULPRITS:
            self._in_a_row += 1
            self._culprits_found += 1
            self._unexplained = max(0, self._unexplained - 1)
            if isinstance(crash, EngineOutOfMemory):  # the number of requests was not the cause
                self.config, self._halvings = self._initial_config.for_restart(), 0
        elif finding is Finding.UNEXPLAINED:
            self._in_a_row += 1
            self._unexplained += 1
        exhausted = self._unexplained > UNEXPLAINED_CRASHES or self._culprits_found > CULPRITS_FOUND
        if exhausted or self._in_a_row > FAILURES_IN_A_ROW:
            raise type(crash)(f"{crash}; the engine crashed {counted(self.crashes, 'time')} and is not restarted.")
        log.warning("%s (crash %d). Restarting the engine; %s.", crash, self.crashes, quarantine.describe())

    def _halve(self) -> bool:
        """Halve the concurrency of the next start; return False if the limit is reached."""
        smaller = self.config.smaller()
        if smaller is None or self._halvings == HALVINGS:
            return False
        self.config = smaller.for_restart()
        self._halvings += 1
        return True
