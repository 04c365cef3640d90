"""How far a shard is, told by whoever works it off to whoever waits for it, by way of a small file."""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sweep.disk import atomic

log = logging.getLogger(__name__)

PERIOD = 1.0  # seconds between writes
WORKING, WAITING, DONE, FAILED = "working", "waiting for a control", "done", "failed"


@dataclass(slots=True)
class State:
    """A shard's state.

    Attributes:
        state: one of the above.
        requests: how many there are to be answered, and `done`: have been.
        tokens: generated.
        engine_starts: engines started for it, by earlier processes too; none if the process had one open.
        costs: what it took, as of `SharedCosts.sums`, once it has been left.
        reason: why it failed.
        host, pid: of the process.
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
        """Whether the process has left it."""
        return self.state in (DONE, FAILED)


class StateFile:
    """A shard's state on its way to disk, at most once in a while."""

    def __init__(self, path: Path) -> None:
        before = read_state(path) or State()
        self.state = State(
            engine_starts=before.engine_starts, costs=before.costs, host=socket.gethostname(), pid=os.getpid()
        )
        self._path, self._written = path, 0.0

    def advance(self, tokens: int) -> None:
        """Count an answer."""
        self.state.done += 1
        self.state.tokens += tokens
        self.write()

    def add_costs(self, costs: Mapping[str, float]) -> None:
        """Add what the process took for the shard."""
        self.state.costs = {name: self.state.costs.get(name, 0.0) + value for name, value in costs.items()}

    def write(self, *, now: bool = False) -> None:
        """Write the state, if that was not done just now; `now`: none the less."""
        if not now and time.monotonic() - self._written < PERIOD:
            return
        self._written = time.monotonic()
        try:
            atomic.replace(self._path, lambda path: path.write_text(json.dumps(asdict(self.state))))
        except OSError as error:  # what counts is in the journal
            log.warning("The state of the shard cannot be written: %s.", error.strerror or error)


def read_state(path: Path) -> State | None:
    """Return a shard's state; None: nobody has begun it."""
    try:
        return State(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None
