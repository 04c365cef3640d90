"""Scoring stage: scores and archives finished points, each as soon as its control's answers are complete."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future

from sweep.core import provenance
from sweep.core.timing import Costs, SharedCosts
from sweep.inputs.prompt_set import PromptSet
from sweep.planning.results import Answers, ControlAnswers, Finished, Forced, PointResult, Progress
from sweep.processes.background_thread import BackgroundThread
from sweep.storage.archive import Archive, Archived
from sweep.workers import tasks
from sweep.workers.base import Scored, WorkerLost, WorkerPool

log = logging.getLogger(__name__)

_Work = tuple[Finished, PromptSet, Future[Scored] | None]

UNSCORED = 64  # maximum number of finished points that wait for scoring before the engine waits


class ScoringStage:
    """Scores points as they finish; points wait for their control and its second run.

    Methods are called by the thread that drives the engine, `close` also by the one that finishes a shard. The
    worker pool scores, and the background thread "scoring" collects the results, so the engine waits neither for
    scoring nor for MLflow.

    Attributes:
        controls: the controls' answers, by `Point.control_key`.
        failed: number of failed points; written by the background thread.
    """

    def __init__(
        self,
        pool: WorkerPool,
        archive: Archive,
        on_result: Callable[[PointResult, Archived], None],
        costs: SharedCosts,
    ) -> None:
        """Start the background thread.

        Args:
            pool: worker pool that scores points.
            archive: where scored points are stored.
            on_result: called on the background thread with each point's result, once it is archived.
            costs: timing shared by all points: collects scoring times, and gives each point the batch's shared times.
        """
        self.controls: dict[str, Answers] = {}
        self.failed = 0
        self._pool, self._archive, self._on_result, self._costs = pool, archive, on_result, costs
        self._forced: dict[str, Forced] = {}
        self._floors: dict[str, Answers | None] = {}
        self._held: dict[str, list[Progress]] = {}
        self._deferred: dict[str, Costs] = {}  # by `PointFingerprint.result_key`
        self._worker: BackgroundThread[_Work] = BackgroundThread("scoring", self._collect, UNSCORED)

    def complete(self, progress: Progress) -> None:
        """Add a point with answers to all prompts."""
        point = progress.planned.point
        self._costs.points.add(progress.costs)
        if not progress.is_floor and (
            deferred := self._deferred.pop(progress.planned.point_fingerprint.result_key, None)
        ):
            progress.costs.add(deferred)
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

    def defer(self, progress: Progress) -> None:
        """Record only the costs of a point that another process, or a later run, scores from the journal."""
        self._costs.points.add(progress.costs)
        self._deferred[progress.planned.point_fingerprint.result_key] = progress.costs

    def fail(self, progress: Progress, reason: str, trace: str | None = None) -> None:
        """Add a point that could not be finished."""
        self._costs.points.add(progress.costs)
        self._fail(progress, reason, trace)

    def _fail(self, progress: Progress, reason: str, trace: str | None = None) -> None:
        point = progress.planned.point
        if progress.planned.done:  # finished before; repeated only because other points need its answers
            return
        if progress.is_floor:  # only the noise floor is lost
            self._floors.setdefault(point.control_key, None)
            if point.control_key in self.controls:
                self._release(point.control_key)
            return
        self._submit(progress, reason, trace)

    def end_waiting(self, reason: str, *, for_floors: bool = True) -> None:
        """Fail the points whose control will never be finished.

        Args:
            reason: the points' error message.
            for_floors: whether noise floors will not come either; points that wait for one are then scored without.
        """
        for control_key in list(self._held):
            if control_key in self.controls:
                if not for_floors:  # the next run finds the answers in the journal, and generates the floor
                    continue
                self._floors.setdefault(control_key, None)
                self._release(control_key)
            for progress in self._held.pop(control_key, []):
                self._fail(progress, reason)

    def drain(self) -> None:
        """Wait until all points added so far are scored and archived."""
        self._worker.drain()

    def close(self) -> None:
        """Wait like `drain`, and end the thread."""
        self._worker.close()

    def abandon(self, seconds: float) -> None:
        """Leave waiting points to the next run, which finds their answers in the journal."""
        self._worker.abandon(seconds)

    def _release(self, control_key: str) -> None:
        held = self._held.pop(control_key, [])
        for progress in sorted(held, key=lambda progress: not progress.planned.point.is_control):
            self._submit(progress)

    def _submit(self, progress: Progress, error: str | None = None, trace: str | None = None) -> None:
        point, corpus = progress.planned.point, progress.planned.corpus
        references = self._floors if point.is_control else self.controls
        control = ControlAnswers(references.get(point.control_key), self._forced.get(point.control_key, {}))
        engine = point.config.engine
        tags = {**provenance.tags(engine.installed()), **engine.tags(), **progress.origin_tags}
        finished = progress.end(control, tags, error, trace)
        future = None if error is not None else self._pool.score(corpus, finished, self._archive)
        self._worker.put((finished, corpus, future))

    def _collect(self, work: _Work) -> None:
        finished, corpus, future = work
        try:
            scored = future.result() if future is not None else tasks.score(corpus, finished, self._archive)
        except WorkerLost as lost:
            scored = tasks.score(corpus, finished.failed(str(lost)), self._archive)
        self._costs.score_seconds += scored.seconds
        record = scored.archived.record
        prompt_ids = tuple(encoded.prompt.id for encoded in corpus.prompts) if scored.values else ()
        result = PointResult(finished.index, finished.point, record.summaries, scored.values, record.error, prompt_ids)
        if result.error is not None:
            self.failed += 1
            log.warning("%s failed (%s): %s", result.point.name, result.point.overrides, result.error)
        self._on_result(result, scored.archived)
