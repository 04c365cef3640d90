"""MLflow run of one point: tags, parameters, metrics and files."""

from __future__ import annotations

import getpass
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from sweep.core.records import PointRecord, Table
from sweep.tracking import limits
from sweep.tracking.connection import Connection
from sweep.tracking.store import first_line
from sweep.util.redaction import redact

log = logging.getLogger(__name__)

TABLE = "generations.json"


def create(at: Connection, record: PointRecord, tags: Mapping[str, str]) -> str:
    """Create a point's run with status RUNNING, and return its id.

    Args:
        at: the connection.
        record: the point.
        tags: additional tags, such as the parent's id.
    """
    name, started = limits.fit(record.name, limits.NAME), milliseconds(record.started)
    run = at.client.create_run(at.experiment, started, tags_of(record, tags), run_name=name)
    return str(run.info.run_id)


def fill(at: Connection, run_id: str, record: PointRecord, table: Table) -> None:
    """Log the point's files, metrics, parameters and traces, then end the run: FINISHED means complete."""
    from mlflow.entities import Metric, Param

    ended = milliseconds(record.ended)
    write_files(record, table, partial(at.client.log_artifacts, run_id))
    metrics = [Metric(key, value, ended, 0) for key, value in limits.unique_keys(metrics_of(record))]
    at.client.log_batch(run_id, metrics, [Param(key, value) for key, value in parameters_of(record).items()])
    if at.traces is not None:
        at.traces.log(run_id, record, table)
    at.client.set_terminated(run_id, status_of(record), ended)


def status_of(record: PointRecord) -> str:
    """Return the status of a point's complete run."""
    return "FAILED" if record.error else "FINISHED"


def tags_of(record: PointRecord, tags: Mapping[str, str]) -> dict[str, str]:
    """Return all tags of a point's run: `tags`, the point's own, and MLflow's standard tags."""
    all_tags = {
        **tags,
        "mlflow.loggedArtifacts": json.dumps([{"path": TABLE, "type": "table"}]),
        "sweep.role": record.role,
        "sweep.fingerprint": record.fingerprint,
        **record.tags,
        **({"sweep.error": record.error} if record.error else {}),
        **source_tags(),
    }
    return {key: limits.fit(str(text), limits.TAG) for key, text in all_tags.items()}


def parameters_of(record: PointRecord) -> dict[str, str]:
    """Return a point's parameters under keys, and with values, that MLflow accepts."""
    pairs = limits.unique_keys(record.parameters.items())
    return {key: limits.fit(str(value), limits.PARAMETER) for key, value in pairs}


def find_published(at: Connection, record: PointRecord, parent: str | None) -> str | None:
    """Return the run that already has this attempt at a point, as a child of `parent`; delete incomplete ones."""
    finished = None
    for run in at.search(f"tags.`sweep.result` = '{record.tags['sweep.result']}'"):
        run_id = str(run.info.run_id)
        complete = run.info.status == status_of(record)
        if complete and finished is None and run.info.end_time == int(record.ended * 1000):
            finished = run_id
            if run.data.tags.get("mlflow.parentRunId") != parent:
                at.client.set_tag(run_id, "mlflow.parentRunId", parent)
        else:
            delete_replaced(at, run_id)
    return finished


def delete_replaced(at: Connection, run_id: str) -> None:
    """Delete a run that is replaced; log a warning if that fails, since it does no other harm."""
    try:
        delete(at, run_id)
    except Exception as error:
        log.warning("The run %s was replaced but could not be deleted: %s", run_id, first_line(error))


def delete(at: Connection, run_id: str) -> None:
    """Delete a run and its traces, if the run still exists."""
    with at.ignore_deleted(run_id):
        if at.traces is not None:
            at.traces.delete(run_id)
        at.client.delete_run(run_id)


def source_tags() -> dict[str, str]:
    """Return MLflow's standard tags about the source of a run."""
    return {"mlflow.source.name": "sweep", "mlflow.source.type": "LOCAL", "mlflow.user": _user()}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # the user in a container may have no name
        return "unknown"


def milliseconds(seconds: float) -> int:
    """Return a time as MLflow stores it, since the epoch."""
    return int(seconds * 1000)


def write_files(record: PointRecord, table: Table, log_artifacts: Callable[[str], object]) -> None:
    """Write a point's table, configuration and traceback.

    Args:
        record: the point.
        table: its generations.
        log_artifacts: copies the files of a folder to the run.
    """
    # The escapes that `encodable` writes for lone surrogates are valid in JSON, too.
    files = {TABLE: json.dumps({"columns": table.columns, "data": table.rows}, ensure_ascii=False)}
    files["config.yaml"] = redact(record.config)
    if record.traceback:
        files["traceback.txt"] = redact(record.traceback)
    with TemporaryDirectory(prefix="sweep-") as folder:
        for name, text in files.items():
            Path(folder, name).write_text(limits.encodable(text), encoding="utf-8")
        log_artifacts(folder)


def metrics_of(record: PointRecord) -> Iterator[tuple[str, float]]:
    """Yield a point's metrics by name: index, numeric axes, measures with their intervals, and single numbers."""
    yield "sweep/index", float(record.index)
    for key, value in record.axes:
        if isinstance(value, float) and math.isfinite(value):  # MLflow would store infinity as 1.8e308
            yield f"axis/{key}", value
    for name, summary in record.summaries.items():
        bounds = {"/ci_low": summary.ci_low, "/ci_high": summary.ci_high}
        yield name, summary.mean
        yield from ((name + suffix, bound) for suffix, bound in bounds.items() if math.isfinite(bound))
    yield from record.metrics.items()
