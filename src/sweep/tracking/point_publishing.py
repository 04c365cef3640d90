"""Publishing of points: as complete runs in one transaction, or call by call through MLflow's client.

Call by call is slower. It serves tracking servers, traces, and versions of MLflow whose tables are not known.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress

from sweep.core.records import PointRecord, Publication, Table
from sweep.errors import TrackingError
from sweep.tracking import point_run
from sweep.tracking.complete_runs import CompleteRuns, has_known_schema
from sweep.tracking.connection import Connection, as_tracking_error

TOGETHER_SECONDS = 0.5  # time limit of a call that publishes several points, since an interrupted sweep waits for it


def publish(at: Connection, point: Publication, parent: str | None, *, retry: bool) -> str:
    """Publish one point, and return the id of its run; see `Tracker.publish`."""
    record, table = point.record, _table(point)
    with as_tracking_error(f"publish the point {record.name}"):
        if retry and (finished := point_run.find_published(at, record, parent)) is not None:
            if at.traces is not None:
                at.traces.complete(finished, record, table)
            return finished
        tags = _tags(at, parent)
        if _can_insert(at):
            runs = CompleteRuns(at)
            run_id = runs.add(record, table, tags)
            runs.commit()
        else:
            run_id = _create_run(at, record, table, tags)
        _delete_replaced(at, point, run_id)
        return run_id


def publish_all(at: Connection, points: Sequence[Publication], parent: str | None, *, retry: bool) -> list[str | None]:
    """Publish points in order, until one fails or the time limit is reached; see `Tracker.publish_all`."""
    end = time.monotonic() + TOGETHER_SECONDS
    if not retry and _can_insert(at):
        return [*_insert_all(at, points, parent, end)]
    done: list[str | None] = []
    for point in points:
        if time.monotonic() > end:
            break
        try:
            done.append(publish(at, point, parent, retry=retry))
        except TrackingError:
            done.append(None)
            break
    return done


def _insert_all(at: Connection, points: Sequence[Publication], parent: str | None, end: float) -> list[str]:
    """Publish the first points in one transaction: those whose files are written before `end`, at least one."""
    action = f"publish {len(points)} points"
    with as_tracking_error(action):
        runs = CompleteRuns(at)
    run_ids: list[str] = []
    for point in points:
        if run_ids and time.monotonic() > end:
            break
        table = _table(point)
        with as_tracking_error(action):
            run_ids.append(runs.add(point.record, table, _tags(at, parent)))
    with as_tracking_error(action):
        runs.commit()
    for point, run_id in zip(points, run_ids, strict=False):
        _delete_replaced(at, point, run_id)
    return run_ids


def _create_run(at: Connection, record: PointRecord, table: Table, tags: Mapping[str, str]) -> str:
    """Create, fill and end a point's run, and return its id; a run that cannot be filled is deleted."""
    # Traces are written by another MLflow client, which could not write during an open transaction.
    with nullcontext() if at.traces is not None else at.database.transaction():
        run_id = point_run.create(at, record, tags)
        try:
            point_run.fill(at, run_id, record, table)
        except BaseException:
            with suppress(Exception):  # the next attempt deletes it; the original exception matters more
                point_run.delete(at, run_id)
            raise
        return run_id


def _can_insert(at: Connection) -> bool:
    """Whether complete runs can be inserted; traces need runs that exist before they end."""
    return at.database.is_sql and at.traces is None and has_known_schema()


def _tags(at: Connection, parent: str | None) -> dict[str, str]:
    return {"mlflow.parentRunId": str(parent), "sweep.id": at.sweep_id}


def _table(point: Publication) -> Table:
    return point.table if isinstance(point.table, Table) else point.table()


def _delete_replaced(at: Connection, point: Publication, run_id: str) -> None:
    # Deleted last: the complete run stays, even if the failed one cannot be deleted.
    if point.replaces is not None and point.replaces != run_id:
        point_run.delete_replaced(at, point.replaces)
