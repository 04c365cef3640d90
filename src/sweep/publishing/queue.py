"""Archived points on their way to MLflow, whose absence they outwait."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from sweep.costs import SharedCosts
from sweep.disk.archive import Archive, Archived
from sweep.disk.ledger import Ledger
from sweep.errors import TrackingError
from sweep.publication.worker import Worker
from sweep.tracking import AnyTracker

log = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds between attempts
GIVEN_UP = 3  # in a row, after which nothing more is tried: each attempt may take a minute to fail


class Outbox:
    """Publishes one archived point after the other, on a thread of its own.

    Attributes:
        unpublished: why a point was given up, by its name; it stays in the archive.
    """

    def __init__(
        self,
        tracker: AnyTracker,
        archive: Archive,
        ledger: Ledger,
        costs: SharedCosts,
        begin: Callable[[], bool],
        patience: float,
    ) -> None:
        """Start, with the sweep's own run.

        Args:
            tracker: where to.
            archive: where from.
            ledger: what is there already.
            costs: told what publication takes.
            begin: makes the sweep's own run, or takes it up; returns whether there was one, so that an earlier process
                may have published something without having had the time to say so.
            patience: seconds to go on trying once nothing else is left to be done.
        """
        self.unpublished: dict[str, str] = {}
        self._tracker, self._archive, self._ledger = tracker, archive, ledger
        self._costs, self._begin, self._patience = costs, begin, patience
        self._begun = self._again = False
        self._given_up, self._last_error = 0, TrackingError("MLflow was not asked.")
        self._deadline: float | None = None
        self._hurry, self._has_parent = threading.Event(), threading.Event()
        self._away = False
        self._worker: Worker[Archived | None] = Worker("publisher", self._publish)
        self._worker.put(None)

    def put(self, archived: Archived) -> None:
        """Take a point, unless it has been published."""
        if not self._ledger.has(archived.key, archived.record):
            self._worker.put(archived)

    def wait_for_parent(self, seconds: float) -> bool:
        """Wait for the sweep's own run, and return whether it is there."""
        return self._has_parent.wait(seconds)

    def look_first(self) -> None:
        """Take what waits to the tracker only after a look whether another process has had it there already."""
        self._worker.drain()
        self._again = True

    def hurry(self) -> None:
        """Have patience from now on, and not for ever."""
        if self._deadline is None:
            self._deadline = time.monotonic() + self._patience
            self._hurry.set()

    def close(self) -> None:
        """Wait until all that was taken is published, or given up; it takes no more."""
        self.hurry()
        self._worker.close()

    def abandon(self, seconds: float) -> None:
        """Leave what waits for the next run."""
        self._deadline = time.monotonic()
        self._hurry.set()
        self._worker.abandon(seconds)

    def insist(self, call: Callable[[bool], T], *, once_at_least: bool = False) -> T:
        """Return what a call to the tracker returns, which is made again as long as there is patience.

        Args:
            call: is told whether an earlier attempt may have got somewhere.
            once_at_least: try it although others have been given up, which MLflow may have refused for what they were.

        Raises:
            TrackingError: the last attempt's.
        """
        if self._given_up >= GIVEN_UP and not once_at_least:
            raise self._last_error
        wait, again = FIRST_WAIT, self._again
        while True:
            try:
                result = call(again)
            except TrackingError as error:
                again = True
                self._say_away(error)
                if self._deadline is not None and time.monotonic() + wait > self._deadline:
                    self._given_up, self._last_error = self._given_up + 1, error
                    raise
            else:
                self._given_up = 0
                self._say_back()
                return result
            # The event ends a long wait when the end has come, from when on it ends all waits at once.
            if self._hurry.is_set() or self._hurry.wait(wait):
                time.sleep(FIRST_WAIT)
            wait = min(2 * wait, LONGEST_WAIT)

    def _publish(self, archived: Archived | None) -> None:
        """Publish a point; None: only have the sweep's own run, which shows that it goes on."""
        try:
            if not self._begun:
                self._again = self.insist(lambda _: self._begin())
                self._begun = True
                self._has_parent.set()
        except TrackingError as error:
            self.unpublished["the sweep's own run" if archived is None else archived.record.name] = error.reason
            return
        # Not only when it is put in: until the tracker was reached, nobody knows what is there.
        if archived is not None and not self._ledger.has(archived.key, archived.record):
            self._publish_point(archived)

    def _publish_point(self, archived: Archived) -> None:
        record, earlier = archived.record, self._ledger.entries.get(archived.key)
        replaces = None if earlier is None else earlier.run_id

        def publish(again: bool) -> str:
            with self._costs.timing("publish_seconds"):
                table = self._archive.table(archived.key)
                return self._tracker.publish(record, table, again=again, replaces=replaces)

        try:
            run_id = self.insist(publish)
        except TrackingError as error:
            self.unpublished[record.name] = error.reason
        else:
            try:
                self._ledger.add(archived.key, record, run_id)
            except OSError as error:  # the next run finds it at the tracker
                log.warning("What was published could not be noted down: %s.", error.strerror or error)

    def _say_away(self, error: TrackingError) -> None:
        if not self._away:
            log.warning("%s Generation goes on; publication is tried again.", error)
        self._away = True

    def _say_back(self) -> None:
        if self._away:
            log.warning("MLflow is back; what waits is published now.")
        self._away = False
