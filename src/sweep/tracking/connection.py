"""MLflow connection: client, experiment, and translation of MLflow exceptions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.config.schema import TrackingConfig
from sweep.errors import TrackingError
from sweep.tracking.database import Database
from sweep.tracking.links import Links
from sweep.tracking.store import Store, first_line
from sweep.tracking.traces import Traces
from sweep.util.redaction import redact

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


class Connection:
    """Connection of one sweep to its store; opened on first use, since the store may be away until then.

    Owned by a `Tracker`.

    Attributes:
        sweep_id: the sweep's id.
        links: links to the sweep's pages; None before the store is reached.
        traces: log of traces, if traces are enabled and the store is reached.
        place: store and experiment, without secrets; empty before the store is reached.
        is_local: whether the runs are in `sweep.dir`.
        notes: messages for the user about changes made to the store when it was opened.
    """

    def __init__(self, config: TrackingConfig, root: Path, sweep_id: str) -> None:
        self._config, self._root, self.sweep_id = config, root, sweep_id
        self._store: Store | None = None
        self.links: Links | None = None
        self.traces: Traces | None = None
        self.place = ""
        self.is_local = not config.uri
        self.notes: tuple[str, ...] = ()

    def connect(self) -> None:
        """Open the store, if not open yet; create it and the experiment if they are missing.

        Raises:
            TrackerUnreachable: the store does not answer.
            ConfigError: the address is not a store, or the store cannot be written.
        """
        if self._store is not None:
            return
        store = Store(self._config, self._root)
        with_traces = self._config.traces
        self.traces = Traces(store.uri, store.experiment) if with_traces else None
        self.links = Links(store.address, store.experiment, self.sweep_id)
        # Part of the place: if traces are enabled later, points without traces are published again.
        # "sweep.dir" instead of its path, since the folder may be moved.
        at = "sweep.dir" if self.is_local else redact(store.uri)
        self.place = f"{at} {store.experiment}{' with traces' if with_traces else ''}"
        self.notes = tuple(store.notes)
        self._store = store

    @property
    def client(self) -> MlflowClient:
        """MLflow's client; raises like `connect`."""
        return self._opened.client

    @property
    def database(self) -> Database:
        """The database behind the client; raises like `connect`."""
        return self._opened.database

    @property
    def experiment(self) -> str:
        """The experiment's id; raises like `connect`."""
        return self._opened.experiment

    @property
    def is_sqlite(self) -> bool:
        """Whether the store is an SQLite file, which only one process should write."""
        return (self._config.uri or "sqlite").startswith("sqlite")

    def search(self, condition: str, limit: int = 1000) -> list[Run]:
        """Return the sweep's runs that meet a condition in MLflow's filter syntax, the latest first."""
        sweep = f"tags.`sweep.id` = '{self.sweep_id}'"
        return list(self.client.search_runs([self.experiment], f"{sweep} AND {condition}", max_results=limit))

    @contextmanager
    def ignore_deleted(self, run_id: str) -> Iterator[None]:
        """Suppress MLflow's exception if the run was deleted; raise any other."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException:
            if not self._is_deleted(run_id):
                raise

    def _is_deleted(self, run_id: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return str(self.client.get_run(run_id).info.lifecycle_stage) == "deleted"
        except MlflowException as error:
            return bool(error.error_code == "RESOURCE_DOES_NOT_EXIST")

    @property
    def _opened(self) -> Store:
        self.connect()
        assert self._store is not None
        return self._store


@contextmanager
def as_tracking_error(action: str) -> Iterator[None]:
    """Raise any exception as a `TrackingError`: "MLflow failed to `action`: reason"."""
    try:
        yield
    except Exception as error:
        reason = redact(first_line(error))
        raise TrackingError(redact(f"MLflow failed to {action}: {reason}"), reason) from error
