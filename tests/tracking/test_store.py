"""An SQLite store that another MLflow has made, that was moved, or that lies in an odd folder."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.store.db import utils as mlflow_db
from mlflow.tracking._tracking_service import utils as mlflow_tracking

from point_records import RECORD
from sweep.config.schema import TrackingConfig
from sweep.core.records import Table
from sweep.errors import ConfigError
from sweep.tracking import Tracker, local, schema, sqlite
from sweep.tracking.store import Store

TABLE = Table(["prompt", "generation", "prompt_id"], [["Hello", "there", "hello"]])
NEWER = (
    rf"its schema \(revision 0123456789ab\) is newer than the installed MLflow {mlflow.__version__} supports\. "
    r"Install the MLflow version that wrote it, or a newer one \(`mlflow db upgrade` does not help\), or use another store\."
)


def query(path: Path, *statements: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as store, store:
        return [row for statement in statements for row in store.execute(statement).fetchall()]


@pytest.fixture
def made(tmp_path: Path, store_template: Path) -> Callable[[str], Path]:
    """Copy the template store to `outputs`, as if an MLflow of another revision had made it."""

    def make(revision: str) -> Path:
        path = tmp_path / "outputs" / "mlflow.db"
        path.parent.mkdir()
        shutil.copyfile(store_template, path)
        query(path, f"UPDATE alembic_version SET version_num = '{revision}'")
        return path

    return make


@pytest.mark.parametrize("named", [False, True])
def test_store_of_a_newer_mlflow_is_refused_unchanged(made: Callable[[str], Path], named: bool) -> None:
    path = made("0123456789ab")
    before = path.read_bytes()
    uri = f"sqlite:///{path}" if named else None
    where = f"tracking.uri: {uri}" if named else f"sweep.dir: {path}"
    with pytest.raises(ConfigError, match=f"^{where} cannot be used: {NEWER}$"):
        Store(TrackingConfig(uri=uri), path.parent)
    assert path.read_bytes() == before and sorted(p.name for p in path.parent.iterdir()) == [
        ".tracking.lock",
        "mlflow.db",
    ]


def upgrade_as_newer_mlflow(engine: Any) -> None:
    """Add what a migration might, and note that it was done."""
    query(
        Path(engine.url.database),
        "CREATE TABLE added_later (x)",
        f"UPDATE alembic_version SET version_num = '{mlflow_db._get_latest_schema_revision()}'",
    )


def older_revision() -> str:
    scripts = schema._scripts()
    return str(scripts.get_revision(scripts.get_heads()[0]).down_revision)


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_older_store_is_migrated_with_a_backup(
    made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    path = made(older_revision())
    query(path, f"PRAGMA journal_mode = {mode}", "CREATE TABLE the_users (x)")
    monkeypatch.setattr(mlflow_db, "_upgrade_db", upgrade_as_newer_mlflow)
    store = Store(TrackingConfig(), path.parent)
    kept = path.with_name(f"mlflow.db.before-{mlflow.__version__}")
    assert store.notes == [
        f"{path} was migrated to MLflow {mlflow.__version__}. Backup in the same folder: {kept.name}."
    ]
    assert query(kept, "SELECT version_num FROM alembic_version") == [(older_revision(),)]
    tables = "SELECT name FROM sqlite_master WHERE name IN ('added_later', 'the_users')"
    assert query(path, tables) == [("the_users",), ("added_later",)] and query(kept, tables) == [("the_users",)]
    assert Store(TrackingConfig(), path.parent).notes == []
    query(path, f"UPDATE alembic_version SET version_num = '{older_revision()}'", "DROP TABLE added_later")
    [note] = Store(TrackingConfig(), path.parent).notes  # the first copy stays
    assert note.endswith(f"Backup in the same folder: {kept.name}.2.") and query(kept, tables) == [("the_users",)]


def test_failed_migration_leaves_the_store_unchanged(
    made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made(older_revision())
    before = path.read_bytes()

    def fail(engine: Any) -> None:
        query(Path(engine.url.database), "DROP TABLE runs")
        raise RuntimeError("no such column")

    monkeypatch.setattr(mlflow_db, "_upgrade_db", fail)
    with pytest.raises(ConfigError, match=r"mlflow\.db cannot be used: no such column$"):
        Store(TrackingConfig(), path.parent)
    assert (
        path.read_bytes() == before and not list(path.parent.glob("*before*")) and not list(path.parent.glob(".*new"))
    )


def test_local_store_command_prints_the_address_or_an_error(
    made: Callable[[str], Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made("0123456789ab")
    monkeypatch.setattr("sys.argv", ["local", str(path.parent)])
    with pytest.raises(SystemExit, match="2"):
        local.main()
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"{path}: its schema (revision 0123456789ab) is newer than")
    query(path, f"UPDATE alembic_version SET version_num = '{mlflow_db._get_latest_schema_revision()}'")
    local.main()
    assert capsys.readouterr().out == f"sqlite:///{path}\n{(path.parent / 'artifacts').as_uri()}\n"


ODD = ["a%20b", "a?b", "a%3Fb", "a#b", "a b é", "it's [50%] & more; a=b@c:d+e"]


@pytest.mark.parametrize("name", ODD)
def test_store_is_inside_sweep_dir_for_any_name(tmp_path: Path, name: str) -> None:
    root = tmp_path / "here" / name
    run_id = publish(root, "one")
    assert [path.name for path in (tmp_path / "here").iterdir()] == [name]
    assert sorted(path.name for path in root.iterdir()) == [".tracking.lock", "artifacts", "mlflow.db"]
    assert "there" in table_of(root, run_id)


def publish(root: Path, name: str, traces: bool = False, finish: bool = True) -> str:
    """Publish one point to the store in a folder, which is made if it is missing, as a process of its own would."""
    mlflow_tracking._artifact_repos_cache.clear()
    tracker = Tracker(TrackingConfig(traces=traces), root, "some")
    tracker.start("name", "sweep …", "seed: 0\n")
    record = replace(RECORD, name=name)
    run_id = tracker.publish(record, TABLE, retry=False)
    if finish:
        tracker.finish("FINISHED", {})
    return run_id


def table_of(root: Path, run_id: str) -> str:
    mlflow_tracking._artifact_repos_cache.clear()
    client = MlflowClient(sqlite.uri_of(root / "mlflow.db"))
    [row] = json.loads(Path(client.download_artifacts(run_id, "generations.json")).read_text())["data"]
    return str(row)


def dump(path: Path) -> str:
    with closing(sqlite3.connect(path)) as store:
        return "\n".join(store.iterdump())


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_moved_or_copied_folder_is_used_at_its_place(tmp_path: Path, how: str) -> None:
    before, after = tmp_path / "a%20b", tmp_path / "elsewhere" / "c?d"
    first = publish(before, "one", traces=True)
    after.parent.mkdir()
    (shutil.move if how == "moved" else shutil.copytree)(before, after)
    files = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before.rglob("*") if path.is_file()}
    second = publish(after, "two", traces=True)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before.rglob("*") if path.is_file()} == files
    assert before.exists() is (how == "copied")
    assert "there" in table_of(after, first) and "there" in table_of(after, second)
    assert "a%2520b" not in dump(after / "mlflow.db")
    client = MlflowClient(sqlite.uri_of(after / "mlflow.db"))
    assert {path.name for path in (after / "artifacts").iterdir() if path.name in (first, second)} == {first, second}
    assert client.get_run(first).info.artifact_uri == f"{(after / 'artifacts').as_uri()}/{first}/artifacts"
    if how == "copied":
        assert client.get_experiment("1").artifact_location == (after / "artifacts").as_uri()
        assert "there" in table_of(before, first) and "c%3Fd" not in dump(before / "mlflow.db")


def test_folder_can_be_copied_during_a_sweep(tmp_path: Path) -> None:
    before, after = tmp_path / "a", tmp_path / "b"
    first = publish(before, "one", finish=False)
    assert (before / "mlflow.db-wal").stat().st_size
    shutil.copytree(before, after)
    assert Tracker(TrackingConfig(), after, "some").parent_status() == "RUNNING"
    second = publish(after, "two")
    assert "there" in table_of(after, first) and "there" in table_of(after, second)
    assert not (after / "mlflow.db-wal").exists()


def test_relocation_of_a_moved_store_is_reported_once(tmp_path: Path) -> None:
    before, after = tmp_path / "a", tmp_path / "b"
    publish(before, "one")
    before.rename(after)
    assert Store(TrackingConfig(), after).notes == [
        f"{after} was at {before} before. MLflow's store now refers to the files in {after}."
    ]
    assert Store(TrackingConfig(), after).notes == []


def test_publish_log_is_valid_after_a_move(tmp_path: Path) -> None:
    publish(tmp_path / "a", "one")
    before = Tracker(TrackingConfig(), tmp_path / "a", "some")
    assert before.parent_status() == "FINISHED"
    (tmp_path / "a").rename(tmp_path / "b")
    after = Tracker(TrackingConfig(), tmp_path / "b", "some")
    assert after.parent_status() == "FINISHED"
    assert after.place == before.place and str(tmp_path) not in after.place


def test_runs_without_moved_files_keep_their_artifact_addresses(tmp_path: Path) -> None:
    first = publish(tmp_path / "a", "one")
    query(
        tmp_path / "a" / "mlflow.db",
        "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage) "
        "VALUES (7, 'own', 's3://bucket/artifacts', 'active')",
    )
    (tmp_path / "b").mkdir()
    shutil.copyfile(tmp_path / "a" / "mlflow.db", tmp_path / "b" / "mlflow.db")  # and not the artifacts
    second = publish(tmp_path / "b", "two")
    assert "there" in table_of(tmp_path / "b", first) and "there" in table_of(tmp_path / "b", second)
    assert [path.name for path in (tmp_path / "b" / "artifacts").iterdir() if path.name in (first, second)] == [second]
    assert query(tmp_path / "b" / "mlflow.db", "SELECT artifact_location FROM experiments WHERE experiment_id = 7") == [
        ("s3://bucket/artifacts",)
    ]


def test_symbolic_link_to_the_folder_is_not_a_move(tmp_path: Path) -> None:
    publish(tmp_path / "a", "one")
    (tmp_path / "mount").symlink_to(tmp_path / "a")
    assert sqlite.relocate(tmp_path / "mount" / "mlflow.db", tmp_path / "mount") is None
    assert (tmp_path / "a").as_uri() in dump(tmp_path / "a" / "mlflow.db")
