"""From finished points to what the user sees: scored, archived, published, compared and reported."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from sweep.config import SweepConfig
from sweep.costs import SharedCosts
from sweep.disk.archive import Archive, Archived
from sweep.disk.ledger import Ledger
from sweep.errors import TrackerAway, TrackingError
from sweep.helpers.base import Helpers
from sweep.outcome import PointResult, as_yaml
from sweep.plan import Task
from sweep.point import Point
from sweep.publication.outbox import Outbox
from sweep.publication.scoring import Scoring
from sweep.report import FOLDER, REPORT
from sweep.report.live import summary_line
from sweep.terminal import Terminal
from sweep.tracking import AnyTracker, Closing

if TYPE_CHECKING:
    from sweep.report.comparison import Comparison

log = logging.getLogger(__name__)

SHOWN = 3  # points that a line names
PARENT_SECONDS = 30.0  # that shards wait for the sweep's own run, as which's children they would publish
PROMPTLY = 1.5  # seconds that an interrupted sweep waits for each of the things that it is in the middle of


class Publisher:
    """One sweep's results.

    Attributes:
        results: what became of each point, by `Point.key`.
        comparison: of all points, once the sweep is closed.
        problems: what could not be published or reported.
        earlier: how many points had been done before.
        nothing_new: whether all had, with nothing left to be published or reported, once the sweep is closed.
    """

    def __init__(
        self,
        base: SweepConfig,
        sweep_id: str,
        command: str,
        terminal: Terminal,
        helpers: Helpers,
        archive: Archive,
        costs: SharedCosts,
        tracker: AnyTracker,
    ) -> None:
        """Reach the tracker.

        Raises:
            ConfigError: it cannot be reached or written, and this sweep has no results.
            TrackingError: it does not answer any more.
        """
        self._base, self._sweep_id, self._command, self._terminal = base, sweep_id, command, terminal
        self._archive, self._costs = archive, costs
        self._folder = base.sweep.root / "sweeps" / sweep_id
        self.tracker = tracker
        self._status = self._find()
        self._ledger = Ledger(self._folder, self.tracker.place)
        self._outbox: Outbox | None = None
        self._scoring = Scoring(helpers, archive, self._tell, costs)
        self._shared = self._left = False
        self._archived: dict[str, Archived] = {}
        self._points: dict[str, Point] = {}
        self.results: dict[str, PointResult] = {}
        self.comparison: Comparison | None = None
        self.problems: list[str] = []
        self.earlier = 0
        self.nothing_new = False
        self._notes: dict[str, float] = {}
        self._note_tags: dict[str, str] = {}

    def _find(self) -> str | None:
        """Return the status of the sweep's run; None: there is none, or the tracker is away and there are results."""
        try:
            self.tracker.connect()
            return self.tracker.parent_status()
        except (TrackerAway, TrackingError) as error:
            if not any(True for _ in self._archive):
                raise
            log.warning("%s Generation goes on; publication is tried again.", error)
            return None

    @property
    def scoring(self) -> Scoring:
        """Takes points as they finish or fail."""
        return self._scoring

    def take_archived(self, tasks: Sequence[Task]) -> None:
        """Take what earlier runs have finished, and publish what they have not."""
        for task in tasks:
            archived = task.archived
            self._points[task.identity.result_key] = task.point
            if archived is None or not task.done:
                continue
            self.earlier += task.point.key not in self.results
            record = archived.record
            self.results[task.point.key] = PointResult(task.index, task.point, record.summaries)
            self._archived[archived.key] = archived
            if not self._ledger.has(archived.key, record):
                self.start().put(archived)

    def take(self, task: Task, archived: Archived) -> None:
        """Take a point that another process has worked off, and publish it unless that has."""
        result = PointResult(task.index, task.point, archived.record.summaries, error=archived.record.error)
        if result.error is not None:
            log.warning("%s failed (%s): %s", result.point.name, result.point.overrides, result.error)
        self._tell(result, archived, publish=not self._shared)

    def share(self) -> str | None:
        """Return the sweep's own run for other processes to publish to; None: they cannot, and this one does.

        SQLite is one process's: on a file system that several machines share, its locks may not hold.
        """
        if self.tracker.is_sqlite:
            return None
        self._shared = self.start().wait_for_parent(PARENT_SECONDS)
        return self.tracker.parent if self._shared else None

    def leave(self) -> None:
        """End without an end of the sweep, which goes on elsewhere; what is there is published first."""
        self._left = True

    def start(self) -> Outbox:
        """Have a parent run, RUNNING as soon as the tracker takes it, and publish from now on."""
        if self._outbox is None:
            patience = self._base.tracking.patience
            self._outbox = Outbox(self.tracker, self._archive, self._ledger, self._costs, self._begin, patience)
        return self._outbox

    def _begin(self) -> bool:
        """Make or take up the parent run, on the publishing thread; return whether there was one.

        Raises:
            TrackingError: MLflow failed.
        """
        name = self._base.sweep.name or self._sweep_id
        again = self.tracker.start(name, self._command, as_yaml(Point(self._base)))
        self._ledger.open(self.tracker.place)
        return again

    def note(self, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Take what is to be said on the sweep's own run when it ends."""
        self._notes.update(metrics)
        self._note_tags.update(tags)

    def close(self, error: BaseException | None) -> None:
        """Report, and end the parent run: FINISHED, FAILED, or KILLED if the user has ended the sweep.

        Raises:
            SweepError: what was finished could not be kept on disk.
        """
        if error is not None and not isinstance(error, Exception):
            self._interrupt()
            return
        try:
            self._close(error)
        except Exception:  # what was finished cannot be kept
            self._end("FAILED")
            raise
        except BaseException:  # the user has had enough of waiting
            self._interrupt()
            raise

    def _close(self, error: BaseException | None) -> None:
        self._scoring.drain()
        if self._left:
            if self._outbox is not None:
                self._outbox.close()
            return
        if self._outbox is None and (not self.results or self._is_reported()):
            self.nothing_new = bool(self.results)
            return
        outbox = self.start()
        outbox.hurry()
        if self._shared:
            outbox.look_first()
            self._ledger.open(self.tracker.place)
            for archived in self._archived.values():  # what others could not publish
                outbox.put(archived)
        closing = self._report() if self.results else None
        outbox.close()
        self.problems += _unpublished(outbox.unpublished, self._command)
        if closing is not None:
            published = self._ledger.entries
            own = {published[key].run_id: m for key, m in closing.differences.items() if key in published}
            complete = replace(closing, differences=own)
            self._try(outbox, lambda: self._describe(self.tracker.close(complete)))
        failed = sum(result.error is not None for result in self.results.values())
        status = "FAILED" if error or failed or self.problems else "FINISHED"
        counts = {"sweep/points": float(len(self.results)), "sweep/failed": float(failed)}
        metrics = counts | self._costs.metrics() | self._notes
        self._try(outbox, lambda: self.tracker.finish(status, metrics, self._note_tags))

    def _describe(self, pages: Mapping[str, str]) -> None:
        from sweep.report.closing import describe

        assert self.comparison is not None
        try:
            description = describe(self.comparison, self._command, pages)
        except Exception as problem:  # what it is of has been published
            log.warning("The description could not be made: %s", problem, exc_info=True)
            self.problems.append(f"the description of the sweep's run could not be made: {problem}")
        else:
            self.tracker.describe(description)

    def _try(self, outbox: Outbox, call: Callable[[], None]) -> None:
        try:
            outbox.insist(lambda _: call(), once_at_least=True)
        except TrackingError as problem:
            self.problems.append(str(problem))

    def _interrupt(self) -> None:
        """Leave everything that is not finished for the next run, without keeping the user."""
        self._scoring.abandon(PROMPTLY)
        if self._outbox is not None:
            self._outbox.abandon(PROMPTLY)
            # On a thread, as a tracker that is away would take its time.
            ending = threading.Thread(target=self._end, args=("KILLED",), daemon=True)
            ending.start()
            ending.join(PROMPTLY)

    def _end(self, status: str) -> None:
        with suppress(TrackingError):
            self.tracker.finish(status, {})

    def _tell(self, result: PointResult, archived: Archived, publish: bool = True) -> None:
        """Take what became of a point; on a thread, or on the main one if other processes have scored it."""
        self.results[result.point.key] = result
        self._archived[archived.key] = archived
        self._terminal.say(summary_line(result))
        if publish:
            self.start().put(archived)

    def _is_reported(self) -> bool:
        """Whether there is nothing left to be said of these points."""
        if not (self._folder / FOLDER / REPORT).is_file() or len(self.results) < len(self._points):
            return False
        return self._status == "FINISHED"

    def _restored(self) -> dict[str, PointResult]:
        """Return all results with their values, by `Identity.result_key`, those of earlier runs among them.

        What an earlier run called by the name of a point that is another one now, as its prompts have changed, say, is
        put aside.
        """
        from sweep.conclusion import restore

        names = {(point.name, point.role) for point in self._points.values()}
        for archived in self._archive:
            if archived.key in self._archived:
                continue
            if (archived.record.name, archived.record.role) in names:
                self._put_aside(archived.key)
            else:  # asked for by an optimising sweeper, in an earlier run
                self._archived[archived.key] = archived
        restored = {}
        for key, archived in self._archived.items():
            point = self._points.get(key)
            known = self.results.get(point.key) if point is not None else None
            if known is None or not (known.values or known.error):
                known = restore(archived.record, self._archive.read([key]), point)
            restored[key] = known
        return restored

    def _put_aside(self, key: str) -> None:
        entry = self._ledger.entries.get(key)
        if entry is not None and self._outbox is not None:
            run_id = entry.run_id
            self._outbox.insist(lambda _: self.tracker.supersede(run_id))
            self._ledger.forget(key)
        self._archive.put_aside(key)

    def _report(self) -> Closing | None:
        """Compare the points, write what there is to be seen of that, and return what MLflow is given of it."""
        # Here and not above, so that the first token does not wait for SciPy.
        from sweep.publication.reporting import report
        from sweep.report.comparison import compare

        try:
            with self._terminal.waiting("Report"), self._costs.timing("report_seconds"):
                restored = self._restored()
                self.comparison = compare(restored.values(), self._base.scoring.confidence)
                return report(
                    self._base,
                    self._sweep_id,
                    self._command,
                    self.comparison,
                    restored,
                    self._archive,
                    self._archived,
                )
        except Exception as problem:  # the points are archived, and what is wrong with the report is said
            log.warning("The report could not be made: %s", problem, exc_info=True)
            self.problems.append(f"the report in {self._folder / FOLDER} could not be made: {problem}")
            return None


def _unpublished(reasons: Mapping[str, str], command: str) -> list[str]:
    """Return a line for each reason why points, by their names, are not published, and the command that does it."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    lines = [
        f"{', '.join(own[:SHOWN])}{f' and {len(own) - SHOWN} more' if len(own) > SHOWN else ''}: "
        f"not published, kept for the next run: {reason}"
        for reason, own in names.items()
    ]
    return [*lines, f"To publish what is done, later: {command}"] if lines else []
