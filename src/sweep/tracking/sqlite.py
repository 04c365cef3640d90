"""SQLite stores of MLflow: addresses, and relocation of a store whose folder was moved."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from sweep.errors import ConfigError

if TYPE_CHECKING:
    from sqlalchemy import URL

FILE = "mlflow.db"  # in `sweep.dir`
BUSY_SECONDS = 20.0  # maximum wait for other processes, the same as MLflow's

# Columns in which MLflow stores absolute addresses of files: table, column, condition on rows.
_ADDRESSES = (
    ("experiments", "artifact_location", ""),
    ("runs", "artifact_uri", ""),
    ("logged_models", "artifact_location", ""),
    ("model_versions", "source", ""),
    ("model_versions", "storage_location", ""),
    ("trace_tags", "value", "AND key = 'mlflow.artifactLocation'"),
)
_ARTIFACTS = re.compile(r"(file://(/.*)/artifacts)(?:/\d+)?")


def uri_of(path: Path) -> str:
    """Return a file's address for SQLAlchemy and MLflow.

    Raises:
        ConfigError: the path cannot be written as an address.
    """
    plain = f"sqlite:///{path}"
    if "%" not in str(path) and "?" not in str(path):
        return plain
    import sqlalchemy

    # SQLAlchemy 2.1 decodes the path, 2.0 does not.
    for uri in (plain, plain.replace("%", "%25").replace("?", "%3F")):
        if sqlalchemy.make_url(uri).database == str(path):
            return uri
    raise ConfigError(
        f'sweep.dir: {str(path.parent)!r}: SQLAlchemy {sqlalchemy.__version__} cannot open a path with "?". '
        "Choose another folder."
    )


def file_of(database: URL) -> Path | None:
    """Return the file of an SQLite database; None for other databases and for SQLite without a plain file."""
    if database.get_backend_name() != "sqlite" or not database.database or database.database == ":memory:":
        return None
    return None if database.query.get("uri") else Path(database.database)


@contextmanager
def without_stray_folders(path: Path, uri: str) -> Iterator[None]:
    """Remove the empty folders that MLflow creates when it mistakes an encoded path for the path itself."""
    parent = Path(uri.removeprefix("sqlite:///")).parent
    strays = [] if parent == path.parent else [folder for folder in (parent, *parent.parents) if not folder.exists()]
    try:
        yield
    finally:
        for folder in strays:
            with suppress(OSError):
                folder.rmdir()


def relocate(path: Path, root: Path) -> Path | None:
    """Update a store's addresses after its folder was moved or copied.

    MLflow stores absolute addresses, so a moved store would still read and write at the old place. Runs whose files
    exist only at the old place keep their addresses.

    Args:
        path: the store; this process must hold its lock.
        root: the folder that contains its `artifacts`.

    Returns:
        The store's previous folder; None if it was not moved.
    """
    with closing(sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)) as store:
        recorded = _recorded_location(store)
        if recorded is None or recorded[1] == root or _is_same(recorded[1], root):
            return None
        before, old = recorded
        store.execute("BEGIN IMMEDIATE")  # all or nothing, even if this process dies
        for table, column, condition in _existing(store):
            rows = store.execute(
                f"SELECT rowid, {column} FROM {table} WHERE {column} IS NOT NULL {condition}"
            ).fetchall()
            changes = [
                (moved, row)
                for row, address in rows
                if (moved := _moved(address, before, root))
                and (table == "experiments" or not _only_at_old_place(address, moved))
            ]
            store.executemany(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", changes)
        store.execute("COMMIT")
    return old


def _recorded_location(store: sqlite3.Connection) -> tuple[str, Path] | None:
    """Return the artifact address of the first experiment, and the folder that contains it."""
    if ("experiments", "artifact_location", "") not in _existing(store):
        return None
    for (address,) in store.execute("SELECT artifact_location FROM experiments ORDER BY experiment_id"):
        if match := _ARTIFACTS.fullmatch(address or ""):
            return match[1], Path(unquote(match[2]))
    return None


def _existing(store: sqlite3.Connection) -> list[tuple[str, str, str]]:
    """Return those of `_ADDRESSES` that exist in this version of MLflow."""
    return [
        (table, column, condition)
        for table, column, condition in _ADDRESSES
        if any(name == column for _, name, *_ in store.execute(f"PRAGMA table_info({table})"))
    ]


def _moved(address: str, before: str, root: Path) -> str | None:
    """Return the new address of a file below the old address; None if it is not below it."""
    if address != before and not address.startswith(f"{before}/"):
        return None
    return (root / "artifacts").as_uri() + address[len(before) :]


def _only_at_old_place(address: str, moved: str) -> bool:
    """Whether files exist at the old address and not at the new one."""
    return not _path(moved).exists() and _path(address).exists()


def _path(address: str) -> Path:
    return Path(unquote(address.removeprefix("file://")))


def _is_same(one: Path, other: Path) -> bool:
    """Whether two paths lead to the same folder, as with two mounts of it."""
    try:
        return one.samefile(other)
    except OSError:
        return False
