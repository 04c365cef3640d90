"""MLflow run of one point: tags, parameters, metrics and files."""

from __future__ import annotations

import getpass
import json
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from sweep.core.records import PointRecord, Table
from sweep.tracking import limits
from sweep.tracking.connection import Connection
from sweep.tracking.store import first_line
from sweep.util.redaction import redact

log = logging.getLogger(__name__)

TABLE = "generations.json"


def create(connection: Connection, record: PointRecord, tags: Mapping[str, str]) -> tuple[str, str]:
    """Create a point's run with status RUNNING.

    Args:
        connection: the connection to the store.
        record: the point.
        tags: additional tags, such as the parent's id.

    Returns:
        The run's id, and the address of its files.
    """
    name, started = limits.fit(record.name, limits.NAME), milliseconds(record.started)
    run = connection.client.create_run(connection.experiment, started, tags_of(record, tags), run_name=name)
    return str(run.info.run_id), str(run.info.artifact_uri)


def fill(connection: Connection, run_id: str, files: str, record: PointRecord, table: Table) -> None:
    """Log the point's files, metrics, parameters and traces, then end the run: FINISHED means complete."""
    from mlflow.entities import Metric, Param

    ended = milliseconds(record.ended)
    write_files(connection, files, record, table)
    metrics = [Metric(key, value, ended, 0) for key, value in limits.unique_keys(metrics_of(record))]
    connection.client.log_batch(run_id, metrics, [Param(key, value) for key, value in parameters_of(record).items()])
    if connection.traces is not None:
        connection.traces.log(run_id, record, table)
    connection.client.set_terminated(run_id, status_of(record), ended)


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


def find_published(connection: Connection, record: PointRecord, parent: str | None) -> str | None:
    """Return the run that already has this attempt at a point, as a child of `parent`; delete incomplete ones."""
    finished = None
    for run in connection.search(f"tags.`sweep.result` = '{record.tags['sweep.result']}'"):
        run_id = str(run.info.run_id)
        complete = run.info.status == status_of(record)
        if complete and finished is None and run.info.end_time == int(record.ended * 1000):
            finished = run_id
            if run.data.tags.get("mlflow.parentRunId") != parent:
                connection.client.set_tag(run_id, "mlflow.parentRunId", parent)
        else:
            delete_replaced(connection, run_id)
    return finished


def delete_replaced(connection: Connection, run_id: str) -> None:
    """Delete a run that is replaced; log a warning if that fails, since it does no other harm."""
    try:
        delete(connection, run_id)
    except Exception as error:
        log.warning("The run %s was replaced but could not be deleted: %s", run_id, first_line(error))


def delete(connection: Connection, run_id: str) -> None:
    """Delete a run and its traces, if the run still exists."""
    with connection.ignore_deleted(run_id):
        if connection.traces is not None:
            connection.traces.delete(run_id)
        connection.client.delete_run(run_id)


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


def write_files(connection: Connection, files: str, record: PointRecord, table: Table) -> None:
    """Write a point's table, configuration and traceback to the address of its run's files."""
    # The escapes that `encodable` writes for lone surrogates are valid in JSON, too.
    texts = {TABLE: json.dumps({"columns": table.columns, "data": table.rows}, ensure_ascii=False)}
    texts["config.yaml"] = redact(record.config)
    if record.traceback:
        texts["traceback.txt"] = redact(record.traceback)
    with TemporaryDirectory(prefix="sweep-") as folder:
        for name, text in texts.items():
            Path(folder, name).write_text(limits.encodable(text), encoding="utf-8")
        connection.file_store(files).log_artifacts(folder)


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
