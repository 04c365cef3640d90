"""Template of new SQLite stores, in the user's cache folder: copying it saves the seconds that MLflow needs.

The template is an empty store of the installed MLflow, created by the user's first sweep. Without a usable cache
folder, MLflow creates each store.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import time
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

from sweep.tracking.sqlite import uri_of
from sweep.util.atomic import replace
from sweep.util.paths import user_cache

# The row of the experiment "Default", the only row of a new store that depends on time and place.
_SET_LOCATION = "UPDATE experiments SET artifact_location = ?, creation_time = ?, last_update_time = ?"


def create(path: Path, artifacts: str) -> None:
    """Create a store: copy the template, or let MLflow create it and save a template.

    Args:
        path: the file, which must not exist.
        artifacts: URI of the folder for the runs' files.

    Raises:
        OSError, sqlite3.Error, SQLAlchemyError: the file cannot be written.
    """
    template = template_path()
    if template is not None and _is_usable(template):
        shutil.copyfile(template, path)
        _set_location(path, f"{artifacts}/0")
        return
    make(path, artifacts)
    if template is not None:
        with suppress(OSError, sqlite3.Error):  # the cache cannot be written: the next store is created by MLflow too
            template.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            replace(template, partial(_copy_as_template, path))


def make(path: Path, artifacts: str) -> None:
    """Let MLflow create a store, which takes seconds; arguments and exceptions as in `create`."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore(uri_of(path), artifacts)
    store.engine.dispose()


def template_path() -> Path | None:
    """Return the path of the installed MLflow's template; None if the user has no cache folder."""
    import mlflow

    folder = user_cache()
    return None if folder is None else folder / f"mlflow-{mlflow.__version__}.db"


def _is_usable(template: Path) -> bool:
    """Return whether a template is a regular file of this user, undamaged and empty."""
    try:
        status = template.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid():
            return False
        with closing(sqlite3.connect(f"{template.as_uri()}?mode=ro", uri=True)) as store:
            [(state,)] = store.execute("PRAGMA quick_check(1)").fetchall()
            [(experiments, runs)] = store.execute(
                "SELECT (SELECT count(*) FROM experiments), (SELECT count(*) FROM runs)"
            ).fetchall()
        return state == "ok" and (experiments, runs) == (1, 0)
    except (OSError, sqlite3.Error, ValueError):
        return False


def _copy_as_template(path: Path, copy: Path) -> None:
    shutil.copyfile(path, copy)
    _set_location(copy, "")


def _set_location(path: Path, artifacts: str) -> None:
    now = int(1000 * time.time())
    with closing(sqlite3.connect(path)) as store, store:
        store.execute(_SET_LOCATION, (artifacts, now, now))
