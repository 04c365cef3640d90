"""A tracker in a process of its own.

MLflow's client takes some 40 ms of Python for a point, in which the engine's own Python would wait for the interpreter,
and three seconds to be imported, which pass while the engine's library is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweep.config import TrackingConfig
from sweep.errors import SweepError, TrackingError
from sweep.remote import END_SECONDS, Loss, Remote
from sweep.tracking.links import Links
from sweep.tracking.records import Closing, PointRecord, Table
from sweep.tracking.store import import_mlflow
from sweep.tracking.tracker import Tracker

NICE = 10  # as nobody waits for it, and the engine may want the same core


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

    A process that dies fails the calls that it was given, as a `TrackingError`; the next call starts another one, which
    takes the sweep's run up.
    """

    def __init__(self, config: TrackingConfig, root: Path, sweep_id: str) -> None:
        """Start the process; nothing is reached or made yet."""
        self._made_of = config, root, sweep_id
        self._known = Known.of(here := Tracker(*self._made_of))
        self.is_local, self.is_sqlite = here.is_local, here.is_sqlite
        self._connecting: Future[Any] | None = None
        self.remote = Remote(TrackerSide, lambda: (*self._made_of, self._known.parent), _lost, nice=NICE)

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
            self._connecting = self.remote.ask("call", "connect", (), {})

    def connect(self) -> None:
        """As of `Tracker`."""
        connecting, self._connecting = self._connecting, None
        if connecting is None:
            self._call("connect")
        else:
            self._take(connecting)

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
        self.remote.end(seconds)

    def _call(self, method: str, *arguments: Any, **named: Any) -> Any:
        return self._take(self.remote.ask("call", method, arguments, named))

    def _take(self, asked: Future[Any]) -> Any:
        try:
            value, self._known = asked.result()
        except SweepError:
            raise
        except Exception as error:
            raise _not_asked(f"{type(error).__name__}: {error}") from error
        return value


AnyTracker = Tracker | TrackerProcess


def open_tracker(config: TrackingConfig, root: Path, sweep_id: str) -> AnyTracker:
    """Return a sweep's tracker, in a process of its own unless it is to be in this one; nothing is reached yet."""
    kind: Callable[..., AnyTracker] = Tracker if config.in_process else TrackerProcess
    return kind(config, root, sweep_id)


class TrackerSide:
    """What lives in the other process."""

    def __init__(self, config: TrackingConfig, root: Path, sweep_id: str, parent: str | None) -> None:
        """Make the tracker.

        Args:
            parent: the sweep's run, if a process before this one has known it.
        """
        self._tracker, self._parent = Tracker(config, root, sweep_id), parent
        self._alone = threading.Event()
        import_mlflow()  # before it is needed

    def call(self, method: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Known]:
        """Return what one of the tracker's methods returns, and what the tracker knows then."""
        if self._alone.is_set() and method != "finish":  # the next run does it
            raise TrackingError("The sweep has ended.")
        if self._parent is not None and self._tracker.parent is None:
            self._tracker.attach(self._parent)
        value = getattr(self._tracker, method)(*arguments, **named)
        return value, Known.of(self._tracker)

    def left_alone(self) -> float:
        """Finish what is being done, and end the sweep's run if that is asked."""
        self._alone.set()
        return END_SECONDS


def _lost(reason: str, loss: Loss) -> TrackingError:
    return _not_asked(f"the process that publishes {reason}")


def _not_asked(reason: str) -> TrackingError:
    return TrackingError(f"MLflow could not be asked: {reason}", reason)
