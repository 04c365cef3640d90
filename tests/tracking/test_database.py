"""A point's run is there as a whole or not at all, and the store's file is one file before and after a sweep."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException

import point_records
from point_records import TABLE
from sweep.config.schema import TrackingConfig
from sweep.core.values import Summary
from sweep.errors import TrackingError
from sweep.tracking import Tracker, database
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


def test_one_transaction_writes_what_single_calls_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for name, single in (("one", False), ("single", True)):
        if single:
            monkeypatch.setattr(Database, "transaction", lambda self: nullcontext())
        tracker = Tracker(TrackingConfig(), tmp_path / name, "some")
        tracker.start("name", "sweep …", "seed: 0\n")
        tracker.publish(RECORD, TABLE, retry=False)
        found.append(content(tmp_path / name))
    assert found[0] == found[1]
    assert (found[0]["history"]["cost/nan"], found[0]["params"]) == (
        [("nan", 2000, 0)],
        {"transform.factor": "2.0", "seed": "0"},
    )
    assert set(found[0]["files"]) == {"generations.json", "config.yaml", "traceback.txt"}
    assert found[0]["history"]["quality/exact_match/ci_high"] == [("0.75", 2000, 0)]
    assert found[0]["info"] == ("factor=2", "FAILED", 1000, 2000, "active")


@pytest.mark.parametrize("method", ["log_artifacts", "set_terminated"])
def test_failed_transaction_leaves_no_run(
    tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(MlflowClient, method, lambda *_, **__: (_ for _ in ()).throw(MlflowException("no room")))
        with pytest.raises(TrackingError, match=r"failed to publish the point factor=2: no room"):
            tracker.publish(RECORD, TABLE, retry=False)
    assert points(tmp_path) == []
    tracker.publish(RECORD, TABLE, retry=True)
    assert [run.info.status for run in points(tmp_path)] == ["FAILED"]


def test_unknown_schema_is_written_through_mlflow(
    tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert database._has_known_schema()
    tracker.publish(RECORD, TABLE, retry=False)
    expected = content(tmp_path)
    monkeypatch.setattr(database, "_has_known_schema", lambda: False)
    other = Tracker(TrackingConfig(), tmp_path / "other", "some")
    other.start("name", "sweep …", "seed: 0\n")
    other.publish(RECORD, TABLE, retry=False)
    assert content(tmp_path / "other") == expected


def test_transactions_are_visible_only_when_complete(
    tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, terminate = [], MlflowClient.set_terminated

    def look(self: MlflowClient, *arguments: Any) -> None:
        terminate(self, *arguments)
        with ThreadPoolExecutor(1) as other:
            seen.append(other.submit(points, tmp_path).result(30))

    with monkeypatch.context() as watched:
        watched.setattr(MlflowClient, "set_terminated", look)
        tracker.publish(RECORD, TABLE, retry=False)
    assert seen == [[]] and len(points(tmp_path)) == 1


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
        assert not nothing.insert_first("run", [], [])
