"""Shard state: a small file by which a worker reports the progress of its shard to the coordinator."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sweep.util import atomic, state_files

log = logging.getLogger(__name__)

PERIOD = 1.0  # seconds between writes
WORKING, WAITING, DONE, FAILED = "working", "waiting for a control", "done", "failed"


@dataclass(slots=True)
class ShardState:
    """The progress of a shard.

    Attributes:
        state: `WORKING`, `WAITING`, `DONE` or `FAILED`.
        requests: number of requests of the shard.
        done: number of requests that are answered.
        tokens: number of generated tokens.
        engine_starts: engine starts while this shard was run, by all its workers. One of several shards that overlap
            counts them.
        costs: costs of the shard once its worker has left it, see `SharedCosts.sums`.
        reason: why the shard failed, or None.
        host: host of the worker.
        pid: process id of the worker.
    """

    state: str = WORKING
    requests: int = 0
    done: int = 0
    tokens: int = 0
    engine_starts: int = 0
    costs: dict[str, float] = field(default_factory=dict)
    reason: str | None = None
    host: str = ""
    pid: int = 0

    @property
    def ended(self) -> bool:
        """Whether the shard is done or failed."""
        return self.state in (DONE, FAILED)


class StateFile:
    """Writes a shard's state to disk, at most once per `PERIOD`.

    Owned by the worker's main thread until all answers are received, then by the thread that finishes the shard.
    """

    def __init__(self, path: Path) -> None:
        previous = read_state(path) or ShardState()
        self.state = ShardState(
            engine_starts=previous.engine_starts, costs=previous.costs, host=socket.gethostname(), pid=os.getpid()
        )
        self._path, self._written_at = path, 0.0

    def advance(self, tokens: int) -> None:
        """Count an answer and its tokens."""
        self.state.done += 1
        self.state.tokens += tokens
        self.write()

    def add_costs(self, costs: Mapping[str, float]) -> None:
        """Add costs of the shard."""
        self.state.costs = {name: self.state.costs.get(name, 0.0) + value for name, value in costs.items()}

    def write(self, *, now: bool = False) -> None:
        """Write the state unless it was written within the last `PERIOD`.

        Args:
            now: write in any case.
        """
        if not now and time.monotonic() - self._written_at < PERIOD:
            return
        self._written_at = time.monotonic()
        try:
            atomic.replace(self._path, lambda path: path.write_text(json.dumps(asdict(self.state))))
        except OSError as error:  # only the display depends on it, results are in the journal
            log.warning("%s cannot be written: %s. The shard continues.", self._path, error.strerror or error)


def read_state(path: Path) -> ShardState | None:
    """Return a shard's state, or None if no worker has started it."""
    try:
        return state_files.build(ShardState, state_files.parse(state_files.read(path)))
    except (OSError, ValueError, TypeError):
        return None
