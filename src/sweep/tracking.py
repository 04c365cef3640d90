"""Publication to MLflow, by explicit client calls; the only module that knows MLflow.

A point is published in one go when its last generation is in: its run is created with its tags, filled by one batch and
one table, and terminated last, so that FINISHED means complete and nothing is left RUNNING but the parent, which
`finish` ends.
"""

from __future__ import annotations

import getpass
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

from filelock import FileLock

from sweep.config import TrackingConfig
from sweep.errors import ConfigError, TrackingError
from sweep.scoring.statistics import Summary
from sweep.views import LIMIT as VIEW_LIMIT
from sweep.views import sweep_view, view_tag

if TYPE_CHECKING:
    from mlflow import MlflowClient

LOCAL_UI = "http://127.0.0.1:5000"
TABLE = "generations.json"
ORDER = "metrics.`sweep/index`"
NOTE_LIMIT = 8000  # characters of a tag


@dataclass(frozen=True, slots=True)
class PointRecord:
    """All that is published of one point.

    Attributes:
        name, role, fingerprint: see `point.Point`.
        started, ended: seconds since the epoch.
        parameters: under their override names.
        axes: swept values; the numbers among them become metrics, which MLflow sorts as numbers.
        summaries: measures over prompts; metrics: single numbers.
        columns, rows: the table of generations, whose first column differs in every row.
        config: the resolved configuration, as YAML.
        error: why the point failed, if it did.
    """

    name: str
    role: str
    fingerprint: str
    started: float
    ended: float
    parameters: Mapping[str, Any]
    axes: Sequence[tuple[str, Any]]
    summaries: Mapping[str, Summary]
    metrics: Mapping[str, float]
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    config: str
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Closing:
    """What the sweep's own run is given once all points are done.

    Attributes:
        describe: makes the run's description, in Markdown, of the links to its views by their titles.
        series: (metric, value, step) of measures over the points, whose step is the point's place in the sweep.
        files: what is kept with the run, a folder and all that lies in it.
        axes, measures: metrics of the points that the view of charts shows.
    """

    describe: Callable[[Mapping[str, str]], str]
    series: Sequence[tuple[str, float, int]]
    files: Path
    axes: Sequence[str]
    measures: Sequence[str]


class Tracker:
    """One sweep's runs in one MLflow experiment: a parent, and a child for each point."""

    def __init__(self, config: TrackingConfig, root: Path, sweep_id: str) -> None:
        """Connect, and make the store and the experiment if they are missing.

        Raises:
            ConfigError: the store cannot be reached or written.
        """
        self._config, self._root, self._sweep_id = config, root, sweep_id
        self.uri = config.uri or f"sqlite:///{root / 'mlflow.db'}"
        self._parent: str | None = None
        _set_environment()
        try:
            self._client = self._connect()
            self._experiment = self._open_experiment()
        except Exception as error:  # MLflow passes on whatever its store or driver raises
            message = f"tracking.uri: {self.uri} cannot be used: {_first_line(error)}"
            raise ConfigError(_without_password(message, self.uri)) from error

    def start(self, name: str, command: str, config: str) -> None:
        """Create the parent run, RUNNING until `finish`."""
        with self._as_tracking_error("the sweep's run"):
            tags = {
                "sweep.role": "sweep",
                "sweep.id": self._sweep_id,
                "sweep.command": _without_password(command, self.uri),
            }
            run = self._client.create_run(self._experiment, run_name=name, tags=tags | _source_tags())
            self._parent = run.info.run_id
            self._client.log_text(self._parent, _without_password(config, self.uri), "config.yaml")

    def publish(self, record: PointRecord) -> str:
        """Create, fill and end the run of one point, and return its id.

        Raises:
            TrackingError: MLflow failed; a run that was begun is marked FAILED if it can be.
        """
        from mlflow.entities import Metric, Param, RunTag

        with self._as_tracking_error(f"the point {record.name}"):
            tags = {
                "mlflow.parentRunId": self._parent,
                "mlflow.loggedArtifacts": json.dumps([{"path": TABLE, "type": "table"}]),
                "sweep.id": self._sweep_id,
                "sweep.role": record.role,
                "sweep.fingerprint": record.fingerprint,
            }
            run = self._client.create_run(
                self._experiment, int(record.started * 1000), tags | _source_tags(), run_name=record.name
            )
            run_id, ended = run.info.run_id, int(record.ended * 1000)
            try:
                self._client.log_batch(
                    run_id,
                    metrics=[Metric(key, value, ended, 0) for key, value in _metrics(record)],
                    params=[Param(key, str(value)) for key, value in record.parameters.items()],
                    tags=[RunTag("sweep.error", record.error)] if record.error else [],
                )
                table = {"columns": record.columns, "data": record.rows}
                self._client.log_text(run_id, json.dumps(table, ensure_ascii=False), TABLE)
                self._client.log_text(run_id, _without_password(record.config, self.uri), "config.yaml")
            except BaseException:
                self._client.set_terminated(run_id, "FAILED")
                raise
            self._client.set_terminated(run_id, "FAILED" if record.error else "FINISHED", ended)
            return str(run_id)

    def add(self, run_id: str, metrics: Mapping[str, float]) -> None:
        """Add metrics to a point's run.

        Raises:
            TrackingError: MLflow failed.
        """
        from mlflow.entities import Metric

        with self._as_tracking_error("the comparison of a point"):
            now = int(time.time() * 1000)
            self._client.log_batch(run_id, [Metric(key, value, now, 0) for key, value in metrics.items()])

    def finish(self, status: str, metrics: Mapping[str, float]) -> None:
        """End the parent run as FINISHED, FAILED or KILLED."""
        from mlflow.entities import Metric

        if self._parent is None:
            return
        with self._as_tracking_error("the sweep's run"):
            now = int(time.time() * 1000)
            entries = [Metric(key, value, now, 0) for key, value in metrics.items()]
            try:
                self._client.log_batch(self._parent, metrics=entries)
            finally:
                self._client.set_terminated(self._parent, status)

    def close(self, closing: Closing) -> None:
        """Give the parent run its description, series, files and view.

        Raises:
            TrackingError: MLflow failed; the points' runs are complete without.
        """
        from mlflow.entities import Metric

        if self._parent is None:
            return
        with self._as_tracking_error("the sweep's report"):
            now = int(time.time() * 1000)
            self._client.log_batch(self._parent, [Metric(key, v, now, step) for key, v, step in closing.series])
            self._client.log_artifacts(self._parent, str(closing.files))
            state = sweep_view(self._sweep_id, self._search, ORDER, closing.axes, closing.measures)
            key, value = view_tag(self._sweep_id, f"sweep {self._sweep_id}", now, state)
            if len(value) <= VIEW_LIMIT:
                self._client.set_experiment_tag(self._experiment, key, value)
            links = {"side by side": self._side_by_side, "charts": self._charts}
            description = _without_password(closing.describe(links), self.uri)
            self._client.set_tag(self._parent, "mlflow.note.content", description[:NOTE_LIMIT])

    def comparison_url(self) -> str:
        """Return the link to this sweep's points side by side: prompts as rows, points as columns.

        An experiment's bare link shows an empty page; this one carries filter, order and view.
        """
        return self._base + self._side_by_side

    def charts_url(self) -> str:
        """Return the link to the view of this sweep's charts."""
        return self._base + self._charts

    @property
    def _base(self) -> str:
        return (_without_credentials(self.uri) if self._is_server else LOCAL_UI).rstrip("/") + "/"

    @property
    def _search(self) -> str:
        return f"tags.`sweep.id` = '{self._sweep_id}' AND tags.`sweep.role` != 'sweep'"

    @property
    def _side_by_side(self) -> str:
        query = {"searchFilter": self._search, "orderByKey": ORDER, "orderByAsc": "true", "compareRunsMode": "ARTIFACT"}
        return f"#/experiments/{self._experiment}/runs?{urlencode(query, quote_via=quote, safe='')}"

    @property
    def _charts(self) -> str:
        query = {"viewStateShareKey": self._sweep_id, "compareRunsMode": "CHART"}
        return f"#/experiments/{self._experiment}/runs?{urlencode(query, quote_via=quote, safe='')}"

    @property
    def is_local(self) -> bool:
        """Whether the runs lie in `sweep.dir`, where `scripts/ui` looks for them."""
        return not self._config.uri

    @property
    def _is_server(self) -> bool:
        return urlsplit(self.uri).scheme in ("http", "https")

    def _connect(self) -> MlflowClient:
        from mlflow import MlflowClient

        # Processes that create one SQLite database at the same time break it for good.
        with self._lock():
            client = MlflowClient(self.uri)
            client.search_experiments(max_results=1)
        return client

    def _open_experiment(self) -> str:
        name = self._config.experiment
        with self._lock():
            known = self._client.get_experiment_by_name(name)
            if known is not None:
                if known.lifecycle_stage != "active":
                    raise ConfigError(f"the experiment {name!r} was deleted; restore it or name another one")
                return str(known.experiment_id)
            artifacts = None if self._is_server else (self._root / "artifacts").as_uri()
            return str(self._client.create_experiment(name, artifact_location=artifacts))

    @contextmanager
    def _as_tracking_error(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            message = f"MLflow could not take {what}: {_first_line(error)}"
            raise TrackingError(_without_password(message, self.uri)) from error

    def _lock(self) -> FileLock:
        self._root.mkdir(parents=True, exist_ok=True)
        return FileLock(self._root / ".tracking.lock")


def _set_environment() -> None:
    """Set what MLflow reads at import and at each call; what the user has set stays, telemetry excepted."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.pop("MLFLOW_RUN_ID", None)  # it would make every child the run that it names


def _source_tags() -> dict[str, str]:
    return {"mlflow.source.name": "sweep", "mlflow.source.type": "LOCAL", "mlflow.user": _user()}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return "unknown"


def _metrics(record: PointRecord) -> Iterator[tuple[str, float]]:
    for key, value in record.axes:
        if isinstance(value, float):
            yield f"axis/{key}", value
    for name, summary in record.summaries.items():
        bounds = {"/ci_low": summary.ci_low, "/ci_high": summary.ci_high}
        yield name, summary.mean
        yield from ((name + suffix, bound) for suffix, bound in bounds.items() if math.isfinite(bound))
    yield from record.metrics.items()


def _without_password(text: str, uri: str) -> str:
    password = urlsplit(uri).password
    return text.replace(password, "***") if password else text


def _without_credentials(uri: str) -> str:
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
