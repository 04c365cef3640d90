"""A tracker in a process of its own.

MLflow's client takes some 40 ms of Python for a point, in which the engine's own Python would wait for the interpreter,
and three seconds to be imported, which pass while the engine's library is.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sweep.config import TrackingConfig
from sweep.errors import TrackingError
from sweep.redaction import Redact
from sweep.tracking.links import Links
from sweep.tracking.records import Closing, PointRecord, Table
from sweep.tracking.tracker import Tracker

END_SECONDS = 5.0  # in which a process that nobody needs any more may finish what it is in the middle of
ASKED_TO_END = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)  # which groups of processes are sent

Call = tuple[str, tuple[Any, ...], dict[str, Any]]  # a method's name and arguments


@dataclass(frozen=True, slots=True)
class Known:
    """What a tracker knows, as of its properties."""

    links: Links | None
    place: str
    parent: str | None
    row_by_row: str | None

    @classmethod
    def of(cls, tracker: Tracker) -> Known:
        """Return what a tracker knows now."""
        return cls(tracker.links, tracker.place, tracker.parent, tracker.row_by_row_url())


class TrackerProcess:
    """What a `Tracker` does, done in another process; all as there, but for what becomes of that process.

    A process that dies fails the call that it is at, as a `TrackingError`; the next call starts another one.
    """

    def __init__(self, config: TrackingConfig, root: Path, sweep_id: str) -> None:
        """Start the process; nothing is reached or made yet."""
        self._made_of = config, root, sweep_id
        self._known = Known.of(here := Tracker(*self._made_of))
        self.is_local, self.is_sqlite = here.is_local, here.is_sqlite
        self._lock = threading.Lock()
        self._start()

    @property
    def links(self) -> Links | None:
        """As of `Tracker`."""
        return self._known.links

    @property
    def place(self) -> str:
        """As of `Tracker`."""
        return self._known.place

    @property
    def parent(self) -> str | None:
        """As of `Tracker`."""
        return self._known.parent

    def row_by_row_url(self) -> str | None:
        """As of `Tracker`."""
        return self._known.row_by_row

    def connect(self) -> None:
        """As of `Tracker`."""
        self._call("connect")

    def parent_status(self) -> str | None:
        """As of `Tracker`."""
        status: str | None = self._call("parent_status")
        return status

    def attach(self, parent: str) -> None:
        """As of `Tracker`."""
        self._call("attach", parent)

    def start(self, name: str, command: str, config: str) -> bool:
        """As of `Tracker`."""
        return bool(self._call("start", name, command, config))

    def publish(self, record: PointRecord, table: Table, *, again: bool, replaces: str | None = None) -> str:
        """As of `Tracker`."""
        return str(self._call("publish", record, table, again=again, replaces=replaces))

    def supersede(self, run_id: str) -> None:
        """As of `Tracker`."""
        self._call("supersede", run_id)

    def close(self, closing: Closing) -> None:
        """As of `Tracker`."""
        self._call("close", closing)

    def finish(self, status: str, metrics: Mapping[str, float], tags: Mapping[str, str] | None = None) -> None:
        """As of `Tracker`."""
        self._call("finish", status, dict(metrics), tags and dict(tags))

    def end(self, seconds: float = END_SECONDS) -> None:
        """End the process, which may have so long for what it is in the middle of."""
        if not self._asked:
            self._process.kill()
        self._connection.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            code = (
                f"import sys; sys.path[:] = {sys.path!r}; "
                f"from sweep.tracking.process import serve; serve({theirs.fileno()})"
            )
            self._process = subprocess.Popen(
                [sys.executable, "-c", code], stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
            )
        self._connection = Connection(ours.detach())
        self._connection.send(self._made_of)
        self._asked = False

    def _call(self, method: str, *arguments: Any, **named: Any) -> Any:
        with self._lock:
            if self._connection.closed or self._process.poll() is not None:
                self._connection.close()
                self._start()
                if self._known.parent is not None:
                    self._ask(("attach", (self._known.parent,), {}))
            return self._ask((method, arguments, named))

    def _ask(self, call: Call) -> Any:
        self._asked = True
        try:
            self._connection.send(call)
            error, value, self._known = self._connection.recv()
        except (EOFError, OSError) as gone:
            self._connection.close()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_SECONDS)
            reason = f"the process that publishes has ended (exit code {self._process.returncode})"
            raise TrackingError(f"MLflow could not be asked: {reason}", reason) from gone
        if error is not None:
            raise error
        return value


AnyTracker = Tracker | TrackerProcess


def open_tracker(config: TrackingConfig, root: Path, sweep_id: str) -> AnyTracker:
    """Return a sweep's tracker, in a process of its own unless it is to be in this one; nothing is reached yet."""
    kind: Callable[..., AnyTracker] = Tracker if config.in_process else TrackerProcess
    return kind(config, root, sweep_id)


def serve(number: int) -> None:
    """Be the process: answer calls until whoever makes them has closed the socket of that number, or is gone."""
    for asked in ASKED_TO_END:  # the sweep's own process is too, and wants its run ended
        signal.signal(asked, signal.SIG_IGN)
    handler = logging.StreamHandler()
    handler.addFilter(Redact())
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", handlers=[handler]
    )
    connection = Connection(number)
    tracker = Tracker(*connection.recv())
    calls: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, calls), daemon=True).start()
    tracker.warm_up()
    while (call := calls.get()) is not None:
        answer = _answer(tracker, call)
        with suppress(OSError):  # nobody waits for it
            connection.send((*answer, Known.of(tracker)))
    os._exit(0)  # taking MLflow to pieces takes a second, for which the sweep would wait


def _read(connection: Connection, calls: queue.SimpleQueue[Call | None]) -> None:
    """Hand calls on; once there will be none any more, end the process whatever it is in the middle of."""
    while True:
        try:
            calls.put(connection.recv())
        except (EOFError, OSError):
            calls.put(None)
            time.sleep(END_SECONDS)
            os._exit(1)


def _answer(tracker: Tracker, call: Call) -> tuple[Exception | None, Any]:
    method, arguments, named = call
    try:
        return None, getattr(tracker, method)(*arguments, **named)
    except Exception as error:
        error.add_note("".join(traceback.format_exception(error)))  # which does not get through the socket
        return error, None
