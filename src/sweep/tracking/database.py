"""Database of MLflow's client: one transaction for several calls, and the journal mode of an SQLite file.

MLflow commits each call separately, seven for a point's run, and each commit waits for the disk up to four times.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.util import filesystems

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from sqlalchemy import Table

log = logging.getLogger(__name__)

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

    @property
    def is_sql(self) -> bool:
        """Whether the client has a SQL store, so that `transaction` and `insert` have an effect."""
        return self._make is not None

    def insert(self, rows_by_table: Sequence[tuple[Table, Sequence[Mapping[str, Any]]]]) -> None:
        """Insert rows into tables, in order, in one transaction with a statement per table.

        Raises:
            MlflowException: the rows cannot be inserted.
        """
        with self._make(read_only=False) as session:
            for table, rows in rows_by_table:
                session.execute(table.insert(), list(rows))

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
