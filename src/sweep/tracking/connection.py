"""What a sweep's runs are reached by: the store, once it answers, and its words for what goes wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.config import TrackingConfig
from sweep.errors import TrackingError
from sweep.redaction import redact
from sweep.tracking.links import Links
from sweep.tracking.store import Store, first_line, store_uri
from sweep.tracking.traces import Traces

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # what MLflow says of a run that was deleted


class Connection:
    """One sweep's way to its store, which is made when it is first needed, and may be away until then.

    Attributes:
        links: to the sweep's pages; None: the store has not been reached.
        traces: the log of traces, if they are wanted and the store was reached.
        place: the store and the experiment, without secrets; empty before the store is reached.
        is_local: whether the runs lie in `sweep.dir`.
    """

    def __init__(self, config: TrackingConfig, root: Path, sweep_id: str) -> None:
        self._config, self._root, self._sweep_id = config, root, sweep_id
        self._store: Store | None = None
        self.links: Links | None = None
        self.traces: Traces | None = None
        self.place = ""
        self.is_local = not config.uri

    def connect(self) -> None:
        """Reach the store, unless that was done, and make it and the experiment if they are missing.

        Raises:
            TrackerAway: the store does not answer.
            ConfigError: it is none, or cannot be written.
        """
        if self._store is not None:
            return
        store = Store(self._config, self._root)
        wanted = self._config.traces
        self.traces = Traces(store.uri, store.experiment) if wanted else None
        self.links = Links(store.address, store.experiment, self._sweep_id)
        # What lacks its traces is not there yet: so they can be asked for later.
        self.place = f"{redact(store.uri)} {store.experiment}{' with traces' if wanted else ''}"
        self._store = store

    @property
    def client(self) -> MlflowClient:
        """MLflow's client; errors as of `connect`."""
        return self._reached.client

    @property
    def experiment(self) -> str:
        """The experiment's id; errors as of `connect`."""
        return self._reached.experiment

    @property
    def is_sqlite(self) -> bool:
        """Whether the store is an SQLite file, which one process is to write."""
        return store_uri(self._config, self._root).startswith("sqlite")

    def search(self, condition: str) -> list[Run]:
        """Return those of the sweep's runs that meet a condition of MLflow's language."""
        own = f"tags.`sweep.id` = '{self._sweep_id}'"
        return list(self.client.search_runs([self.experiment], f"{own} AND {condition}", max_results=1000))

    @property
    def _reached(self) -> Store:
        self.connect()
        assert self._store is not None
        return self._store


@contextmanager
def as_tracking_error(what: str) -> Iterator[None]:
    """Raise whatever goes wrong as a `TrackingError`, which says what MLflow could not take."""
    try:
        yield
    except Exception as error:
        reason = redact(first_line(error))
        raise TrackingError(redact(f"MLflow could not take {what}: {reason}"), reason) from error


@contextmanager
def unless_gone() -> Iterator[None]:
    """Pass over a run that the user has deleted."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code not in GONE:
            raise
