"""Publisher: takes finished points through scoring, archive, MLflow, comparison and report."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from sweep.config.schema import SweepConfig
from sweep.console.terminal import Terminal
from sweep.core.timing import SharedCosts
from sweep.errors import TrackerUnreachable, TrackingError
from sweep.planning.plan import Task
from sweep.planning.results import PointResult, as_yaml
from sweep.points.point import Point
from sweep.publishing.queue import PublishQueue, unpublished_lines
from sweep.publishing.restore import restored_results
from sweep.publishing.result_collector import ResultCollector
from sweep.publishing.scoring_stage import ScoringStage
from sweep.report import FOLDER, REPORT
from sweep.report.live import summary_line
from sweep.report.summary import load_summary, name_of
from sweep.storage.archive import Archive, Archived
from sweep.storage.publish_log import PublishLog
from sweep.tracking import AnyTracker, Closing
from sweep.util.redaction import redact
from sweep.util.retry import Patience
from sweep.workers.base import WorkerPool

if TYPE_CHECKING:
    from sweep.report.comparison import Comparison

log = logging.getLogger(__name__)

PARENT_SECONDS = 30.0  # maximum wait for the parent run, which shards need to publish their points as its children
PROMPTLY = 1.5  # maximum seconds that an interrupted sweep waits for each unfinished step


class Publisher:
    """Collects one sweep's results and publishes them.

    Owned by the main thread. Other threads add results through a `ResultCollector`. Life cycle: `take_archived` and
    `take` add results; `close` reports and ends the parent run.

    Attributes:
        comparison: comparison of all points, set by `close`.
        problems: messages about what could not be published or reported.
        earlier: number of points that had been finished before.
        nothing_new: set by `close`: whether all points had been finished before, and there was nothing to publish.
    """

    def __init__(
        self,
        base: SweepConfig,
        sweep_id: str,
        name: str,
        command: str,
        terminal: Terminal,
        pool: WorkerPool,
        archive: Archive,
        costs: SharedCosts,
        tracker: AnyTracker,
    ) -> None:
        """Connect to the tracker.

        Args:
            base: the sweep's base configuration.
            sweep_id: the sweep's id.
            name: the sweep's name.
            command: the command that ran the sweep.
            terminal: where to print.
            pool: worker pool that scores points.
            archive: where scored points are stored.
            costs: timing shared by all points.
            tracker: where to publish.

        Raises:
            ConfigError: the tracker cannot be reached or written, and this sweep has no results yet.
            TrackingError: the tracker has stopped answering.
        """
        self._base, self._sweep_id, self._command, self._terminal = base, sweep_id, command, terminal
        self._name = redact(name)
        self._archive, self._costs = archive, costs
        self._folder = base.sweep.root / "sweeps" / sweep_id
        self.tracker = tracker
        self._status = self._connect()
        self._publish_log = PublishLog(self._folder, self.tracker.place)
        self._queue: PublishQueue | None = None
        self._scoring = ScoringStage(pool, archive, self._on_result, costs)
        self._shared = self._detached = False
        self._points: dict[str, Point] = {}
        self._collector = ResultCollector()
        self.comparison: Comparison | None = None
        self.problems: list[str] = []
        self.earlier = 0
        self.nothing_new = False
        self._parent_metrics: dict[str, float] = {}
        self._parent_tags: dict[str, str] = {}

    def _connect(self) -> str | None:
        """Return the parent run's status; None if there is none, or the tracker is away and there are results."""
        try:
            self.tracker.connect()
            for note in self.tracker.notes:
                self._terminal.say(note)
            return self.tracker.parent_status()
        except (TrackerUnreachable, TrackingError) as error:
            if not any(self._archive.written()):
                raise
            log.warning("%s Generation continues; publishing is retried.", error)
            return None

    @property
    def results(self) -> dict[str, PointResult]:
        """Result of each point so far, by `Point.key`."""
        return self._collector.results

    @property
    def scoring(self) -> ScoringStage:
        """The stage that scores and archives points as they finish or fail."""
        return self._scoring

    def take_archived(self, tasks: Sequence[Task]) -> None:
        """Add points that earlier runs have finished, and publish those that are not published yet."""
        for task in tasks:
            archived = task.archived
            self._points[task.point_fingerprint.result_key] = task.point
            if archived is None or not task.done:
                continue
            self.earlier += task.point.key not in self.results
            record = archived.record
            self._collector.add(PointResult(task.index, task.point, record.summaries), archived)
            if not self._publish_log.has(archived.key, record):
                self.start().put(archived)

    def take(self, task: Task, archived: Archived) -> None:
        """Add a point that another process has scored; publish it unless that process does."""
        result = PointResult(task.index, task.point, archived.record.summaries, error=archived.record.error)
        if result.error is not None:
            log.warning("%s failed (%s): %s", result.point.name, result.point.overrides, result.error)
        self._on_result(result, archived, publish=not self._shared)

    def share(self) -> str | None:
        """Return the parent run's id for other processes to publish to; None: this process publishes for them.

        An SQLite store is used by one process only: on a file system shared by several machines its locks may fail.
        """
        if self.tracker.is_sqlite:
            return None
        self._shared = self.start().wait_for_parent(PARENT_SECONDS)
        return self.tracker.parent if self._shared else None

    def detach(self) -> None:
        """Leave the parent run open in `close`: other processes continue the sweep. Waiting points are published."""
        self._detached = True

    def start(self) -> PublishQueue:
        """Start publishing, if not done yet: the parent run is RUNNING as soon as the tracker is reachable."""
        if self._queue is None:
            patience = Patience(self._base.tracking.patience)
            self._queue = PublishQueue(
                self.tracker, self._archive, self._publish_log, self._costs, self._begin, patience
            )
        return self._queue

    def _begin(self) -> bool:
        """Create or resume the parent run, on the publishing thread; return whether it existed.

        Raises:
            TrackingError: MLflow failed.
        """
        resumed = self.tracker.start(self._name, self._command, as_yaml(Point(self._base)))
        self._publish_log.open(self.tracker.place)
        return resumed

    def add_to_parent_run(self, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Add metrics and tags to the parent run when the sweep ends."""
        self._parent_metrics.update(metrics)
        self._parent_tags.update(tags)

    def close(self, error: BaseException | None) -> None:
        """Write the report, and end the parent run: FINISHED, FAILED, or KILLED if the user interrupted the sweep.

        Args:
            error: the exception that ended the sweep, if any.

        Raises:
            SweepError: finished points could not be stored on disk.
        """
        if error is not None and not isinstance(error, Exception):
            self._interrupt()
            return
        try:
            self._close(error)
        except Exception:  # finished points cannot be stored
            self._end("FAILED")
            raise
        except BaseException:  # the user interrupts the waiting
            self._interrupt()
            raise

    def _close(self, error: BaseException | None) -> None:
        self._scoring.drain()
        if self._detached:
            if self._queue is not None:
                self._queue.close()
            return
        if self._queue is None and (not self.results or self._is_reported()):
            self.nothing_new = bool(self.results)
            return
        publish_queue = self.start()
        publish_queue.hurry()
        if self._shared:
            publish_queue.check_before_publishing()
            self._publish_log.open(self.tracker.place)
            for archived in self._collector.archived.values():  # also those that other processes could not publish
                publish_queue.put(archived)
        closing = self._report() if self.results else None
        publish_queue.close()
        self.problems += unpublished_lines(publish_queue.unpublished, self._command)
        if closing is not None:
            published = self._publish_log.entries
            by_run = {published[key].run_id: m for key, m in closing.differences.items() if key in published}
            complete = replace(closing, differences=by_run)
            self._try(publish_queue, lambda: self._describe(self.tracker.close(complete)))
        failed = sum(result.error is not None for result in self.results.values())
        status = "FAILED" if error or failed or self.problems else "FINISHED"
        counts = {"sweep/points": float(len(self.results)), "sweep/failed": float(failed)}
        metrics = counts | self._costs.metrics() | self._parent_metrics
        self._try(publish_queue, lambda: self.tracker.finish(status, metrics, self._parent_tags))

    def _describe(self, pages: Mapping[str, str]) -> None:
        from sweep.report.run_summary import describe

        assert self.comparison is not None
        try:
            description = describe(self.comparison, self._command, pages)
        except Exception as problem:  # the points and the report are published already
            log.warning("The description of the parent run could not be created: %s", problem, exc_info=True)
            self.problems.append(f"the description of the parent run could not be created: {problem}")
        else:
            self.tracker.describe(description)

    def _try(self, publish_queue: PublishQueue, call: Callable[[], None]) -> None:
        try:
            publish_queue.call_with_retries(lambda _: call(), once_at_least=True)
        except TrackingError as problem:
            self.problems.append(str(problem))

    def _interrupt(self) -> None:
        """Leave all unfinished work to the next run, and return quickly."""
        self._scoring.abandon(PROMPTLY)
        if self._queue is not None:
            self._queue.abandon(PROMPTLY)
            # On a thread, since an unreachable tracker takes long to fail.
            ending = threading.Thread(target=self._end, args=("KILLED",), daemon=True)
            ending.start()
            ending.join(PROMPTLY)

    def _end(self, status: str) -> None:
        with suppress(TrackingError):
            self.tracker.finish(status, {})

    def _on_result(self, result: PointResult, archived: Archived, publish: bool = True) -> None:
        """Add a result; called by the scoring thread, or by the main thread for points of other processes."""
        self._collector.add(result, archived)
        self._terminal.say(summary_line(result))
        if publish:
            self.start().put(archived)

    def _is_reported(self) -> bool:
        """Whether the report and the parent run are up to date with these points."""
        report = self._folder / FOLDER
        if not (report / REPORT).is_file() or len(self.results) < len(self._points):
            return False
        printed = load_summary(self._folder)
        is_shown = printed is None or printed.is_current(self._base)
        if not is_shown or self._status != "FINISHED":
            return False
        # Without a name, that of an earlier run stays. A new one must reach the report and the parent run.
        return not self._base.sweep.name or name_of(report) == self._name

    def _supersede(self, key: str) -> None:
        entry = self._publish_log.entries.get(key)
        if entry is not None and self._queue is not None:
            run_id = entry.run_id
            self._queue.call_with_retries(lambda _: self.tracker.supersede(run_id))
            self._publish_log.forget(key)
        self._archive.supersede(key)

    def _report(self) -> Closing | None:
        """Compare the points, write the report, and return the closing data for MLflow."""
        # Imported here, so that SciPy does not delay the first token.
        from sweep.publishing.reporting import report
        from sweep.report.comparison import compare

        try:
            with self._terminal.waiting("Report"), self._costs.timing("report_seconds"):
                archived = self._collector.archived
                restored = restored_results(self._points, self.results, self._archive, archived, self._supersede)
                self.comparison = compare(restored.values(), *self._base.scoring.report_settings, self._base.report)
                return report(
                    self._base,
                    self._sweep_id,
                    self._name,
                    self._command,
                    self.comparison,
                    restored,
                    self._archive,
                    archived,
                )
        except Exception as problem:  # the points are archived; the problem is reported at the end
            log.warning("The report could not be written: %s", problem, exc_info=True)
            self.problems.append(f"the report in {self._folder / FOLDER} could not be written: {problem}")
            return None
