"""Publication to MLflow, by explicit client calls.

A point is published in one go when its last generation is in: its run is created with its tags, filled by one batch and
one table, and terminated last, so that FINISHED means complete.  Publishing again what was published is no harm: an
attempt that a dead process or a lost connection left behind is found by the point's fingerprint, and finished ones are
taken as they are.
"""

from __future__ import annotations

import getpass
import json
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.config import TrackingConfig
from sweep.redaction import redact
from sweep.tracking.connection import Connection, as_tracking_error, unless_gone
from sweep.tracking.links import ORDER, Links
from sweep.tracking.records import Closing, PointRecord, Table
from sweep.tracking.views import LIMIT as VIEW_LIMIT
from sweep.tracking.views import sweep_view, view_tag

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

TABLE = "generations.json"
NOTE_LIMIT = 8000  # characters of a tag
TAG_LIMIT = 5000  # of an error, which is a tag too
NAME_LIMIT, COMMAND_LIMIT = 250, 5000  # of columns that PostgreSQL does not stretch
BATCH = 1000  # metrics of one call


class Tracker:
    """One sweep's runs in one MLflow experiment: a parent, and a child for each point."""

    def __init__(self, config: TrackingConfig, root: Path, sweep_id: str) -> None:
        self._sweep_id = sweep_id
        self._at = Connection(config, root, sweep_id)
        self._parent: str | None = None
        self._row_by_row: str | None = None

    def prepare(self) -> None:
        """Do nothing: there is nobody else who could reach the store while this process does something else."""

    def connect(self) -> None:
        """As of `Connection.connect`."""
        self._at.connect()

    def end(self, seconds: float = 0.0) -> None:
        """Do nothing: there is nothing to let go of."""

    @property
    def links(self) -> Links | None:
        """The links to the sweep's pages; None: the store has not been reached."""
        return self._at.links

    @property
    def is_local(self) -> bool:
        """Whether the runs lie in `sweep.dir`."""
        return self._at.is_local

    @property
    def is_sqlite(self) -> bool:
        """Whether the store is an SQLite file, which one process is to write."""
        return self._at.is_sqlite

    @property
    def place(self) -> str:
        """The store, the experiment and the sweep's run, without secrets; what was published elsewhere is not there.

        Before the store is reached, nothing was published.
        """
        return f"{self._at.place} {self._parent}"

    def row_by_row_url(self) -> str | None:
        """Return the link to a point's traces beside the control's; None: there are none, or the sweep goes on."""
        return self.links.full(self._row_by_row) if self.links and self._row_by_row else None

    def parent_status(self) -> str | None:
        """Return the status of the sweep's run, such as FINISHED; None: there is no such run.

        Raises:
            TrackingError: MLflow failed.
        """
        with as_tracking_error("a question for the sweep's run"):
            parent = self._find_parent()
            self._parent = None if parent is None else str(parent.info.run_id)
            return None if parent is None else str(parent.info.status)

    def attach(self, parent: str) -> None:
        """Publish points as children of a run that another process has made, and ends.

        Raises:
            TrackingError: MLflow failed.
        """
        with as_tracking_error("a question for the sweep's run"):
            self._at.connect()
            self._parent = parent

    @property
    def parent(self) -> str | None:
        """The id of the sweep's own run, once it is known."""
        return self._parent

    def start(self, name: str, command: str, config: str) -> bool:
        """Make the parent run RUNNING until `finish`: the one that there is of this sweep, else a new one.

        Children that a process left RUNNING when it died are deleted: what they lack is published anew.

        Returns:
            Whether there was one.

        Raises:
            TrackingError: MLflow failed.
        """
        with as_tracking_error("the sweep's run"):
            parent = self._find_parent()
            if parent is not None:
                self._parent = str(parent.info.run_id)
                for run in self._at.search("attributes.status = 'RUNNING' AND tags.`sweep.role` != 'sweep'"):
                    self._delete(run.info.run_id)
                self._at.client.update_run(self._parent, status="RUNNING", name=name)
                # Not only at first, as the attempt that made the run may have got no further.
                try:
                    self._at.client.log_text(self._parent, redact(config), "config.yaml")
                except BaseException:
                    self._at.client.set_terminated(self._parent, "FAILED")
                    raise
                return True
            tags = {"sweep.role": "sweep", "sweep.id": self._sweep_id, "sweep.command": redact(command)[:COMMAND_LIMIT]}
            run = self._at.client.create_run(
                self._at.experiment, run_name=redact(name)[:NAME_LIMIT], tags=tags | _source_tags()
            )
            self._parent = str(run.info.run_id)
            try:
                self._at.client.log_text(self._parent, redact(config), "config.yaml")
            except BaseException:
                self._at.client.set_terminated(self._parent, "FAILED")
                raise
            return False

    def publish(self, record: PointRecord, table: Table, *, again: bool, replaces: str | None = None) -> str:
        """Create, fill and end the run of one point, and return its id.

        Args:
            record: what is published.
            table: its generations.
            again: whether an earlier attempt may have got somewhere.
            replaces: the run of an earlier attempt at this point that failed, which is deleted.

        Raises:
            TrackingError: MLflow failed; a run that was begun is deleted if it can be.
        """
        from mlflow.entities import Metric, Param, RunTag

        with as_tracking_error(f"the point {record.name}"):
            if again and (finished := self._settle(record)) is not None:
                if self._at.traces is not None:
                    self._at.traces.complete(finished, record, table)
                return finished
            tags = {
                "mlflow.parentRunId": self._parent,
                "mlflow.loggedArtifacts": json.dumps([{"path": TABLE, "type": "table"}]),
                "sweep.id": self._sweep_id,
                "sweep.role": record.role,
                "sweep.fingerprint": record.fingerprint,
                **record.tags,
            }
            started, ended = int(record.started * 1000), int(record.ended * 1000)
            name = redact(record.name)[:NAME_LIMIT]
            run = self._at.client.create_run(self._at.experiment, started, tags | _source_tags(), run_name=name)
            run_id = str(run.info.run_id)
            try:
                self._at.client.log_batch(
                    run_id,
                    metrics=[Metric(key, value, ended, 0) for key, value in _metrics(record)],
                    params=[Param(key, redact(str(value))) for key, value in record.parameters.items()],
                    tags=[RunTag("sweep.error", redact(record.error)[:TAG_LIMIT])] if record.error else [],
                )
                content = {"columns": table.columns, "data": table.rows}
                self._at.client.log_text(run_id, json.dumps(content, ensure_ascii=False), TABLE)
                self._at.client.log_text(run_id, redact(record.config), "config.yaml")
                if record.traceback:
                    self._at.client.log_text(run_id, redact(record.traceback), "traceback.txt")
                if self._at.traces is not None:
                    self._at.traces.log(run_id, record, table)
                self._at.client.set_terminated(run_id, "FAILED" if record.error else "FINISHED", ended)
                if replaces is not None and replaces != run_id:
                    self._delete(replaces)
            except BaseException:
                self._delete(run_id)
                raise
            return run_id

    def supersede(self, run_id: str) -> None:
        """Take a point's run out of the sweep's views, as another one has taken its place.

        Raises:
            TrackingError: MLflow failed.
        """
        with as_tracking_error("a point that was superseded"), unless_gone():
            self._at.client.set_tag(run_id, "sweep.id", f"{self._sweep_id} (superseded)")

    def close(self, closing: Closing) -> dict[str, str]:
        """Give the parent run its series, files and view, and the points what they are beside it.

        Returns:
            The sweep's pages within the user interface, by their titles.

        Raises:
            TrackingError: MLflow failed; the points' runs are complete without.
        """
        from mlflow.entities import Metric

        links = self.links
        if self._parent is None or links is None:
            return {}
        with as_tracking_error("the sweep's report"):
            now = int(closing.time * 1000)
            for run_id, metrics in closing.differences.items():
                own = [Metric(key, value, now, 0) for key, value in metrics.items()]
                with unless_gone():
                    self._at.client.log_batch(run_id, own)
            self._log(self._parent, [Metric(key, value, now, step) for key, value, step in closing.series])
            self._at.client.log_artifacts(self._parent, str(closing.files))
            state = sweep_view(self._sweep_id, links.search, ORDER, closing.axes, closing.measures)
            key, value = view_tag(self._sweep_id, f"sweep {self._sweep_id}", now, state)
            if len(value) <= VIEW_LIMIT:
                self._at.client.set_experiment_tag(self._at.experiment, key, value)
            pages = {"side by side": links.side_by_side, "charts": links.charts}
            if self._at.traces is not None and (page := self._compared(links)) is not None:
                self._row_by_row = pages["row by row"] = page
            return pages

    def describe(self, description: str) -> None:
        """Give the parent run its description, in Markdown.

        Raises:
            TrackingError: MLflow failed.
        """
        if self._parent is not None:
            with as_tracking_error("the sweep's description"):
                self._at.client.set_tag(self._parent, "mlflow.note.content", redact(description)[:NOTE_LIMIT])

    def finish(self, status: str, metrics: Mapping[str, float], tags: Mapping[str, str] | None = None) -> None:
        """End the parent run as FINISHED, FAILED or KILLED, with some last metrics and tags.

        Raises:
            TrackingError: MLflow failed.
        """
        from mlflow.entities import Metric

        if self._parent is None:
            return
        with as_tracking_error("the sweep's run"):
            now = int(time.time() * 1000)
            try:
                self._log(self._parent, [Metric(key, value, now, 0) for key, value in metrics.items()])
                for key, text in (tags or {}).items():
                    self._at.client.set_tag(self._parent, key, redact(text)[:TAG_LIMIT])
            finally:
                self._at.client.set_terminated(self._parent, status)

    def _log(self, run_id: str, metrics: list[Metric]) -> None:
        for start in range(0, len(metrics), BATCH):
            self._at.client.log_batch(run_id, metrics[start : start + BATCH])

    def _find_parent(self) -> Run | None:
        return next(iter(self._at.search("tags.`sweep.role` = 'sweep'")), None)

    def _settle(self, record: PointRecord) -> str | None:
        """Return the run that has published this attempt at a point; delete those that came to nothing."""
        finished = None
        for run in self._at.search(f"tags.`sweep.result` = '{record.tags['sweep.result']}'"):
            complete = run.info.status == ("FAILED" if record.error else "FINISHED")
            if complete and finished is None and run.info.end_time == int(record.ended * 1000):
                finished = str(run.info.run_id)
            else:
                self._delete(run.info.run_id)
        return finished

    def _delete(self, run_id: str) -> None:
        if self._at.traces is not None:
            self._at.traces.delete(run_id)
        self._at.client.delete_run(run_id)

    def _compared(self, links: Links) -> str | None:
        """Return the page that has the first point and the first control row by row."""
        done = f"tags.`sweep.id` = '{self._sweep_id}' AND attributes.status = 'FINISHED' AND tags.`sweep.role`"
        first = [
            self._at.client.search_runs([self._at.experiment], f"{done} = '{role}'", max_results=1, order_by=[ORDER])
            for role in ("control", "point")
        ]
        ids = [str(run.info.run_id) for found in first for run in found]
        return links.row_by_row(*ids) if len(ids) == 2 else None


def _source_tags() -> dict[str, str]:
    return {"mlflow.source.name": "sweep", "mlflow.source.type": "LOCAL", "mlflow.user": _user()}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return "unknown"


def _metrics(record: PointRecord) -> Iterator[tuple[str, float]]:
    yield "sweep/index", float(record.index)
    for key, value in record.axes:
        if isinstance(value, float):
            yield f"axis/{key}", value
    for name, summary in record.summaries.items():
        bounds = {"/ci_low": summary.ci_low, "/ci_high": summary.ci_high}
        yield name, summary.mean
        yield from ((name + suffix, bound) for suffix, bound in bounds.items() if math.isfinite(bound))
    yield from record.metrics.items()
