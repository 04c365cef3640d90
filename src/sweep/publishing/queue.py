"""Publish queue: sends archived points to MLflow and retries while it is unavailable."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from sweep.core.timing import SharedCosts
from sweep.errors import TrackingError
from sweep.processes.background_thread import BackgroundThread
from sweep.storage.archive import Archive, Archived
from sweep.storage.publish_log import PublishLog
from sweep.tracking import AnyTracker, Publication
from sweep.util.retry import Patience

MAX_NAMES = 3  # number of points that a line names

log = logging.getLogger(__name__)

T = TypeVar("T")

TOGETHER = 16  # maximum number of points published in one call
GIVEN_UP = 3  # failures in a row after which no more points are tried: each attempt may take a minute to fail


class PublishQueue:
    """Publishes archived points in order, on its own background thread.

    Methods may be called from the main and the scoring thread. Life cycle: starts with the parent run; `close` waits
    for all points, `abandon` leaves them for the next run.

    Attributes:
        unpublished: reason why a point was given up, by its name. The point stays in the archive.
    """

    def __init__(
        self,
        tracker: AnyTracker,
        archive: Archive,
        publish_log: PublishLog,
        costs: SharedCosts,
        begin: Callable[[], bool],
        patience: Patience,
    ) -> None:
        """Start the thread, which first opens the parent run.

        Args:
            tracker: where to publish.
            archive: where to read the points' tables.
            publish_log: which points have been published already.
            costs: collects the time that publishing takes.
            begin: creates or resumes the parent run. Returns whether it existed: then an earlier process may have
                published points without logging them.
            patience: decides when to retry and when to give up; its deadline starts once all other work is done.
        """
        self.unpublished: dict[str, str] = {}
        self._tracker, self._archive, self._publish_log = tracker, archive, publish_log
        self._costs, self._begin, self._patience = costs, begin, patience
        self._begun = self._retry = False
        self._given_up, self._last_error = 0, TrackingError("MLflow has not been contacted yet.")
        self._has_parent = threading.Event()
        self._unreachable = False
        self._waiting: deque[Archived] = deque()
        self._uncertain: set[str] = set()  # keys of points that a failed attempt may have published
        # One item per point. Its turn publishes the point alone, or together with others that wait.
        self._worker: BackgroundThread[Archived | None] = BackgroundThread("publisher", self._publish)
        self._worker.put(None)

    def put(self, archived: Archived) -> None:
        """Add a point to publish, unless the publish log has it."""
        if not self._publish_log.has(archived.key, archived.record):
            self._waiting.append(archived)
            self._worker.put(archived)

    def wait_for_parent(self, seconds: float) -> bool:
        """Wait for the parent run, and return whether it exists."""
        return self._has_parent.wait(seconds)

    def drain(self) -> None:
        """Wait until all points added so far are published or given up."""
        self._worker.drain()

    def check_before_publishing(self) -> None:
        """Check the tracker for each point before publishing it, from now on: another process may have published it."""
        self.drain()
        self._retry = True

    def hurry(self) -> None:
        """Start the deadline after which failing calls are given up."""
        self._patience.hurry()

    def close(self) -> None:
        """Wait until all points are published or given up, and end the thread."""
        self.hurry()
        self._worker.close()

    def abandon(self, seconds: float) -> None:
        """Leave waiting points to the next run; wait at most `seconds` for the current call."""
        self._patience.end()
        self._worker.abandon(seconds)

    def call_with_retries(self, call: Callable[[bool], T], *, once_at_least: bool = False) -> T:
        """Return the result of a call to the tracker; retry while there is patience.

        Args:
            call: takes whether an earlier attempt may have succeeded.
            once_at_least: try the call even if several points were given up, which MLflow may have refused for their
                contents.

        Raises:
            TrackingError: the last attempt failed.
        """
        if self._given_up >= GIVEN_UP and not once_at_least:
            raise self._last_error
        attempt, retry = 0, self._retry
        while True:
            try:
                result = call(retry)
            except TrackingError as error:
                attempt, retry = attempt + 1, True
                self._warn_unreachable(error)
                if not self._patience.pause(attempt):
                    self._given_up, self._last_error = self._given_up + 1, error
                    raise
            else:
                self._given_up = 0
                self._log_reachable()
                return result

    def _publish(self, turn: Archived | None) -> None:
        """Publish waiting points; None: only open the parent run, which shows that the sweep is running."""
        try:
            if not self._begun:
                self._retry = self.call_with_retries(lambda _: self._begin())
                self._begun = True
                self._has_parent.set()
        except TrackingError as error:
            self.unpublished["the parent run" if turn is None else turn.record.name] = error.reason
            if turn is not None:
                self._waiting.remove(turn)
            return
        if turn is None:
            return
        points = [self._waiting.popleft() for _ in range(min(TOGETHER, len(self._waiting)))]
        # Checked in `put` too, but the log is complete only once the tracker is connected.
        points = [point for point in points if not self._publish_log.has(point.key, point.record)]
        points = list({point.key: point for point in points}.values())  # each batch of a search has the control again
        if len(points) > 1 and self._given_up < GIVEN_UP:
            points = points[self._publish_together(points) :]
        if points:
            self._publish_point(points[0])
        self._waiting.extendleft(reversed(points[1:]))  # each of them still has a turn

    def _publish_together(self, points: Sequence[Archived]) -> int:
        """Publish points in one call, and return the number of leading points that were published."""
        # With a call per point, this thread would wait for the GIL several times per point while the engine is busy.
        retry = self._retry or any(point.key in self._uncertain for point in points)
        try:
            with self._costs.timing("publish_seconds"):
                done = self._tracker.publish_all([self._publication(point) for point in points], retry=retry)
        except TrackingError:  # the next attempt at the first point reports it
            self._uncertain.update(point.key for point in points)
            return 0
        for point, run_id in zip(points, done, strict=False):
            if run_id is None:
                self._uncertain.add(point.key)
            else:
                self._log_published(point, run_id)
        if None in done:  # points after the first failure have another turn, which skips those in the log
            return done.index(None)
        self._log_reachable()
        return len(done)

    def _publish_point(self, point: Archived) -> None:
        def publish(retry: bool) -> str:
            publication = self._publication(point)
            with self._costs.timing("publish_seconds"):
                retry = retry or point.key in self._uncertain
                return self._tracker.publish(
                    publication.record, publication.table, retry=retry, replaces=publication.replaces
                )

        try:
            run_id = self.call_with_retries(publish)
        except TrackingError as error:
            self.unpublished[point.record.name] = error.reason
        else:
            self._log_published(point, run_id)

    def _publication(self, point: Archived) -> Publication:
        earlier = self._publish_log.entries.get(point.key)
        # Read by the process that publishes, which may be another one.
        table = partial(self._archive.table, point.key)
        return Publication(point.record, table, None if earlier is None else earlier.run_id)

    def _log_published(self, point: Archived, run_id: str) -> None:
        self._uncertain.discard(point.key)
        try:
            self._publish_log.add(point.key, point.record, run_id)
        except OSError as error:  # the next run finds the point at the tracker
            log.warning("The publish log could not be written: %s.", error.strerror or error)

    def _warn_unreachable(self, error: TrackingError) -> None:
        if not self._unreachable:
            log.warning("%s Generation continues; publishing is retried.", error)
        self._unreachable = True

    def _log_reachable(self) -> None:
        if self._unreachable:
            log.warning("MLflow is reachable again. Waiting points are published now.")
        self._unreachable = False


def unpublished_lines(reasons: Mapping[str, str], command: str) -> list[str]:
    """Return one line per reason with the points' names, and the command that publishes them."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    lines = [
        f"{', '.join(group[:MAX_NAMES])}{f' and {len(group) - MAX_NAMES} more' if len(group) > MAX_NAMES else ''}: "
        f"not published, kept for the next run: {reason}"
        for reason, group in names.items()
    ]
    return [*lines, f"To publish finished points later, run: {command}"] if lines else []
