"""A tracker in a process of its own.

MLflow's client takes some 40 ms of Python for a point, in which the engine's own Python would wait for the interpreter,
and three seconds to be imported, which pass while the engine's library is.
"""

from __future__ import annotations

import logging
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sweep.config import TrackingConfig
from sweep.errors import SweepError, TrackingError
from sweep.redaction import Redact
from sweep.tracking.links import Links
from sweep.tracking.records import Closing, PointRecord, Table
from sweep.tracking.store import import_mlflow
from sweep.tracking.tracker import Tracker

log = logging.getLogger(__name__)

END_SECONDS = 5.0  # in which a process that nobody needs any more may finish what it is in the middle of
NUMBER = 8  # bytes before a call and its answer
ASKED_TO_END = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)  # which groups of processes are sent


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

    A process that dies fails the calls that it was given, as a `TrackingError`; the next call starts another one.
    Calls are numbered and answers are read on a thread of their own, so that an interrupt in the middle of a call
    leaves the others as they are.
    """

    def __init__(self, config: TrackingConfig, root: Path, sweep_id: str) -> None:
        """Start the process; nothing is reached or made yet."""
        self._made_of = config, root, sweep_id
        self._known = Known.of(here := Tracker(*self._made_of))
        self.is_local, self.is_sqlite = here.is_local, here.is_sqlite
        self._lock = threading.Lock()  # of what follows
        self._numbers = count()
        self._connecting: Future[Any] | None = None
        self._used = self._ended = False
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

    def prepare(self) -> None:
        """Have the process begin to reach the store, for which `connect` then waits."""
        with suppress(TrackingError):  # which `connect` will say
            self._connecting = self._ask("connect")

    def connect(self) -> None:
        """As of `Tracker`."""
        connecting, self._connecting = self._connecting, None
        _ = self._call("connect") if connecting is None else connecting.result()

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

    def close(self, closing: Closing) -> dict[str, str]:
        """As of `Tracker`."""
        pages: dict[str, str] = self._call("close", closing)
        return pages

    def describe(self, description: str) -> None:
        """As of `Tracker`."""
        self._call("describe", description)

    def finish(self, status: str, metrics: Mapping[str, float], tags: Mapping[str, str] | None = None) -> None:
        """As of `Tracker`."""
        self._call("finish", status, dict(metrics), tags and dict(tags))

    def end(self, seconds: float = END_SECONDS) -> None:
        """End the process, which may have so long for what it is in the middle of; it takes no more."""
        with self._lock:
            self._ended = True
            self._hang_up()
        if not self._used:
            self._process.kill()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:  # it ends by itself, soon
            log.info("The process that publishes is still at it.")

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
        self._socket, self._connection = ours, Connection(os.dup(ours.fileno()))
        self._connection.send_bytes(pickle.dumps((self._made_of, self._known.parent)))
        self._gone, self._asked = False, dict[int, Future[Any]]()
        arguments = self._connection, self._asked, self._process
        threading.Thread(target=self._read, args=arguments, name="tracker answers", daemon=True).start()

    def _call(self, method: str, *arguments: Any, **named: Any) -> Any:
        return self._ask(method, *arguments, **named).result()

    def _ask(self, method: str, *arguments: Any, **named: Any) -> Future[Any]:
        """Send a call, to another process if the one before is gone.  Raises TrackingError: it cannot be sent."""
        try:
            call = pickle.dumps((method, arguments, named))
            with self._lock:
                if self._ended:
                    raise RuntimeError("the sweep has ended")
                if self._gone:
                    self._start()
                return self._send(call)
        except Exception as error:  # what cannot be pickled, no memory for a process
            raise _not_asked(f"the process that publishes cannot be reached: {error}") from error

    def _send(self, call: bytes) -> Future[Any]:
        self._used = True
        number, asked = next(self._numbers), Future[Any]()
        self._asked[number] = asked
        try:
            self._connection.send_bytes(number.to_bytes(NUMBER, "big") + call)
        except BaseException:  # also an interrupt, which may have come in the middle of it
            self._asked.pop(number, None)
            self._hang_up()
            raise
        return asked

    def _read(self, connection: Connection, waiting: dict[int, Future[Any]], process: subprocess.Popen[bytes]) -> None:
        """Give answers to those who wait for them, as long as there are any."""
        try:
            while True:
                answer = connection.recv_bytes()
                error, value, known = pickle.loads(answer[NUMBER:])
                asked = waiting.pop(int.from_bytes(answer[:NUMBER], "big"))
                if error is not None:
                    asked.set_exception(error)
                else:
                    self._known = known
                    asked.set_result(value)
        except Exception as error:
            log.info("The process that publishes says no more.", exc_info=not isinstance(error, EOFError))
        with self._lock:
            if connection is self._connection:
                self._hang_up()
            connection.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
        reason = f"the process that publishes has ended (exit code {process.returncode})"
        for asked in waiting.values():
            asked.set_exception(_not_asked(reason))

    def _hang_up(self) -> None:
        """Have both sides notice that nothing more is said here."""
        self._gone = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


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
    made_of, parent = pickle.loads(connection.recv_bytes())
    tracker = Tracker(*made_of)
    calls: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    alone = threading.Event()
    threading.Thread(target=_take, args=(connection, calls, alone), daemon=True).start()
    import_mlflow()  # before it is needed
    while (call := calls.get()) is not None:
        answer = _answer(tracker, parent, call[NUMBER:], alone)
        with suppress(OSError):  # nobody waits for it
            connection.send_bytes(call[:NUMBER] + answer)
    os._exit(0)  # taking MLflow to pieces takes a second, for which the sweep would wait


def _take(connection: Connection, calls: queue.SimpleQueue[bytes | None], alone: threading.Event) -> None:
    """Hand calls on; once there will be none any more, end the process whatever it is in the middle of."""
    with suppress(Exception):
        while True:
            calls.put(connection.recv_bytes())
    alone.set()
    calls.put(None)
    time.sleep(END_SECONDS)
    os._exit(1)


def _answer(tracker: Tracker, parent: str | None, call: bytes, alone: threading.Event) -> bytes:
    """Return what a call comes to, and what the tracker knows then.

    Args:
        parent: the sweep's run, if a process before this one has known it.
    """
    try:
        method, arguments, named = pickle.loads(call)
        if alone.is_set() and method != "finish":  # the next run does it
            raise TrackingError("The sweep has ended.")
        if parent is not None and tracker.parent is None:
            tracker.attach(parent)
        value = getattr(tracker, method)(*arguments, **named)
        return pickle.dumps((None, value, Known.of(tracker)))
    except Exception as error:
        told = error if isinstance(error, SweepError) else _not_asked(f"{type(error).__name__}: {error}")
        told.add_note("".join(traceback.format_exception(error)))  # which does not get through the socket
        return pickle.dumps((told, None, None))


def _not_asked(reason: str) -> TrackingError:
    return TrackingError(f"MLflow could not be asked: {reason}", reason)
