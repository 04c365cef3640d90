"""Scoring and publication of finished points, on a thread of its own, so that the engine never waits for MLflow."""

from __future__ import annotations

import logging
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

from sweep.archive import Archive
from sweep.errors import TrackingError
from sweep.outcome import Against, Answers, Forced, PointResult, Progress, conclude
from sweep.tracking import Tracker

log = logging.getLogger(__name__)

UNPUBLISHED = 64  # finished points that may wait for MLflow before the engine waits for them


class Publisher:
    """Takes points as they finish; those that finish before their control and its second run wait for both.

    Attributes:
        results: what became of each point, by `Point.key`, in the order in which they were published.
        controls: the controls' answers, by `Point.control_key`.
        errors: what MLflow did not take.
        runs: MLflow's id of each point's run, by the point's index.
        archive: every published generation.
    """

    def __init__(self, tracker: Tracker, archive: Archive) -> None:
        self.results: dict[str, PointResult] = {}
        self.controls: dict[str, Answers] = {}
        self.errors: list[str] = []
        self.runs: dict[int, str] = {}
        self._tracker, self.archive = tracker, archive
        self._forced: dict[str, Forced] = {}
        self._floors: dict[str, Answers | None] = {}
        self._held: dict[str, list[Progress]] = {}
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
        if progress.is_floor:
            self._floors[point.control_key] = progress.in_order()
        else:
            self._held.setdefault(point.control_key, []).append(progress)
        if point.is_control and not progress.is_floor:
            self.controls[point.control_key] = progress.in_order()
            self._forced[point.control_key] = progress.forced
            if not point.config.scoring.noise_floor:
                self._floors[point.control_key] = None
        if point.control_key in self.controls and point.control_key in self._floors:
            self._release(point.control_key)

    def fail(self, progress: Progress, reason: str) -> None:
        """Take a point that could not be finished."""
        if progress.is_floor:  # then there is no noise floor, and nothing is lost but that
            self._floors.setdefault(progress.planned.point.control_key, None)
            return
        log.warning("%s failed: %s", progress.planned.point.name, reason)
        progress.error = reason
        self._submit(progress)

    def end_waiting(self, reason: str) -> None:
        """Publish what waits for a noise floor that will never come, and fail what waits for a control."""
        for control_key in list(self._held):
            if control_key in self.controls:
                self._floors.setdefault(control_key, None)
                self._release(control_key)
            for progress in self._held.pop(control_key, []):
                self.fail(progress, reason)

    def drain(self) -> None:
        """Wait until all that was taken is published."""
        self._wait_for(0)

    def close(self) -> None:
        """Drain, and end the thread."""
        try:
            self.drain()
        finally:
            self._thread.shutdown()

    def _release(self, control_key: str) -> None:
        held = self._held.pop(control_key, [])
        for progress in sorted(held, key=lambda progress: not progress.planned.point.is_control):
            self._submit(progress)

    def _submit(self, progress: Progress) -> None:
        key = progress.planned.point.control_key
        against = Against(self.controls.get(key), self._floors.get(key), self._forced.get(key, {}))
        progress.ended = time.time()
        self._unpublished.append(self._thread.submit(self._publish, progress, against, self.tokens_per_second))
        self._wait_for(UNPUBLISHED)

    def _publish(self, progress: Progress, against: Against, tokens_per_second: float) -> None:
        result, record, rows = conclude(progress, against, tokens_per_second)
        self.results[result.point.key] = result
        self.archive.add(result.index, rows)
        try:
            self.runs[result.index] = self._tracker.publish(record)
        except TrackingError as error:
            self.errors.append(str(error))
            log.warning("%s", error)

    def _wait_for(self, limit: int) -> None:
        while len(self._unpublished) > limit:
            self._unpublished.popleft().result()
