"""New stores are copies of the user's template, and only of one that is sound."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from sweep.tracking import template

ARTIFACTS = "file:///sweeps/artifacts"


def dump(path: Path) -> dict[str, list[object]]:
    """Return each table's columns and rows, without the instants at which the experiment was made."""
    with closing(sqlite3.connect(path)) as store:
        store.execute("UPDATE experiments SET creation_time = 0, last_update_time = 0")
        tables = [name for (name,) in store.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        return {
            name: store.execute(f"PRAGMA table_info({name})").fetchall()
            + store.execute(f"SELECT * FROM {name}").fetchall()
            for name in tables
        }


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store_template: Path) -> Path:
    """Return where the template lies in a cache folder of this test's own; MLflow makes no stores, but says so."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = template.template_path()
    assert path is not None and path.parent == tmp_path / "cache" / "sweep"
    monkeypatch.setattr(template, "make", lambda file, artifacts: shutil.copyfile(store_template, file))
    return path


@pytest.fixture
def made(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the stores that MLflow was asked to make."""
    asked: list[Path] = []
    make = template.make

    def record(file: Path, artifacts: str) -> None:
        asked.append(file)
        make(file, artifacts)

    monkeypatch.setattr(template, "make", record)
    return asked


@pytest.mark.usefixtures("store_template")
def test_copied_store_equals_mlflows(tmp_path: Path) -> None:
    template.make(tmp_path / "made.db", ARTIFACTS)
    template.create(tmp_path / "copied.db", ARTIFACTS)
    assert dump(tmp_path / "copied.db") == dump(tmp_path / "made.db")
    assert "file:///sweeps/artifacts/0" in str(dump(tmp_path / "copied.db")["experiments"])


def test_first_store_leaves_a_template_without_its_path(tmp_path: Path, cache: Path, made: list[Path]) -> None:
    template.create(tmp_path / "one.db", ARTIFACTS)
    template.create(tmp_path / "two.db", ARTIFACTS)
    assert made == [tmp_path / "one.db"]
    assert [path.name for path in cache.parent.iterdir()] == [cache.name] and cache.parent.stat().st_mode & 0o077 == 0
    assert "/sweeps/" not in str(dump(cache))


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[8192:40960] = b"\xff" * 32768
    path.write_bytes(content)


def fill(path: Path) -> None:
    with closing(sqlite3.connect(path)) as store, store:
        store.execute("INSERT INTO runs (run_uuid, experiment_id) VALUES ('r', 0)")


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def as_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere.db"))
    path.symlink_to(path.with_name("elsewhere.db"))


@pytest.mark.parametrize("spoil", [damage, fill, as_pipe, as_link, lambda path: path.write_bytes(b"")])
def test_template_with_content_is_replaced(
    tmp_path: Path, cache: Path, made: list[Path], store_template: Path, spoil: Callable[[Path], object]
) -> None:
    template.create(tmp_path / "one.db", ARTIFACTS)
    spoil(cache)
    template.create(tmp_path / "two.db", ARTIFACTS)
    template.create(tmp_path / "three.db", ARTIFACTS)
    assert made == [tmp_path / "one.db", tmp_path / "two.db"]
    assert dump(cache) == dump(store_template)


def test_unusable_cache_folder_is_tolerated(tmp_path: Path, made: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a file"))
    template.create(tmp_path / "one.db", ARTIFACTS)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    template.create(tmp_path / "two.db", ARTIFACTS)
    assert made == [tmp_path / "one.db", tmp_path / "two.db"] and template.template_path() is None
