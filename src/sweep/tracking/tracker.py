"""MLflow tracker: publishes one sweep. Usually runs in the child process of `tracking.process`.

A point is published once it is complete. Databases get complete runs, inserted into MLflow's tables in one transaction
(`complete_runs`). Otherwise, a run is created through MLflow's client, filled, and terminated last (`point_run`). Both
ways, FINISHED means complete. Publishing a point twice does no harm: earlier runs are found by the tag `sweep.result`.
Finished ones are kept, others are deleted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.config.schema import TrackingConfig
from sweep.core.records import Closing, PointRecord, Publication, ReadTable, Table
from sweep.tracking import limits, point_publishing, point_run
from sweep.tracking.connection import Connection, as_tracking_error
from sweep.tracking.links import ORDER, Links
from sweep.tracking.views import LIMIT as VIEW_LIMIT
from sweep.tracking.views import sweep_view, view_tag
from sweep.util.redaction import redact

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

log = logging.getLogger(__name__)

BATCH = 1000  # metrics of one call


class Tracker:
    """One sweep's runs in one MLflow experiment: a parent run, and a child run per point.

    Not thread-safe: the main thread and the publishing thread must not call it at the same time. Life cycle: `connect`,
    `start`, `publish` for each point, `close`, `describe`, `finish`.
    """

    def __init__(self, config: TrackingConfig, root: Path, sweep_id: str) -> None:
        self._sweep_id = sweep_id
        self._connection = Connection(config, root, sweep_id)
        self._parent: str | None = None
        self._row_by_row: str | None = None
        self._started_ms = 0

    def prepare(self) -> None:
        """Do nothing: only a tracker in another process can connect in the background."""

    def connect(self) -> None:
        """Open the store, see `Connection.connect`."""
        self._connection.connect()

    def end(self, seconds: float = 0.0) -> None:
        """Do nothing: there is no process to end."""

    @property
    def links(self) -> Links | None:
        """Links to the sweep's pages; None before the store is reached."""
        return self._connection.links

    @property
    def is_local(self) -> bool:
        """Whether the runs are in `sweep.dir`."""
        return self._connection.is_local

    @property
    def is_sqlite(self) -> bool:
        """Whether the store is an SQLite file, which only one process should write."""
        return self._connection.is_sqlite

    @property
    def notes(self) -> tuple[str, ...]:
        """Messages for the user about changes made to the store when it was opened."""
        return self._connection.notes

    @property
    def place(self) -> str:
        """Store, experiment and parent run, without secrets: identifies where points have been published."""
        return f"{self._connection.place} {self._parent}"

    def row_by_row_url(self) -> str | None:
        """Return the link to a point's traces next to the control's; None without traces, or before `close`."""
        return self.links.full(self._row_by_row) if self.links and self._row_by_row else None

    def parent_status(self) -> str | None:
        """Return the status of the parent run, such as FINISHED; None if there is no parent run.

        Raises:
            TrackingError: MLflow failed.
        """
        with as_tracking_error("find the parent run"):
            parent = self._find_parent()
            self._parent = None if parent is None else str(parent.info.run_id)
            return None if parent is None else str(parent.info.status)

    def attach(self, parent: str) -> None:
        """Publish points as children of a parent run that another process creates and ends.

        Args:
            parent: id of the parent run.

        Raises:
            TrackingError: MLflow failed.
        """
        with as_tracking_error("open the store"):
            self._connection.connect()
            self._parent = parent

    @property
    def parent(self) -> str | None:
        """Id of the parent run, once it is known."""
        return self._parent

    def start(self, name: str, command: str, config: str) -> bool:
        """Set the parent run to RUNNING until `finish`; create it if the sweep has none.

        Child runs that a dead process left RUNNING are deleted, since their points are published again.

        Args:
            name: the sweep's name.
            command: the command that runs the sweep.
            config: the base configuration as YAML.

        Returns:
            Whether the sweep had a parent run or points before.

        Raises:
            TrackingError: MLflow failed.
        """
        with as_tracking_error("start the parent run"):
            name = limits.fit(name, limits.NAME)
            self._connection.database.enable_write_ahead_log()
            parent = self._find_parent()
            if parent is not None:
                self._parent, self._started_ms = str(parent.info.run_id), int(parent.info.start_time or 0)
                for run in self._connection.search("attributes.status = 'RUNNING' AND tags.`sweep.role` != 'sweep'"):
                    point_run.delete(self._connection, run.info.run_id)
                self._connection.client.update_run(self._parent, status="RUNNING", name=name)
                earlier = True
            else:
                # If the user has deleted the parent run, the new one adopts its points.
                earlier = bool(self._connection.search("tags.`sweep.role` != 'sweep'", limit=1))
                tags = {
                    "sweep.role": "sweep",
                    "sweep.id": self._sweep_id,
                    "sweep.command": limits.fit(command, limits.TAG),
                }
                run = self._connection.client.create_run(
                    self._connection.experiment, run_name=name, tags=tags | point_run.source_tags()
                )
                self._parent, self._started_ms = str(run.info.run_id), int(run.info.start_time or 0)
            # Also for an existing run: the attempt that created it may have failed before this call.
            try:
                self._connection.client.log_text(self._parent, limits.encodable(redact(config)), "config.yaml")
            except BaseException:
                self._connection.client.set_terminated(self._parent, "FAILED")
                raise
            return earlier

    def publish(
        self, record: PointRecord, table: Table | ReadTable, *, retry: bool, replaces: str | None = None
    ) -> str:
        """Create, fill and end the run of one point, and return its id.

        Args:
            record: the point.
            table: its generations, or a function that reads them.
            retry: whether an earlier attempt may have published the point.
            replaces: run of an earlier, failed attempt at this point, which is deleted.

        Raises:
            TrackingError: MLflow failed; an incomplete run is deleted if possible.
            SweepError: `table` failed.
        """
        publication = Publication(record, table, replaces)
        return point_publishing.publish(self._connection, publication, self._parent, retry=retry)

    def publish_all(self, points: Sequence[Publication], *, retry: bool) -> list[str | None]:
        """Publish points in order, until one fails or the time limit is reached.

        Args:
            points: the points.
            retry: whether an earlier attempt may have published one of them.

        Returns:
            Run ids of the first points, in order; None for each point that could not be published.

        Raises:
            TrackingError: MLflow failed; it is unknown which points were published.
            SweepError: a table could not be read.
        """
        return point_publishing.publish_all(self._connection, points, self._parent, retry=retry)

    def supersede(self, run_id: str) -> None:
        """Remove a point's run from the sweep's views, since another run has replaced it.

        Raises:
            TrackingError: MLflow failed.
        """
        with as_tracking_error("mark a superseded point"), self._connection.ignore_deleted(run_id):
            self._connection.client.set_tag(run_id, "sweep.id", f"{self._sweep_id} (superseded)")

    def close(self, closing: Closing) -> dict[str, str]:
        """Log the report's metrics, files and view to the parent run, and the differences to the points' runs.

        Args:
            closing: data of the finished sweep.

        Returns:
            Paths of the sweep's pages within the user interface, by title.

        Raises:
            TrackingError: MLflow failed; the points' runs are complete without these data.
        """
        from mlflow.entities import Metric

        links = self.links
        if self._parent is None or links is None:
            return {}
        with as_tracking_error("publish the sweep's report"):
            now = int(closing.time * 1000)
            for run_id, metrics in closing.differences.items():
                differences = [Metric(key, value, now, 0) for key, value in metrics.items()]
                with self._connection.ignore_deleted(run_id):
                    self._connection.client.log_batch(run_id, differences)
            self._log(self._parent, [Metric(key, value, now, step) for key, value, step in closing.series])
            self._connection.client.log_artifacts(self._parent, str(closing.files))
            state = sweep_view(self._sweep_id, links.search, ORDER, closing.axes, closing.measures)
            key, value = view_tag(self._sweep_id, limits.fit(closing.name, limits.NAME), now, state)
            if len(value) <= VIEW_LIMIT:
                self._connection.client.set_experiment_tag(self._connection.experiment, key, value)
            pages = {"side by side": links.side_by_side, "charts": links.charts}
            if self._connection.traces is not None and (page := self._row_by_row_page(links)) is not None:
                self._row_by_row = pages["row by row"] = page
            return pages

    def describe(self, description: str) -> None:
        """Set the description of the parent run, in Markdown.

        Raises:
            TrackingError: MLflow failed.
        """
        if self._parent is not None:
            with as_tracking_error("publish the sweep's description"):
                text = limits.fit(description, limits.NOTE)
                self._connection.client.set_tag(self._parent, "mlflow.note.content", text)

    def finish(self, status: str, metrics: Mapping[str, float], tags: Mapping[str, str] | None = None) -> None:
        """End the parent run as FINISHED, FAILED or KILLED, with final metrics and tags.

        Raises:
            TrackingError: MLflow failed.
        """
        from mlflow.entities import Metric

        if self._parent is None:
            return
        with as_tracking_error("finish the parent run"):
            now = max(self._started_ms, int(time.time() * 1000))  # the system clock may have been set back
            try:
                self._log(self._parent, [Metric(key, value, now, 0) for key, value in metrics.items()])
                for key, text in (tags or {}).items():
                    self._connection.client.set_tag(self._parent, key, limits.fit(text, limits.TAG))
            finally:
                self._connection.client.set_terminated(self._parent, status, now)
                self._connection.database.disable_write_ahead_log()

    def _log(self, run_id: str, metrics: list[Metric]) -> None:
        for start in range(0, len(metrics), BATCH):
            self._connection.client.log_batch(run_id, metrics[start : start + BATCH])

    def _find_parent(self) -> Run | None:
        return next(iter(self._connection.search("tags.`sweep.role` = 'sweep'")), None)

    def _row_by_row_page(self, links: Links) -> str | None:
        """Return the page that compares the first point with the first control row by row; None if one is missing."""
        client, experiments = self._connection.client, [self._connection.experiment]
        where = f"tags.`sweep.id` = '{self._sweep_id}' AND attributes.status = 'FINISHED' AND "
        filters = [f"{where}tags.`sweep.role` = '{role}'" for role in ("control", "point")]
        first = [client.search_runs(experiments, text, max_results=1, order_by=[ORDER]) for text in filters]
        ids = [str(run.info.run_id) for runs in first for run in runs]
        return links.row_by_row(*ids) if len(ids) == 2 else None
