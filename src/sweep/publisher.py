"""Scoring and publication of finished points, on a thread of its own, so that the engine never waits for MLflow."""

from __future__ import annotations

import logging
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from sweep.errors import TrackingError
from sweep.outcome import Answers, PointResult, Progress, conclude
from sweep.tracking import Tracker

log = logging.getLogger(__name__)

UNPUBLISHED = 64  # finished points that may wait for MLflow before the engine waits for them


class Publisher:
    """Takes points as they finish; those that finish before their control wait for it.

    Attributes:
        results: what became of each point, by `Point.key`, in the order in which they were published.
        controls: the controls' answers, by `Point.control_key`.
        errors: what MLflow did not take.
    """

    def __init__(self, tracker: Tracker) -> None:
        self.results: dict[str, PointResult] = {}
        self.controls: dict[str, Answers] = {}
        self.errors: list[str] = []
        self._tracker = tracker
        self._waiting: dict[str, list[Progress]] = {}
        self._thread = ThreadPoolExecutor(1, "publisher")
        self._unpublished: deque[Future[None]] = deque()
        self._tokens, self._seconds = 0, 0.0

    @property
    def tokens_per_second(self) -> float:
        """Output tokens of all points together over the seconds in which the engine worked."""
        return self._tokens / self._seconds if self._seconds else 0.0

    def count(self, tokens: int, seconds: float) -> None:
        """Add to what `tokens_per_second` is computed from."""
        self._tokens += tokens
        self._seconds += seconds

    def complete(self, progress: Progress) -> None:
        """Take a point whose prompts have all been answered."""
        point = progress.planned.point
        if point.is_control:
            self.controls[point.control_key] = progress.in_order()
            self._submit(progress)
            for waiting in self._waiting.pop(point.control_key, []):
                self._submit(waiting)
        elif point.control_key in self.controls:
            self._submit(progress)
        else:
            self._waiting.setdefault(point.control_key, []).append(progress)

    def fail(self, progress: Progress, reason: str) -> None:
        """Take a point that could not be finished."""
        log.warning("%s failed: %s", progress.planned.point.name, reason)
        progress.error = reason
        self._submit(progress)

    def fail_waiting(self, reason: str) -> None:
        """Take the points whose control will never be finished."""
        for waiting in self._waiting.values():
            for progress in waiting:
                self.fail(progress, reason)
        self._waiting.clear()

    def drain(self) -> None:
        """Wait until all that was taken is published."""
        self._wait_for(0)

    def close(self) -> None:
        """Drain, and end the thread."""
        try:
            self.drain()
        finally:
            self._thread.shutdown()

    def _submit(self, progress: Progress) -> None:
        control = None if progress.planned.point.is_control else self.controls.get(progress.planned.point.control_key)
        progress.ended = time.time()
        self._unpublished.append(self._thread.submit(self._publish, progress, control, self.tokens_per_second))
        self._wait_for(UNPUBLISHED)

    def _publish(self, progress: Progress, control: Answers | None, tokens_per_second: float) -> None:
        result, record = conclude(progress, control, tokens_per_second)
        self.results[result.point.key] = result
        try:
            self._tracker.publish(record)
        except TrackingError as error:
            self.errors.append(str(error))
            log.warning("%s", error)

    def _wait_for(self, limit: int) -> None:
        while len(self._unpublished) > limit:
            self._unpublished.popleft().result()
