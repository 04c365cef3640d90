"""Database schema of MLflow stores: refuses one from a newer MLflow, and migrates an older SQLite store."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.errors import ConfigError
from sweep.tracking import sqlite

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory
    from sqlalchemy import URL


def prepare(database: URL, root: Path | None) -> list[str]:
    """Make an existing database usable by the installed MLflow, and return messages for the user.

    Args:
        database: its address.
        root: the `sweep.dir` that contains it; None: it is elsewhere.

    Raises:
        ConfigError, OSError, sqlite3.Error: see `check` and `migrate`.
    """
    notes, file = [], sqlite.file_of(database)
    if not check(database) and file is not None:
        notes.append(migrate(file))
    if file is not None and root is not None and (old := sqlite.relocate(file, root)) is not None:
        notes.append(f"{root} was at {old} before. MLflow's store now refers to the files in {root}.")
    return notes


def check(database: URL) -> bool:
    """Return whether a database is empty or has the schema of the installed MLflow.

    Raises:
        ConfigError: a newer MLflow wrote it, with a schema that is unknown here.
    """
    revision = _revision(database)
    if revision is None:
        return True
    scripts = _scripts()
    if revision in scripts.get_heads():
        return True
    if revision in {script.revision for script in scripts.walk_revisions()}:
        return False
    import mlflow

    raise ConfigError(
        f"its schema (revision {revision}) is newer than the installed MLflow {mlflow.__version__} supports. "
        "Install the MLflow version that wrote it, or a newer one (`mlflow db upgrade` does not help), "
        "or use another store."
    )


def migrate(path: Path) -> str:
    """Migrate an older SQLite store to the installed MLflow's schema, and keep a backup.

    A copy is migrated and then replaces the store, because SQLite does not undo an interrupted migration.

    Args:
        path: the store; this process must hold its lock.

    Returns:
        A message for the user that names the backup.

    Raises:
        OSError, sqlite3.Error: the disk is full, or another process is using the store.
    """
    import mlflow
    import sqlalchemy
    from mlflow.store.db.utils import _upgrade_db

    temporary, backup = path.with_name(f".{path.name}.new"), _backup_path(path, mlflow.__version__)
    temporary.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(path, timeout=sqlite.BUSY_SECONDS, isolation_level=None)) as store:
            store.execute("PRAGMA journal_mode = DELETE")  # a write-ahead log would not fit the migrated file
            store.execute("BEGIN IMMEDIATE")  # no writes that the copy would lack
            shutil.copyfile(path, temporary)
            engine = sqlalchemy.create_engine(sqlite.uri_of(temporary), poolclass=sqlalchemy.NullPool)
            _upgrade_db(engine)
            engine.dispose()
            shutil.copyfile(path, backup)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return f"{path} was migrated to MLflow {mlflow.__version__}. Backup in the same folder: {backup.name}."


def _backup_path(path: Path, version: str) -> Path:
    names = [f"{path.name}.before-{version}", *(f"{path.name}.before-{version}.{number}" for number in range(2, 100))]
    return next((path.with_name(name) for name in names if not path.with_name(name).exists()), path.with_name(names[0]))


def _revision(database: URL) -> str | None:
    """Return the schema revision of a database; None: it has none."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(database, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        if not sqlalchemy.inspect(connection).has_table("alembic_version"):
            return None
        revision = connection.execute(sqlalchemy.text("SELECT version_num FROM alembic_version")).scalar()
        return None if revision is None else str(revision)


def _scripts() -> ScriptDirectory:
    from alembic.script import ScriptDirectory
    from mlflow.store.db.utils import _get_alembic_config

    return ScriptDirectory.from_config(_get_alembic_config(db_url=""))
