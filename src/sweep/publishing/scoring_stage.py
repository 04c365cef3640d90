"""Points that are finished, on their way to being scored and archived: each once what it is compared with is there."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future

from sweep import versions
from sweep.costs import Costs, SharedCosts
from sweep.disk.archive import Archive, Archived
from sweep.helpers import jobs
from sweep.helpers.base import HelperLost, Helpers, Scored
from sweep.inputs.corpus import Corpus
from sweep.outcome import Against, Answers, Finished, Forced, PointResult, Progress
from sweep.publication.worker import Worker

log = logging.getLogger(__name__)

_Work = tuple[Finished, Corpus, Future[Scored] | None]

UNSCORED = 64  # finished points that may wait to be scored before the engine waits for them


class Scoring:
    """Takes points as they finish; those that finish before their control and its second run wait for both.

    Helpers score them; a thread takes what they come to, so that the engine waits neither for that nor for MLflow.

    Attributes:
        controls: the controls' answers, by `Point.control_key`.
        failed: how many points failed.
    """

    def __init__(
        self,
        helpers: Helpers,
        archive: Archive,
        tell: Callable[[PointResult, Archived], None],
        costs: SharedCosts,
    ) -> None:
        """Start.

        Args:
            helpers: score.
            archive: where scored points are kept.
            tell: takes what became of a point, when it is archived.
            costs: told what scoring takes, and telling points what the batch took that they shared.
        """
        self.controls: dict[str, Answers] = {}
        self.failed = 0
        self._helpers, self._archive, self._tell, self._costs = helpers, archive, tell, costs
        self._forced: dict[str, Forced] = {}
        self._floors: dict[str, Answers | None] = {}
        self._held: dict[str, list[Progress]] = {}
        self._left: dict[str, Costs] = {}  # by `Identity.result_key`
        self._worker: Worker[_Work] = Worker("scoring", self._take, UNSCORED)

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
        self._submit(progress, reason, trace)

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

    def _submit(self, progress: Progress, error: str | None = None, trace: str | None = None) -> None:
        point, corpus = progress.planned.point, progress.planned.corpus
        compared = self._floors if point.is_control else self.controls
        against = Against(compared.get(point.control_key), self._forced.get(point.control_key, {}))
        engine = point.config.engine
        finished = progress.end(against, {**versions.tags(engine.name), **engine.tags()}, error, trace)
        asked = None if error is not None else self._helpers.score(corpus, finished, self._archive)
        self._worker.put((finished, corpus, asked))

    def _take(self, work: _Work) -> None:
        finished, corpus, asked = work
        try:
            scored = asked.result() if asked is not None else jobs.score(corpus, finished, self._archive)
        except HelperLost as lost:
            scored = jobs.score(corpus, finished.failed(str(lost)), self._archive)
        self._costs.score_seconds += scored.seconds
        record = scored.archived.record
        result = PointResult(finished.index, finished.point, record.summaries, scored.values, record.error)
        if result.error is not None:
            self.failed += 1
            log.warning("%s failed (%s): %s", result.point.name, result.point.overrides, result.error)
        self._tell(result, scored.archived)
