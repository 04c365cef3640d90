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
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.config import TrackingConfig
from sweep.errors import TrackingError
from sweep.redaction import redact
from sweep.tracking.links import ORDER, Links
from sweep.tracking.records import Closing, PointRecord, Table
from sweep.tracking.store import Store, first_line, store_uri
from sweep.tracking.traces import Traces
from sweep.tracking.views import LIMIT as VIEW_LIMIT
from sweep.tracking.views import sweep_view, view_tag

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

TABLE = "generations.json"
NOTE_LIMIT = 8000  # characters of a tag
TAG_LIMIT = 5000  # of an error, which is a tag too
GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # what MLflow says of a run that was deleted
NAME_LIMIT, COMMAND_LIMIT = 250, 5000  # of columns that PostgreSQL does not stretch
BATCH = 1000  # metrics of one call


class Tracker:
    """One sweep's runs in one MLflow experiment: a parent, and a child for each point.

    Attributes:
        links: to the sweep's pages; None: the store has not been reached.
        is_local: whether the runs lie in `sweep.dir`.
    """

    def __init__(self, config: TrackingConfig, root: Path, sweep_id: str) -> None:
        self._config, self._root, self._sweep_id = config, root, sweep_id
        self._store: Store | None = None
        self._traces: Traces | None = None
        self._parent: str | None = None
        self._row_by_row: str | None = None
        self.is_local = not config.uri
        self.links: Links | None = None
        self._place = ""

    def connect(self) -> None:
        """Reach the store, unless that was done, and make it and the experiment if they are missing.

        Raises:
            TrackerAway: the store does not answer.
            ConfigError: it is none, or cannot be written.
        """
        if self._store is not None:
            return
        store = Store(self._config, self._root)
        traces = self._config.traces
        self._traces = Traces(store.uri, store.experiment) if traces else None
        self.links = Links(store.address, store.experiment, self._sweep_id)
        # What lacks its traces is not there yet: so they can be asked for later.
        self._place = f"{redact(store.uri)} {store.experiment}{' with traces' if traces else ''}"
        self._store = store

    @property
    def _client(self) -> MlflowClient:
        return self._reached.client

    @property
    def _experiment(self) -> str:
        return self._reached.experiment

    @property
    def _reached(self) -> Store:
        self.connect()
        assert self._store is not None
        return self._store

    @property
    def place(self) -> str:
        """The store, the experiment and the sweep's run, without secrets; what was published elsewhere is not there.

        Before the store is reached, nothing was published.
        """
        return f"{self._place} {self._parent}"

    def row_by_row_url(self) -> str | None:
        """Return the link to a point's traces beside the control's; None: there are none, or the sweep goes on."""
        return self.links.full(self._row_by_row) if self.links and self._row_by_row else None

    def parent_status(self) -> str | None:
        """Return the status of the sweep's run, such as FINISHED; None: there is no such run.

        Raises:
            TrackingError: MLflow failed.
        """
        with self._as_tracking_error("a question for the sweep's run"):
            parent = self._find_parent()
            self._parent = None if parent is None else str(parent.info.run_id)
            return None if parent is None else str(parent.info.status)

    def attach(self, parent: str) -> None:
        """Publish points as children of a run that another process has made, and ends.

        Raises:
            TrackingError: MLflow failed.
        """
        with self._as_tracking_error("a question for the sweep's run"):
            self.connect()
            self._parent = parent

    @property
    def is_sqlite(self) -> bool:
        """Whether the store is an SQLite file, which one process is to write."""
        return store_uri(self._config, self._root).startswith("sqlite")

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
        with self._as_tracking_error("the sweep's run"):
            parent = self._find_parent()
            if parent is not None:
                self._parent = str(parent.info.run_id)
                for run in self._search("attributes.status = 'RUNNING' AND tags.`sweep.role` != 'sweep'"):
                    self._delete(run.info.run_id)
                self._client.update_run(self._parent, status="RUNNING", name=name)
                # Not only at first, as the attempt that made the run may have got no further.
                try:
                    self._client.log_text(self._parent, redact(config), "config.yaml")
                except BaseException:
                    self._client.set_terminated(self._parent, "FAILED")
                    raise
                return True
            tags = {"sweep.role": "sweep", "sweep.id": self._sweep_id, "sweep.command": redact(command)[:COMMAND_LIMIT]}
            run = self._client.create_run(
                self._experiment, run_name=redact(name)[:NAME_LIMIT], tags=tags | _source_tags()
            )
            self._parent = str(run.info.run_id)
            try:
                self._client.log_text(self._parent, redact(config), "config.yaml")
            except BaseException:
                self._client.set_terminated(self._parent, "FAILED")
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

        with self._as_tracking_error(f"the point {record.name}"):
            if again and (finished := self._settle(record)) is not None:
                if self._traces is not None:
                    self._traces.complete(finished, record, table)
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
            run = self._client.create_run(self._experiment, started, tags | _source_tags(), run_name=name)
            run_id = str(run.info.run_id)
            try:
                self._client.log_batch(
                    run_id,
                    metrics=[Metric(key, value, ended, 0) for key, value in _metrics(record)],
                    params=[Param(key, redact(str(value))) for key, value in record.parameters.items()],
                    tags=[RunTag("sweep.error", redact(record.error)[:TAG_LIMIT])] if record.error else [],
                )
                content = {"columns": table.columns, "data": table.rows}
                self._client.log_text(run_id, json.dumps(content, ensure_ascii=False), TABLE)
                self._client.log_text(run_id, redact(record.config), "config.yaml")
                if record.traceback:
                    self._client.log_text(run_id, redact(record.traceback), "traceback.txt")
                if self._traces is not None:
                    self._traces.log(run_id, record, table)
                self._client.set_terminated(run_id, "FAILED" if record.error else "FINISHED", ended)
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
        with self._as_tracking_error("a point that was superseded"), _unless_gone():
            self._client.set_tag(run_id, "sweep.id", f"{self._sweep_id} (superseded)")

    def close(self, closing: Closing) -> None:
        """Give the parent run its description, series, files and view, and the points what they are beside it.

        Raises:
            TrackingError: MLflow failed; the points' runs are complete without.
        """
        from mlflow.entities import Metric

        links = self.links
        if self._parent is None or links is None:
            return
        with self._as_tracking_error("the sweep's report"):
            now = int(closing.time * 1000)
            for run_id, metrics in closing.differences.items():
                own = [Metric(key, value, now, 0) for key, value in metrics.items()]
                with _unless_gone():
                    self._client.log_batch(run_id, own)
            self._log(self._parent, [Metric(key, value, now, step) for key, value, step in closing.series])
            self._client.log_artifacts(self._parent, str(closing.files))
            state = sweep_view(self._sweep_id, links.search, ORDER, closing.axes, closing.measures)
            key, value = view_tag(self._sweep_id, f"sweep {self._sweep_id}", now, state)
            if len(value) <= VIEW_LIMIT:
                self._client.set_experiment_tag(self._experiment, key, value)
            pages = {"side by side": links.side_by_side, "charts": links.charts}
            if self._traces is not None and (page := self._compared(links)) is not None:
                self._row_by_row = pages["row by row"] = page
            description = redact(closing.describe(pages))
            self._client.set_tag(self._parent, "mlflow.note.content", description[:NOTE_LIMIT])

    def finish(self, status: str, metrics: Mapping[str, float], tags: Mapping[str, str] | None = None) -> None:
        """End the parent run as FINISHED, FAILED or KILLED, with some last metrics and tags.

        Raises:
            TrackingError: MLflow failed.
        """
        from mlflow.entities import Metric

        if self._parent is None:
            return
        with self._as_tracking_error("the sweep's run"):
            now = int(time.time() * 1000)
            try:
                self._log(self._parent, [Metric(key, value, now, 0) for key, value in metrics.items()])
                for key, text in (tags or {}).items():
                    self._client.set_tag(self._parent, key, redact(text)[:TAG_LIMIT])
            finally:
                self._client.set_terminated(self._parent, status)

    def _log(self, run_id: str, metrics: list[Metric]) -> None:
        for start in range(0, len(metrics), BATCH):
            self._client.log_batch(run_id, metrics[start : start + BATCH])

    def _find_parent(self) -> Run | None:
        return next(iter(self._search("tags.`sweep.role` = 'sweep'")), None)

    def _settle(self, record: PointRecord) -> str | None:
        """Return the run that has published this attempt at a point; delete those that came to nothing."""
        finished = None
        for run in self._search(f"tags.`sweep.result` = '{record.tags['sweep.result']}'"):
            complete = run.info.status == ("FAILED" if record.error else "FINISHED")
            if complete and finished is None and run.info.end_time == int(record.ended * 1000):
                finished = str(run.info.run_id)
            else:
                self._delete(run.info.run_id)
        return finished

    def _delete(self, run_id: str) -> None:
        if self._traces is not None:
            self._traces.delete(run_id)
        self._client.delete_run(run_id)

    def _compared(self, links: Links) -> str | None:
        """Return the page that has the first point and the first control row by row."""
        done = f"tags.`sweep.id` = '{self._sweep_id}' AND attributes.status = 'FINISHED' AND tags.`sweep.role`"
        first = [
            self._client.search_runs([self._experiment], f"{done} = '{role}'", max_results=1, order_by=[ORDER])
            for role in ("control", "point")
        ]
        ids = [str(run.info.run_id) for found in first for run in found]
        return links.row_by_row(*ids) if len(ids) == 2 else None

    def _search(self, condition: str) -> list[Run]:
        own = f"tags.`sweep.id` = '{self._sweep_id}'"
        return list(self._client.search_runs([self._experiment], f"{own} AND {condition}", max_results=1000))

    @contextmanager
    def _as_tracking_error(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            reason = redact(first_line(error))
            raise TrackingError(redact(f"MLflow could not take {what}: {reason}"), reason) from error


@contextmanager
def _unless_gone() -> Iterator[None]:
    """Pass over a run that the user has deleted."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code not in GONE:
            raise


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
