"""Database of MLflow's client: one transaction for several calls, and the journal mode of an SQLite file.

MLflow commits each call separately, seven for a point's run, and each commit waits for the disk up to four times.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.util import filesystems

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

log = logging.getLogger(__name__)

HISTORY = {"timestamp", "step", "is_nan"}  # additional columns of the tables of metrics
JOURNAL_SECONDS = 1.0  # maximum wait for other users of the file; without the change, publishing is only slower


class Database:
    """SQL store of a client. For a client of a tracking server, all methods do nothing.

    It replaces the store's session maker. Any thread may use the client; a transaction belongs to one thread.
    """

    def __init__(self, client: MlflowClient, file: Path | None) -> None:
        """Replace the store's session maker.

        Args:
            client: the client.
            file: the store's file, if it is an SQLite file.
        """
        # MLflow has no public API for this. If the private one changes, each call is its own transaction again.
        self._store: Any = getattr(getattr(client, "_tracking_client", None), "store", None)
        self._make: Any = getattr(self._store, "ManagedSessionMaker", None)
        if isinstance(self._make, Database):  # MLflow shares one store between all clients of an address
            self._make = self._make._make
        self._file = file if file is not None and filesystems.is_local(file) else None
        self._local = threading.local()
        if self._make is not None:
            setattr(self._store, "ManagedSessionMaker", self)  # noqa: B010 - the store's type is unknown

    @contextmanager
    def __call__(self, read_only: bool = True) -> Iterator[Any]:
        """Yield the session of this thread's transaction, else a new one."""
        session = getattr(self._local, "session", None)
        if session is not None:
            yield session
            return
        with self._make(read_only=read_only) as session:
            yield session

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit all calls in the block together, or none of them.

        Raises:
            MlflowException: the calls cannot be committed.
        """
        if self._make is None:
            yield
            return
        with self._make(read_only=False) as session:
            commit, session.commit = session.commit, session.flush  # MLflow commits after each call
            self._local.session = session
            try:
                yield
            finally:
                self._local.session = None
                session.commit = commit

    def insert_first(self, run_id: str, metrics: Sequence[Metric], params: Sequence[Param]) -> bool:
        """Insert the first metrics and parameters of a run in this thread's transaction, one statement per table.

        MLflow's own call takes ten times as long: it looks for earlier values and creates an object per value.

        Args:
            run_id: the run, which must not have metrics or parameters yet.
            metrics: metrics with distinct keys.
            params: parameters with distinct keys.

        Returns:
            Whether they were inserted. False outside a transaction, or if MLflow's tables have an unknown schema.
        """
        session = getattr(self._local, "session", None)
        if session is None or not _has_known_schema():
            return False
        from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlMetric, SqlParam

        rows = []
        for metric in metrics:
            is_nan, value = self._store.sanitize_metric_value(metric.value)
            row = {"run_uuid": run_id, "key": metric.key, "value": value, "is_nan": is_nan}
            rows.append(row | {"timestamp": metric.timestamp, "step": metric.step})
        session.flush()  # inserts the run, which the rows refer to
        for table in (SqlMetric, SqlLatestMetric) if rows else ():
            session.execute(table.__table__.insert(), rows)
        if params:
            param_rows = [{"run_uuid": run_id, "key": param.key, "value": param.value} for param in params]
            session.execute(SqlParam.__table__.insert(), param_rows)
        return True

    def enable_write_ahead_log(self) -> None:
        """Switch an SQLite file to write-ahead logging, where a commit waits for the disk only once.

        Not on network file systems, where such a log is not safe.
        """
        self._set_journal("WAL")

    def disable_write_ahead_log(self) -> None:
        """Merge the write-ahead log into the SQLite file, so that it can be moved; not while others read it."""
        self._set_journal("DELETE")

    def _set_journal(self, mode: str) -> None:
        if self._file is None:
            return
        if (engine := getattr(self._store, "engine", None)) is not None:
            engine.dispose()  # open connections would prevent the change
        try:
            with closing(sqlite3.connect(self._file, timeout=JOURNAL_SECONDS)) as file:
                file.execute(f"PRAGMA journal_mode = {mode}")
        except sqlite3.Error as error:
            log.info("The journal mode of %s was not changed: %s", self._file, error)


@cache
def _has_known_schema() -> bool:
    """Return whether the installed MLflow's tables have exactly the columns that `insert_first` fills."""
    try:
        from mlflow.store.tracking.dbmodels.models import SqlLatestMetric, SqlMetric, SqlParam
    except ImportError:
        return False
    value = {"run_uuid", "key", "value"}
    expected = {SqlMetric: value | HISTORY, SqlLatestMetric: value | HISTORY, SqlParam: value}
    return all(set(model.__table__.columns.keys()) == columns for model, columns in expected.items())
