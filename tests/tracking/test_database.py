"""A point's run is there as a whole or not at all, and the store's file is one file before and after a sweep."""

from __future__ import annotations

import math
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from sqlalchemy.orm import Session

import point_records
from point_records import TABLE
from sweep.config.schema import TrackingConfig
from sweep.core.records import Publication, Table
from sweep.core.values import Summary
from sweep.errors import SweepError, TrackingError
from sweep.tracking import Tracker, complete_runs, point_publishing, point_run
from sweep.tracking.complete_runs import has_known_schema
from sweep.tracking.database import Database
from sweep.util import filesystems

RECORD = replace(
    point_records.RECORD,
    index=3,
    parameters={"transform.factor": 2.0, "seed": 0},
    axes=(("transform.factor", 2.0),),
    summaries={"quality/exact_match": Summary(mean=0.5, ci_low=0.25, ci_high=0.75, n=4)},
    metrics={"cost/requests": 3.0, "cost/nan": math.nan, "cost/inf": math.inf},
    error="it failed",
    traceback="Traceback …",
)


@pytest.fixture
def tracker(tmp_path: Path) -> Iterator[Tracker]:
    tracker = Tracker(TrackingConfig(), tmp_path, "some")
    tracker.start("name", "sweep …", "seed: 0\n")
    yield tracker
    tracker.finish("FINISHED", {})


def client_of(root: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{root}/mlflow.db")


def points(root: Path) -> list[Any]:
    found = client_of(root).search_runs(["1"], run_view_type=ViewType.ALL)
    return [run for run in found if run.data.tags["sweep.role"] == "point"]


def journal_mode(root: Path) -> str:
    with closing(sqlite3.connect(root / "mlflow.db")) as file:
        [(mode,)] = file.execute("PRAGMA journal_mode").fetchall()
        return str(mode)


def content(root: Path) -> dict[str, Any]:
    """Return all that MLflow has of the one point, without what differs from run to run."""
    [run] = points(root)
    client = client_of(root)
    history = {
        key: [(str(m.value), m.timestamp, m.step) for m in client.get_metric_history(run.info.run_id, key)]
        for key in run.data.metrics
    }
    files = {
        item.path: Path(client.download_artifacts(run.info.run_id, item.path)).read_text()
        for item in client.list_artifacts(run.info.run_id)
    }
    own = {key: value for key, value in run.data.tags.items() if key != "mlflow.parentRunId"}
    info = (run.info.run_name, run.info.status, run.info.start_time, run.info.end_time, run.info.lifecycle_stage)
    return {"history": history, "params": run.data.params, "tags": own, "files": files, "info": info}


def rows(root: Path, experiment: str = "1") -> dict[str, list[tuple[Any, ...]]]:
    """Return the rows that the points' runs have in all tables of the store, with "RUN" for each run's id."""
    with closing(sqlite3.connect(root / "mlflow.db")) as file:
        ids = {
            run
            for (run,) in file.execute(
                "SELECT run_uuid FROM tags WHERE key = 'sweep.role' AND value = 'point'"
            ).fetchall()
        }
        parents = {run for (run,) in file.execute("SELECT run_uuid FROM runs").fetchall()} - ids
        found: dict[str, list[tuple[Any, ...]]] = {}
        for (table,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            columns = [column for _, column, *_ in file.execute(f"PRAGMA table_info({table})").fetchall()]
            if "run_uuid" in columns:
                place = columns.index("run_uuid")
                for row in file.execute(f"SELECT * FROM {table}").fetchall():
                    if row[place] in ids:
                        text = [
                            value.replace(row[place], "RUN").replace(str(root), "ROOT")
                            if isinstance(value, str)
                            else value
                            for value in row
                        ]
                        named = ["PARENT" if value in parents else value for value in text]
                        found.setdefault(table, []).append(tuple(named))
    return {table: sorted(of_table, key=repr) for table, of_table in found.items()}


def publish(root: Path, *points: Publication, together: bool = True) -> None:
    tracker = Tracker(TrackingConfig(), root, "some")
    tracker.start("name", "sweep …", "seed: 0\n")
    if together:
        assert None not in tracker.publish_all(points, retry=False)
    else:
        for point in points:
            tracker.publish(point.record, point.table, retry=False)
    tracker.finish("FINISHED", {})


def test_inserted_runs_equal_those_of_mlflows_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [RECORD, replace(RECORD, name="bare", error=None, traceback=None, parameters={}, summaries={}, axes=())]
    points_of_both = [Publication(record, TABLE) for record in records]
    assert has_known_schema()
    publish(tmp_path / "together", *points_of_both)
    publish(tmp_path / "alone", *points_of_both, together=False)
    monkeypatch.setattr(point_publishing, "has_known_schema", lambda: False)
    publish(tmp_path / "client", *points_of_both)
    expected = rows(tmp_path / "client")
    assert {"runs", "tags", "params", "metrics", "latest_metrics"} == set(expected)
    assert [len(expected["runs"]), len(expected["params"])] == [2, 2]
    assert rows(tmp_path / "together") == rows(tmp_path / "alone") == expected


@pytest.mark.parametrize("known", [True, False])
def test_a_points_run_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    monkeypatch.setattr(point_publishing, "has_known_schema", lambda: known)
    publish(tmp_path, Publication(RECORD, TABLE))
    found = content(tmp_path)
    assert (found["history"]["cost/nan"], found["params"]) == (
        [("nan", 2000, 0)],
        {"transform.factor": "2.0", "seed": "0"},
    )
    assert set(found["files"]) == {"generations.json", "config.yaml", "traceback.txt"}
    assert found["history"]["quality/exact_match/ci_high"] == [("0.75", 2000, 0)]
    assert found["info"] == ("factor=2", "FAILED", 1000, 2000, "active")


def test_unknown_column_is_left_to_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(complete_runs.COLUMNS, "SqlTag", "run_uuid key")
    assert not has_known_schema.__wrapped__()
    monkeypatch.setitem(complete_runs.COLUMNS, "SqlMissing", "run_uuid")
    assert not has_known_schema.__wrapped__()


def refuse(*_: object, **__: object) -> None:
    raise MlflowException("no room")


@pytest.mark.parametrize(
    ("known", "broken"),
    [
        (True, (LocalArtifactRepository, "log_artifacts")),
        (True, (Database, "insert")),
        (False, (LocalArtifactRepository, "log_artifacts")),
        (False, (MlflowClient, "set_terminated")),
    ],
)
def test_failed_transaction_leaves_no_run(
    tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool, broken: tuple[type, str]
) -> None:
    monkeypatch.setattr(point_publishing, "has_known_schema", lambda: known)
    with monkeypatch.context() as patched:
        patched.setattr(*broken, refuse)
        with pytest.raises(TrackingError, match=r"failed to publish the point factor=2: no room"):
            tracker.publish(RECORD, TABLE, retry=False)
    assert points(tmp_path) == []
    tracker.publish(RECORD, TABLE, retry=True)
    assert [run.info.status for run in points(tmp_path)] == ["FAILED"]


def test_points_published_together_are_inserted_all_or_none(
    tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = replace(RECORD, tags={**RECORD.tags, "sweep.result": "second"}, index=4)
    both = [Publication(RECORD, TABLE), Publication(refused, TABLE)]
    tags_of = point_run.tags_of
    with monkeypatch.context() as patched:  # the store refuses a tag without a value for its key
        patched.setattr(
            point_run,
            "tags_of",
            lambda record, tags: {**tags_of(record, tags), **({None: ""} if record is refused else {})},
        )
        with pytest.raises(TrackingError, match="failed to publish 2 points"):
            tracker.publish_all(both, retry=False)
    assert points(tmp_path) == []
    assert len(tracker.publish_all(both, retry=True)) == 2
    assert len(points(tmp_path)) == 2


def test_unreadable_table_is_reported(tracker: Tracker, tmp_path: Path) -> None:
    def unreadable() -> Table:
        raise SweepError("the archive is damaged")

    with pytest.raises(SweepError, match="the archive is damaged") as raised:
        tracker.publish_all([Publication(RECORD, TABLE), Publication(RECORD, unreadable)], retry=False)
    assert not isinstance(raised.value, TrackingError)
    assert points(tmp_path) == []


def test_points_that_take_long_are_left_for_the_next_call(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(point_publishing, "TOGETHER_SECONDS", -1.0)
    records = [replace(RECORD, fingerprint=str(i)) for i in range(3)]
    assert len(tracker.publish_all([Publication(record, TABLE) for record in records], retry=False)) == 1


def test_a_replaced_run_is_deleted(tracker: Tracker, tmp_path: Path) -> None:
    [failed] = tracker.publish_all([Publication(RECORD, TABLE)], retry=False)
    again = replace(RECORD, error=None, ended=3.0)
    [finished] = tracker.publish_all([Publication(again, TABLE, failed)], retry=False)
    stages = {run.info.run_id: run.info.lifecycle_stage for run in points(tmp_path)}
    assert stages == {failed: "deleted", finished: "active"}


def test_a_deleted_experiment_is_reported(tracker: Tracker, tmp_path: Path) -> None:
    client_of(tmp_path).delete_experiment("1")
    with pytest.raises(TrackingError, match="The experiment sweep was deleted"):
        tracker.publish(RECORD, TABLE, retry=False)
    client_of(tmp_path).restore_experiment("1")


@pytest.mark.parametrize("known", [True, False])
def test_transactions_are_visible_only_when_complete(
    tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    seen, owner, name = [], *((Session, "execute") if known else (MlflowClient, "set_terminated"))
    original = getattr(owner, name)

    def look(*arguments: Any, **named: Any) -> Any:
        result = original(*arguments, **named)
        if threading.current_thread() is threading.main_thread():
            with ThreadPoolExecutor(1) as other:
                seen.append(other.submit(points, tmp_path).result(30))
        return result

    with monkeypatch.context() as watched:
        watched.setattr(point_publishing, "has_known_schema", lambda: known)
        watched.setattr(owner, name, look)
        tracker.publish(RECORD, TABLE, retry=False)
    assert seen and not any(seen) and len(points(tmp_path)) == 1


def test_store_is_a_single_file_at_the_end(tmp_path: Path) -> None:
    tracker = Tracker(TrackingConfig(), tmp_path, "some")
    tracker.start("name", "sweep …", "seed: 0\n")
    tracker.publish(RECORD, TABLE, retry=False)
    assert journal_mode(tmp_path) == "wal"
    tracker.finish("FINISHED", {})
    assert journal_mode(tmp_path) == "delete"
    assert [path.name for path in tmp_path.glob("mlflow.db*")] == ["mlflow.db"]


def test_open_reader_at_the_end_is_tolerated(tmp_path: Path) -> None:
    tracker = Tracker(TrackingConfig(), tmp_path, "some")
    tracker.start("name", "sweep …", "seed: 0\n")
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM runs").fetchall()
        tracker.finish("FINISHED", {})
        tracker.start("name", "sweep …", "seed: 0\n")
        tracker.publish(RECORD, TABLE, retry=False)
        tracker.finish("FINISHED", {})
    assert len(points(tmp_path)) == 1


def test_no_write_ahead_log_on_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystems, "is_local", lambda path: False)
    tracker = Tracker(TrackingConfig(), tmp_path, "some")
    tracker.start("name", "sweep …", "seed: 0\n")
    assert journal_mode(tmp_path) == "delete"
    tracker.publish(RECORD, TABLE, retry=False)
    assert len(points(tmp_path)) == 1


def test_a_client_of_a_server_has_no_database() -> None:
    nothing = Database(MlflowClient("http://127.0.0.1:9"), None)
    with nothing.transaction():
        nothing.enable_write_ahead_log()
        nothing.disable_write_ahead_log()
    assert not nothing.is_sql
