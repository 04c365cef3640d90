"""Publishing of points: as complete runs in one transaction, or call by call through MLflow's client.

Call by call is slower. It serves tracking servers, traces, and versions of MLflow whose tables are not known.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from functools import partial

from sweep.core.records import PointRecord, Publication, Table
from sweep.errors import TrackingError
from sweep.tracking import point_run
from sweep.tracking.complete_runs import CompleteRuns, has_known_schema
from sweep.tracking.connection import Connection, as_tracking_error
from sweep.util.counts import counted

CONNECTIONS = 4  # simultaneous calls to a tracking server
TOGETHER_SECONDS = 0.5  # time limit of a call that publishes several points, since an interrupted sweep waits for it


def publish(connection: Connection, point: Publication, parent: str | None, *, retry: bool) -> str:
    """Publish one point, and return the id of its run; see `Tracker.publish`."""
    record, table = point.record, _table(point)
    with as_tracking_error(f"publish the point {record.name}"):
        if retry and (finished := point_run.find_published(connection, record, parent)) is not None:
            if connection.traces is not None:
                connection.traces.complete(finished, record, table)
            return finished
        tags = _tags(connection, parent)
        if _can_insert(connection):
            runs = CompleteRuns(connection)
            run_id = runs.add(record, table, tags)
            runs.commit()
        else:
            run_id = _create_run(connection, record, table, tags)
        _delete_replaced(connection, point, run_id)
        return run_id


def publish_all(
    connection: Connection, points: Sequence[Publication], parent: str | None, *, retry: bool
) -> list[str | None]:
    """Publish points in order, until one fails or the time limit is reached; see `Tracker.publish_all`."""
    end = time.monotonic() + TOGETHER_SECONDS
    if not retry and _can_insert(connection):
        return [*_insert_all(connection, points, parent, end)]
    # A server answers several calls at once. Databases and traces are written by one thread.
    together = 1 if connection.database.is_sql or connection.traces is not None else CONNECTIONS
    done: list[str | None] = []
    with ThreadPoolExecutor(together) as pool:
        while len(done) < len(points) and None not in done and time.monotonic() <= end:
            some = points[len(done) : len(done) + together]
            done += pool.map(partial(_publish_or_none, connection, parent, retry), some)
    return done


def _publish_or_none(connection: Connection, parent: str | None, retry: bool, point: Publication) -> str | None:
    try:
        return publish(connection, point, parent, retry=retry)
    except TrackingError:
        return None


def _insert_all(connection: Connection, points: Sequence[Publication], parent: str | None, end: float) -> list[str]:
    """Publish the first points in one transaction: those whose files are written before `end`, at least one."""
    action = f"publish {counted(len(points), 'point')}"
    with as_tracking_error(action):
        runs = CompleteRuns(connection)
    run_ids: list[str] = []
    for point in points:
        if run_ids and time.monotonic() > end:
            break
        table = _table(point)
        with as_tracking_error(action):
            run_ids.append(runs.add(point.record, table, _tags(connection, parent)))
    with as_tracking_error(action):
        runs.commit()
    for point, run_id in zip(points, run_ids, strict=False):
        _delete_replaced(connection, point, run_id)
    return run_ids


def _create_run(connection: Connection, record: PointRecord, table: Table, tags: Mapping[str, str]) -> str:
    """Create, fill and end a point's run, and return its id; a run that cannot be filled is deleted."""
    # Traces are written by another MLflow client, which could not write during an open transaction.
    with nullcontext() if connection.traces is not None else connection.database.transaction():
        run_id, files = point_run.create(connection, record, tags)
        try:
            point_run.fill(connection, run_id, files, record, table)
        except BaseException:
            with suppress(Exception):  # the next attempt deletes it; the original exception matters more
                point_run.delete(connection, run_id)
            raise
        return run_id


def _can_insert(connection: Connection) -> bool:
    """Whether complete runs can be inserted; traces need runs that exist before they end."""
    return connection.database.is_sql and connection.traces is None and has_known_schema()


def _tags(connection: Connection, parent: str | None) -> dict[str, str]:
    return {"mlflow.parentRunId": str(parent), "sweep.id": connection.sweep_id}


def _table(point: Publication) -> Table:
    return point.table if isinstance(point.table, Table) else point.table()


def _delete_replaced(connection: Connection, point: Publication, run_id: str) -> None:
    # Deleted last: the complete run stays, even if the failed one cannot be deleted.
    if point.replaces is not None and point.replaces != run_id:
        point_run.delete_replaced(connection, point.replaces)
