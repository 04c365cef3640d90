"""MLflow's store: reached, made if it is missing, and one experiment in it."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from filelock import FileLock

from sweep.config import TrackingConfig
from sweep.errors import ConfigError, TrackerAway
from sweep.redaction import redact
from sweep.tracking.links import LOCAL_UI

if TYPE_CHECKING:
    from sqlalchemy import URL

T = TypeVar("T")

DATABASES = ("postgresql", "mysql", "sqlite", "mssql")  # whose addresses MLflow takes
ADVISORY_LOCK = 0x73776565  # "swee"
KNOCKS, KNOCK_SECONDS = 3, 1.0  # a database may be busy, or about to start


class _Silent(Exception):
    """A database does not answer."""


class Store:
    """A tracking store and an experiment in it.

    Attributes:
        uri: of the store, with whatever credentials it holds: never shown.
        client: MLflow's.
        experiment: the experiment's id.
    """

    def __init__(self, config: TrackingConfig, root: Path) -> None:
        """Connect, and make the store and the experiment if they are missing.

        Raises:
            TrackerAway: it does not answer.
            ConfigError: it is none, or cannot be written.
        """
        self._config, self._root = config, root
        self.uri = store_uri(config, root)
        import_mlflow()
        from mlflow.exceptions import MlflowException

        try:
            _again(self._open, MlflowException) if self._is_server else self._open()
        except Exception as error:  # MLflow passes on whatever its store or driver raises
            away = isinstance(error, _Silent) or (self._is_server and isinstance(error, MlflowException))
            kind = TrackerAway if away else ConfigError
            raise kind(redact(f"tracking.uri: {self.uri} cannot be used: {first_line(error)}")) from error

    @property
    def is_local(self) -> bool:
        """Whether the runs lie in `sweep.dir`, where `scripts/ui` looks for them."""
        return not self._config.uri

    @property
    def address(self) -> str:
        """The address of the user interface, without credentials."""
        if not self._is_server:
            return LOCAL_UI
        parts = urlsplit(self.uri)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()

    @property
    def _is_server(self) -> bool:
        return urlsplit(self.uri).scheme in ("http", "https")

    def _open(self) -> None:
        from mlflow import MlflowClient

        database = _database(self.uri)
        if database is not None:
            _knock(database)
        with self._lock(database):
            if database is not None and database.get_backend_name() == "sqlite" and database.database:
                self._make_sqlite(Path(database.database))
            self.client = MlflowClient(self.uri)
            self.client.search_experiments(max_results=1)
            self.experiment = self._open_experiment(self._config.experiment)

    def _make_sqlite(self, path: Path) -> None:
        """Make an SQLite store as a whole or not at all.

        A process that dies in the middle of MLflow's migrations, which SQLite does not undo, would leave a file that no
        one can open.
        """
        if path.exists() and path.stat().st_size:
            return
        from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.new")
        temporary.unlink(missing_ok=True)  # a dead process's; others wait for the lock
        store = SqlAlchemyStore(f"sqlite:///{temporary}", (self._root / "artifacts").as_uri())
        store.engine.dispose()
        temporary.replace(path)

    def _open_experiment(self, name: str) -> str:
        known = self.client.get_experiment_by_name(name)
        if known is not None:
            if known.lifecycle_stage != "active":
                raise ConfigError(f"the experiment {name!r} was deleted; restore it or name another one")
            return str(known.experiment_id)
        artifacts = None if self._is_server else (self._root / "artifacts").as_uri()
        return str(self.client.create_experiment(name, artifact_location=artifacts))

    @contextmanager
    def _lock(self, database: URL | None) -> Iterator[None]:
        """Let no two processes make the same store, which breaks SQLite's for good, whichever folders they write to."""
        self._root.mkdir(parents=True, exist_ok=True)
        with FileLock(self._root / ".tracking.lock"), ExitStack() as locked:
            if database is not None and not self.is_local:  # then other folders' sweeps may be there too
                locked.enter_context(_store_lock(database))
            yield


def _database(uri: str) -> URL | None:
    """Return the address of a database; None: the store is none."""
    if urlsplit(uri).scheme.partition("+")[0] not in DATABASES:
        return None
    import sqlalchemy

    return sqlalchemy.make_url(uri)


def _knock(database: URL) -> None:
    """Raise if a database does not answer, for which MLflow would wait 100 s."""
    import sqlalchemy

    sqlite = database.get_backend_name() == "sqlite"
    if sqlite and database.database and not Path(database.database).parent.exists():
        return  # MLflow makes it
    engine = sqlalchemy.create_engine(database, poolclass=sqlalchemy.NullPool)
    try:
        _again(lambda: engine.connect().close(), sqlalchemy.exc.OperationalError)
    except sqlalchemy.exc.OperationalError as error:
        raise _Silent(first_line(error)) from error


def _again(call: Callable[[], T], passing: type[Exception]) -> T:
    """Return what a call returns, which is made again some times if it fails of what may pass."""
    for _ in range(KNOCKS - 1):
        try:
            return call()
        except passing:
            time.sleep(KNOCK_SECONDS)
    return call()


@contextmanager
def _store_lock(database: URL) -> Iterator[None]:
    """Hold what one process at a time can hold of a database: on this machine for SQLite, anywhere for PostgreSQL."""
    import sqlalchemy

    with ExitStack() as locked:
        match database.get_backend_name():
            case "sqlite":
                path = str(Path(database.database or "").resolve())
                name = hashlib.sha256(path.encode()).hexdigest()[:16]
                locked.enter_context(FileLock(Path(gettempdir()) / f"sweep-{os.getuid()}-{name}.lock"))
            case "postgresql":  # its lock ends with the connection
                engine = sqlalchemy.create_engine(database, poolclass=sqlalchemy.NullPool)
                connection = locked.enter_context(engine.connect())
                connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:number)"), {"number": ADVISORY_LOCK})
        yield


def store_uri(config: TrackingConfig, root: Path) -> str:
    """Return the store's address: the one that is named, else of the SQLite file in `sweep.dir`."""
    return config.uri or f"sqlite:///{root / 'mlflow.db'}"


def first_line(error: Exception) -> str:
    """Return the first line of an error's text that says something; SQLAlchemy may begin with a remark of its own."""
    lines = [line.strip() for line in str(error).splitlines()]
    lines = [line for line in lines if line and not line.startswith("(raised as a result of")]
    return lines[0][:200] if lines else type(error).__name__


def import_mlflow() -> None:
    """Import MLflow's client, with the environment as it is to be."""
    _set_environment()
    import mlflow.tracking.client  # noqa: F401


def _set_environment() -> None:
    """Set what MLflow reads at import and at each call; what the user has set stays, telemetry excepted."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    # A call that is made again beneath us may make a run twice: the outbox tries again, and looks what is there.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.pop("MLFLOW_RUN_ID", None)  # it would make every child the run that it names
