"""MLflow store: opens it, creates it if it is missing, and selects the experiment."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from filelock import FileLock

from sweep.config.schema import TrackingConfig
from sweep.errors import ConfigError, TrackerUnreachable
from sweep.tracking import schema, sqlite, template
from sweep.tracking.database import Database
from sweep.tracking.links import LOCAL_UI
from sweep.util.redaction import redact

if TYPE_CHECKING:
    from sqlalchemy import URL

T = TypeVar("T")

DATABASES = ("postgresql", "mysql", "sqlite", "mssql")  # database schemes that MLflow supports
ADVISORY_LOCK = 0x73776565  # "swee"
PROBES, PROBE_SECONDS = 3, 1.0  # attempts and pause between them: a database may be busy or starting


class _Unreachable(Exception):
    """The database does not answer."""


class Store:
    """A tracking store and an experiment in it. Owned by a `Tracker`, and used by one thread at a time.

    Attributes:
        uri: address of the store, with credentials: never show it.
        client: MLflow's client.
        database: the database behind the client.
        experiment: id of the experiment.
        notes: messages for the user about changes made to the store.
    """

    def __init__(self, config: TrackingConfig, root: Path) -> None:
        """Connect, and create the store and the experiment if they are missing.

        Args:
            config: tracking configuration.
            root: `sweep.dir`.

        Raises:
            TrackerUnreachable: the store does not answer.
            ConfigError: the address is not a store, it cannot be written, or a newer MLflow wrote it.
        """
        self._config, self._root = config, root
        self.notes: list[str] = []
        self.uri = store_uri(config, root)
        import_mlflow()
        from mlflow.exceptions import MlflowException

        try:
            _retry(self._open, MlflowException) if self._is_server else self._open()
        except Exception as error:  # MLflow passes on any exception of its store or driver
            away = isinstance(error, _Unreachable) or (self._is_server and isinstance(error, MlflowException))
            kind = TrackerUnreachable if away else ConfigError
            reason = str(error) if isinstance(error, ConfigError) else first_line(error)
            where = f"sweep.dir: {self._root / sqlite.FILE}" if self.is_local else f"tracking.uri: {self.uri}"
            raise kind(redact(f"{where} cannot be used: {reason}")) from error

    @property
    def is_local(self) -> bool:
        """Whether the runs are in `sweep.dir`, where `scripts/ui` looks for them."""
        return not self._config.uri

    @property
    def address(self) -> str:
        """Address of the user interface, without credentials."""
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
            _probe(database)
        file = database and sqlite.file_of(database)
        with self._lock(database), sqlite.without_stray_folders(file, self.uri) if file else nullcontext():
            if file is not None:
                self._create_sqlite(file)
            if database is not None:
                self.notes = schema.prepare(database, self._root if self.is_local else None)
            self.client = MlflowClient(self.uri)
            # The journal mode of a file outside `sweep.dir` is not changed: others may use that file.
            self.database = Database(self.client, file if file and self.is_local else None)
            self.client.search_experiments(max_results=1)
            self.experiment = self._open_experiment(self._config.experiment)

    def _create_sqlite(self, path: Path) -> None:
        """Create an SQLite store atomically."""
        # SQLite does not undo MLflow's migrations: a process that died during them would leave an unusable file.
        if path.exists() and path.stat().st_size:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.new")
        temporary.unlink(missing_ok=True)  # left by a dead process, since live ones wait for the lock
        template.create(temporary, (self._root / "artifacts").as_uri())
        temporary.replace(path)

    def _open_experiment(self, name: str) -> str:
        experiment = self.client.get_experiment_by_name(name)
        if experiment is not None:
            if experiment.lifecycle_stage != "active":
                raise ConfigError(
                    f"the experiment {name!r} was deleted. Restore it, or set tracking.experiment to another name."
                )
            return str(experiment.experiment_id)
        artifacts = None if self._is_server else (self._root / "artifacts").as_uri()
        return str(self.client.create_experiment(name, artifact_location=artifacts))

    @contextmanager
    def _lock(self, database: URL | None) -> Iterator[None]:
        """Keep two processes from creating the same store at once, also from different folders: that breaks SQLite."""
        self._root.mkdir(parents=True, exist_ok=True)
        with store_lock(self._root), ExitStack() as locked:
            if database is not None and not self.is_local:  # sweeps in other folders may use it too
                locked.enter_context(_store_lock(database))
            yield


def _database(uri: str) -> URL | None:
    """Return the address of a database; None if the store is not a database."""
    if urlsplit(uri).scheme.partition("+")[0] not in DATABASES:
        return None
    import sqlalchemy

    return sqlalchemy.make_url(uri)


def _probe(database: URL) -> None:
    """Raise if a database does not answer. MLflow would wait 100 s for it."""
    import sqlalchemy

    sqlite = database.get_backend_name() == "sqlite"
    if sqlite and database.database and not Path(database.database).parent.exists():
        return  # MLflow creates the folder
    engine = sqlalchemy.create_engine(database, poolclass=sqlalchemy.NullPool)
    try:
        _retry(lambda: engine.connect().close(), sqlalchemy.exc.OperationalError)
    except sqlalchemy.exc.OperationalError as error:
        raise _Unreachable(first_line(error)) from error


def _retry(call: Callable[[], T], transient: type[Exception]) -> T:
    """Return the result of a call; retry it a few times on an exception that may be transient."""
    for _ in range(PROBES - 1):
        try:
            return call()
        except transient:
            time.sleep(PROBE_SECONDS)
    return call()


@contextmanager
def _store_lock(database: URL) -> Iterator[None]:
    """Hold a lock on a database: per machine for SQLite, across machines for PostgreSQL, none for others."""
    import sqlalchemy

    with ExitStack() as locked:
        match database.get_backend_name():
            case "sqlite":
                path = str(Path(database.database or "").resolve())
                name = hashlib.sha256(path.encode()).hexdigest()[:16]
                locked.enter_context(FileLock(Path(gettempdir()) / f"sweep-{os.getuid()}-{name}.lock"))
            case "postgresql":  # the lock ends with the connection
                engine = sqlalchemy.create_engine(database, poolclass=sqlalchemy.NullPool)
                connection = locked.enter_context(engine.connect())
                connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:number)"), {"number": ADVISORY_LOCK})
        yield


def store_lock(root: Path) -> FileLock:
    """Return the lock for opening the store in `sweep.dir`."""
    return FileLock(root / ".tracking.lock")


def store_uri(config: TrackingConfig, root: Path) -> str:
    """Return the store's address: `tracking.uri`, or the SQLite file in `sweep.dir`."""
    return config.uri or sqlite.uri_of(root / sqlite.FILE)


def first_line(error: Exception) -> str:
    """Return the first meaningful line of an error's text, without SQLAlchemy's introductory remark."""
    lines = [line.strip() for line in str(error).splitlines()]
    lines = [line for line in lines if line and not line.startswith("(raised as a result of")]
    return lines[0][:200] if lines else type(error).__name__


def import_mlflow() -> None:
    """Import MLflow's client, after setting its environment variables."""
    _set_environment()
    import mlflow.tracking.client  # noqa: F401


def _set_environment() -> None:
    """Set environment variables that MLflow reads; the user's values stay, except for telemetry."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    # Retries inside MLflow could create a run twice. The publish queue retries, and looks for existing runs first.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    # MLflow would load each run again to print its address.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.pop("MLFLOW_RUN_ID", None)  # all child runs would become the run that it names
