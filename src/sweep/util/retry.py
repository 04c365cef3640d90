"""Retry schedule: how long to wait after a failed call, and when to give up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0  # seconds between attempts


class Patience:
    """Waits between attempts: without a limit at first, and for a fixed number of seconds once `hurry` is called.

    Owned by the thread that makes the calls. `hurry` and `end` may be called from any thread.
    """

    def __init__(
        self,
        seconds: float,
        now: Callable[[], float] = time.monotonic,
        wait: Callable[[threading.Event, float], object] = threading.Event.wait,
    ) -> None:
        """Start without a deadline.

        Args:
            seconds: how long attempts continue after `hurry`.
            now: returns the time in seconds.
            wait: waits for an event, or until a number of seconds has passed.
        """
        self._seconds, self._now, self._wait = seconds, now, wait
        self._hurry, self._ended = threading.Event(), threading.Event()
        self._deadline: float | None = None

    def hurry(self) -> None:
        """Set the deadline `seconds` from now and end a wait in progress."""
        if self._deadline is None:
            self._deadline = self._now() + self._seconds
            self._hurry.set()

    def end(self) -> None:
        """Give up at the next failure."""
        self._deadline = self._now()
        self._hurry.set()
        self._ended.set()

    def pause(self, attempt: int) -> bool:
        """Wait until the next attempt is due.

        Args:
            attempt: number of failed attempts so far.

        Returns:
            Whether to make another attempt; False once the deadline has passed.
        """
        deadline = self._deadline
        if deadline is None:
            self._wait(self._hurry, min(FIRST_WAIT * 2.0 ** min(attempt - 1, 10), LONGEST_WAIT))
            return True
        if (left := deadline - self._now()) <= 0:
            return False
        self._wait(self._ended, min(FIRST_WAIT, left))  # the last attempt is made at the deadline
        return True
