"""Tracker process: runs the tracker in a child process.

Publishing is Python code, during which the engine's Python would wait for the GIL: about 40 ms per point through
MLflow's client, a tenth of it where complete runs are inserted. MLflow's import takes three seconds, which overlap with
the import of the engine's library.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweep.config.schema import TrackingConfig
from sweep.core.records import Closing, PointRecord, Publication, ReadTable, Table
from sweep.errors import SweepError, TrackingError
from sweep.processes.child import END_SECONDS, CallLoss, ChildProcess
from sweep.tracking.links import Links
from sweep.tracking.store import import_mlflow
from sweep.tracking.tracker import Tracker

NICE = 10  # low priority: nobody waits for this process, and the engine may need the same core


@dataclass(frozen=True, slots=True)
class TrackerState:
    """Snapshot of a tracker's properties, see `Tracker`; sent with each answer."""

    links: Links | None
    notes: tuple[str, ...]
    place: str
    parent: str | None
    row_by_row: str | None

    @classmethod
    def of(cls, tracker: Tracker) -> TrackerState:
        """Return the current properties of a tracker."""
        return cls(tracker.links, tracker.notes, tracker.place, tracker.parent, tracker.row_by_row_url())


class TrackerProcess:
    """A `Tracker` that runs in a child process; the same methods, see there.

    Used by the main thread and the publishing thread. If the child process dies, its open calls fail with a
    `TrackingError`. The next call starts another process, which resumes the parent run.
    """

    def __init__(self, config: TrackingConfig, root: Path, sweep_id: str) -> None:
        """Start the process; it does not contact the store yet."""
        self._arguments = config, root, sweep_id
        self._state = TrackerState.of(tracker := Tracker(*self._arguments))
        self.is_local, self.is_sqlite = tracker.is_local, tracker.is_sqlite
        self._connecting: Future[Any] | None = None
        self.remote = ChildProcess(TrackerHost, lambda: (*self._arguments, self._state.parent), _lost, nice=NICE)

    @property
    def links(self) -> Links | None:
        """See `Tracker`."""
        return self._state.links

    @property
    def notes(self) -> tuple[str, ...]:
        """See `Tracker`."""
        return self._state.notes

    @property
    def place(self) -> str:
        """See `Tracker`."""
        return self._state.place

    @property
    def parent(self) -> str | None:
        """See `Tracker`."""
        return self._state.parent

    def row_by_row_url(self) -> str | None:
        """See `Tracker`."""
        return self._state.row_by_row

    def prepare(self) -> None:
        """Start to open the store in the background; `connect` waits for it."""
        with suppress(TrackingError):  # `connect` will raise it
            self._connecting = self.remote.call("call", "connect", (), {})

    def connect(self) -> None:
        """See `Tracker`."""
        connecting, self._connecting = self._connecting, None
        if connecting is None:
            self._call("connect")
        else:
            self._take(connecting)

    def parent_status(self) -> str | None:
        """See `Tracker`."""
        status: str | None = self._call("parent_status")
        return status

    def attach(self, parent: str) -> None:
        """See `Tracker`."""
        self._call("attach", parent)

    def start(self, name: str, command: str, config: str) -> bool:
        """See `Tracker`."""
        return bool(self._call("start", name, command, config))

    def publish(
        self, record: PointRecord, table: Table | ReadTable, *, retry: bool, replaces: str | None = None
    ) -> str:
        """See `Tracker`."""
        return str(self._call("publish", record, table, retry=retry, replaces=replaces))

    def publish_all(self, points: Sequence[Publication], *, retry: bool) -> list[str | None]:
        """See `Tracker`."""
        done: list[str | None] = self._call("publish_all", list(points), retry=retry)
        return done

    def supersede(self, run_id: str) -> None:
        """See `Tracker`."""
        self._call("supersede", run_id)

    def close(self, closing: Closing) -> dict[str, str]:
        """See `Tracker`."""
        pages: dict[str, str] = self._call("close", closing)
        return pages

    def describe(self, description: str) -> None:
        """See `Tracker`."""
        self._call("describe", description)

    def finish(self, status: str, metrics: Mapping[str, float], tags: Mapping[str, str] | None = None) -> None:
        """See `Tracker`."""
        self._call("finish", status, dict(metrics), tags and dict(tags))

    def end(self, seconds: float = END_SECONDS) -> None:
        """End the process; wait at most `seconds` for its current call."""
        self.remote.close(seconds)

    def _call(self, method: str, *arguments: Any, **named: Any) -> Any:
        return self._take(self.remote.call("call", method, arguments, named))

    def _take(self, future: Future[Any]) -> Any:
        try:
            value, self._state = future.result()
        except SweepError:
            raise
        except Exception as error:
            raise _call_failed(f"{type(error).__name__}: {error}") from error
        return value


AnyTracker = Tracker | TrackerProcess


def open_tracker(config: TrackingConfig, root: Path, sweep_id: str) -> AnyTracker:
    """Return a sweep's tracker, in its own process unless `tracking.in_process` is set; it is not connected yet."""
    kind: Callable[..., AnyTracker] = Tracker if config.in_process else TrackerProcess
    return kind(config, root, sweep_id)


class TrackerHost:
    """Child side of `TrackerProcess`: owns the `Tracker`.

    Owned by the main thread of the tracker process. Only `on_caller_gone` is called on another thread.
    """

    def __init__(self, config: TrackingConfig, root: Path, sweep_id: str, parent: str | None) -> None:
        """Create the tracker.

        Args:
            config: tracking configuration.
            root: `sweep.dir`.
            sweep_id: the sweep's id.
            parent: id of the parent run, if an earlier process knew it.
        """
        self._tracker, self._parent = Tracker(config, root, sweep_id), parent
        self._caller_gone = threading.Event()
        import_mlflow()  # early, while the engine's library is imported

    def call(self, method: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, TrackerState]:
        """Return the result of one of the tracker's methods, and the tracker's properties after the call."""
        if self._caller_gone.is_set() and method != "finish":  # the next run publishes the rest
            raise TrackingError("The sweep has ended.")
        if self._parent is not None and self._tracker.parent is None:
            self._tracker.attach(self._parent)
        value = getattr(self._tracker, method)(*arguments, **named)
        return value, TrackerState.of(self._tracker)

    def on_caller_gone(self) -> float:
        """Refuse further calls except `finish`; return the seconds that pending calls may still take."""
        self._caller_gone.set()
        return END_SECONDS


def _lost(reason: str, loss: CallLoss) -> TrackingError:
    return _call_failed(f"the process that publishes {reason}")


def _call_failed(reason: str) -> TrackingError:
    return TrackingError(f"The call to MLflow failed: {reason}", reason)
