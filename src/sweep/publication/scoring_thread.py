"""Scoring of finished points, on a thread of its own, so that the engine waits neither for measures nor for MLflow."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

from sweep import versions
from sweep.costs import Costs, SharedCosts
from sweep.disk.archive import Archive, Archived
from sweep.outcome import Against, Answers, Forced, PointResult, Progress
from sweep.publication.worker import Worker

if TYPE_CHECKING:
    from sweep.conclusion import Outcome

log = logging.getLogger(__name__)

UNSCORED = 64  # finished points that may wait to be scored before the engine waits for them


class ScoringThread:
    """Takes points as they finish; those that finish before their control and its second run wait for both.

    Attributes:
        controls: the controls' answers, by `Point.control_key`.
        failed: how many points failed.
    """

    def __init__(self, archive: Archive, tell: Callable[[PointResult, Archived], None], costs: SharedCosts) -> None:
        """Start.

        Args:
            archive: where scored points are kept.
            tell: takes what became of a point, when it is archived.
            costs: told what scoring takes, and telling points what the batch took that they shared.
        """
        self.controls: dict[str, Answers] = {}
        self.failed = 0
        self._archive, self._tell, self._costs = archive, tell, costs
        self._forced: dict[str, Forced] = {}
        self._floors: dict[str, Answers | None] = {}
        self._held: dict[str, list[Progress]] = {}
        self._left: dict[str, Costs] = {}  # by `Identity.result_key`
        self._worker: Worker[tuple[Progress, Against]] = Worker("scoring", self._score, UNSCORED)

    def complete(self, progress: Progress) -> None:
        """Take a point whose prompts have all been answered."""
        point = progress.planned.point
        self._costs.points.add(progress.costs)
        if not progress.is_floor and (before := self._left.pop(progress.planned.identity.result_key, None)):
            progress.costs.add(before)
        progress.shared = self._costs.now()
        if progress.is_floor:
            self._floors[point.control_key] = progress.in_order()
        elif not progress.planned.done:
            self._held.setdefault(point.control_key, []).append(progress)
        if point.is_control and not progress.is_floor:
            self.controls[point.control_key] = progress.in_order()
            self._forced[point.control_key] = progress.forced
            if progress.planned.runs < 2:
                self._floors[point.control_key] = None
        if point.control_key in self.controls and point.control_key in self._floors:
            self._release(point.control_key)

    def leave(self, progress: Progress) -> None:
        """Take a point that is to be scored by another process or later, from the journal: only what it has cost."""
        self._costs.points.add(progress.costs)
        self._left[progress.planned.identity.result_key] = progress.costs

    def fail(self, progress: Progress, reason: str, trace: str | None = None) -> None:
        """Take a point that could not be finished."""
        self._costs.points.add(progress.costs)
        self._fail(progress, reason, trace)

    def _fail(self, progress: Progress, reason: str, trace: str | None = None) -> None:
        point = progress.planned.point
        if progress.planned.done:  # it was finished before, and is here for others
            return
        if progress.is_floor:  # then there is no noise floor, and nothing is lost but that
            self._floors.setdefault(point.control_key, None)
            if point.control_key in self.controls:
                self._release(point.control_key)
            return
        progress.error, progress.traceback = reason, trace
        self._submit(progress)

    def end_waiting(self, reason: str, *, for_floors: bool = True) -> None:
        """Fail what waits for a control that will never come.

        Args:
            reason: why.
            for_floors: whether noise floors will not come either, so that what waits for one is scored without.
        """
        for control_key in list(self._held):
            if control_key in self.controls:
                if not for_floors:  # the next run finds the answers in the journal, and asks for the floor
                    continue
                self._floors.setdefault(control_key, None)
                self._release(control_key)
            for progress in self._held.pop(control_key, []):
                self._fail(progress, reason)

    def drain(self) -> None:
        """Wait until all that was taken is scored and archived."""
        self._worker.drain()

    def close(self) -> None:
        """Wait as `drain` does, and take no more."""
        self._worker.close()

    def abandon(self, seconds: float) -> None:
        """Leave what waits for the next run, which finds its answers in the journal."""
        self._worker.abandon(seconds)

    def _release(self, control_key: str) -> None:
        held = self._held.pop(control_key, [])
        for progress in sorted(held, key=lambda progress: not progress.planned.point.is_control):
            self._submit(progress)

    def _submit(self, progress: Progress) -> None:
        key = progress.planned.point.control_key
        against = Against(self.controls.get(key), self._floors.get(key), self._forced.get(key, {}))
        progress.ended = time.time()
        self._worker.put((progress, against))

    def _score(self, work: tuple[Progress, Against]) -> None:
        progress, against = work
        with self._costs.timing("score_seconds"):
            outcome = self._conclude(progress, against)
            archived = self._archive.add(progress.planned.identity.result_key, outcome.record, outcome.rows)
        result = outcome.result
        if result.error is not None:
            self.failed += 1
            log.warning("%s failed (%s): %s", result.point.name, result.point.overrides, result.error)
        self._tell(result, archived)

    def _conclude(self, progress: Progress, against: Against) -> Outcome:
        # Here and not above, so that SciPy is imported on this thread, while the engine generates.
        from sweep.conclusion import conclude

        engine = progress.planned.point.config.engine
        tags = {**versions.tags(engine.name), **engine.tags()}
        try:
            return conclude(progress, against, tags)
        except Exception as error:  # a scorer of the user's, or a mistake of ours: it is this point's alone
            progress.error, progress.traceback = str(error), traceback.format_exc()
            return conclude(progress, against, tags)
