"""Archive: scored points on disk, the source of the report, notebooks and MLflow runs.

A point's file holds everything that is published, so that it can also be published later or by the next run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sweep.core.records import PointRecord, Table
from sweep.core.values import Summary
from sweep.errors import JournalError
from sweep.points.point import as_text
from sweep.util import state_files
from sweep.util.atomic import replace

log = logging.getLogger(__name__)

METADATA, DIGEST = b"sweep", b"sweep.sha256"
# What reading a damaged file raises.
UNREADABLE = (OSError, pa.ArrowException, ValueError, KeyError, TypeError, AttributeError)
# Columns left out of MLflow's table.
UNSHOWN = ("sample", "token_ids", "prompt_digest", "rendered_prompt", "span", "point", "name", "role")


@dataclass(frozen=True, slots=True)
class Archived:
    """A point's file, without its rows.

    Attributes:
        key: the point's `PointFingerprint.result_key`.
        record: everything that is published about the point, apart from the rows.
    """

    key: str
    record: PointRecord

    @property
    def done(self) -> bool:
        """Whether the point finished without an error."""
        return self.record.error is None


class Archive:
    """Folder with one Parquet file per point: a row per completion, and the record as metadata.

    Holds no open files, so any thread or process may have one. Files are replaced atomically.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._unreadable: set[str] = set()  # keys of files that were reported as damaged

    def add(self, key: str, record: PointRecord, rows: Sequence[Mapping[str, Any]]) -> Archived:
        """Write one point's record and rows atomically.

        Args:
            key: the point's `PointFingerprint.result_key`.
            record: the point's record.
            rows: one mapping of column to value per completion.

        Raises:
            JournalError: the folder cannot be written. The generations are still in the journal.
        """
        table = _columns(rows)
        record_json = json.dumps(asdict(record)).encode()
        metadata = {METADATA: record_json, DIGEST: _digest(record_json)}
        try:
            self._folder.mkdir(exist_ok=True)  # no parents: a sweep's folder that the user removed must not reappear
            replace(
                self._path(key),
                lambda path: pq.write_table(table.replace_schema_metadata(metadata), path, write_page_checksum=True),
            )
        except FileNotFoundError as error:
            raise _removed_error(self._folder) from error
        except OSError as error:
            reason = error.strerror or error
            raise JournalError(f"{self._folder} cannot be written: {reason}. The generations are kept.") from error
        return Archived(key, record)

    def get(self, key: str) -> Archived | None:
        """Return a point's file, or None if it is missing, damaged, or not completely visible on this machine yet."""
        try:
            return self._load(key)
        except UNREADABLE:
            return None

    def __iter__(self) -> Iterator[Archived]:
        """Iterate over the readable points in the order of the sweep. A file that cannot be read is logged once."""
        points = []
        for path in self._folder.glob("*.parquet"):
            if path.name.startswith("."):
                continue
            try:
                points.append(self._load(path.stem))
            except FileNotFoundError:
                continue
            except UNREADABLE as error:
                if path.stem not in self._unreadable:
                    self._unreadable.add(path.stem)
                    reason = (str(error) or type(error).__name__).splitlines()[0]
                    log.warning("%s cannot be read, its point has to be scored again: %s", path, reason)
        return iter(sorted(points, key=lambda archived: archived.record.index))

    def _load(self, key: str) -> Archived:
        path = self._path(key)
        state_files.require(path)
        metadata = pq.read_schema(path).metadata
        if metadata[DIGEST] != _digest(metadata[METADATA]):
            raise ValueError("its record does not match its checksum")
        return Archived(key, _record(state_files.parse(metadata[METADATA])))

    def written(self) -> Iterator[tuple[str, float]]:
        """Yield the key and the modification time in seconds of each file, without reading it."""
        if not self._folder.is_dir():
            return
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name.endswith(".parquet") and not entry.name.startswith("."):
                    with suppress(FileNotFoundError):  # renamed since the folder was listed
                        yield entry.name.removesuffix(".parquet"), entry.stat().st_mtime

    def table(self, key: str) -> Table:
        """Return a point's generations as a table for the tracker.

        Raises:
            JournalError: see `read`.
        """
        rows = self._rows(key)
        shown = [column for column in rows.column_names if column not in UNSHOWN]
        columns = [rows.column(column).to_pylist() for column in shown]
        return Table(shown or ["prompt", "generation"], [list(row) for row in zip(*columns, strict=True)])

    def read(self, keys: Sequence[str]) -> Any:
        """Return the rows of points as a pandas DataFrame. Columns that a point lacks are empty.

        Column types are common to all points: a column with text at any point has text everywhere.

        Raises:
            JournalError: a file was removed. Or it is damaged and was moved to `.damaged`, to be made again from the
                journal.
        """
        import pandas as pd

        tables = [self._rows(key).replace_schema_metadata() for key in keys]
        tables = [table for table in tables if table.num_rows]
        return (
            pa.concat_tables(_unified(tables), promote_options="permissive").to_pandas() if tables else pd.DataFrame()
        )

    def supersede(self, key: str) -> None:
        """Remove a superseded point from the archive by renaming its file to `.superseded`."""
        self._path(key).replace(self._path(key).with_suffix(".superseded"))

    def _rows(self, key: str) -> pa.Table:
        path = self._path(key)
        try:
            state_files.require(path)
            return pq.read_table(path, page_checksum_verification=True)
        except (OSError, pa.ArrowException) as error:
            damaged = path.with_suffix(".damaged")
            if isinstance(error, FileNotFoundError) and not path.is_symlink() and not damaged.exists():
                raise _removed_error(path) from error
            with suppress(FileNotFoundError):  # another thread may have renamed it already
                path.replace(damaged)
            raise JournalError(
                f"{path} is damaged and was moved to {damaged.name}: {str(error).splitlines()[0]}\n"
                "Run the same command again to make it from the journal."
            ) from error

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.parquet"


def _columns(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    columns = dict.fromkeys(column for row in rows for column in row)
    values = {column: [row.get(column) for row in rows] for column in columns}
    try:
        return pa.table(values)
    except UnicodeEncodeError:  # a server's JSON can contain a lone surrogate, Parquet cannot
        return pa.table({name: [encodable(value) for value in column] for name, column in values.items()})


def encodable(value: Any) -> Any:
    """Return a string with `?` for each lone surrogate, and any other value unchanged."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _unified(tables: Sequence[pa.Table]) -> list[pa.Table]:
    """Cast the tables' columns so that the tables can be concatenated."""
    types: dict[str, set[pa.DataType]] = {}
    for table in tables:
        for column in table.schema:
            types.setdefault(column.name, set()).add(column.type)
    targets = {name: target for name, kinds in types.items() if (target := _common_type(kinds)) is not None}
    return [_cast(table, targets) for table in tables]


def _common_type(types: set[pa.DataType]) -> pa.DataType | None:
    """Return a type that holds the values of all types, or None if Arrow promotes them itself."""
    kinds = {kind for kind in types if not pa.types.is_null(kind)}
    if len(kinds) < 2 or all(pa.types.is_nested(kind) for kind in kinds):
        return None
    numbers = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    return pa.float64() if all(any(test(kind) for test in numbers) for kind in kinds) else pa.string()


def _cast(table: pa.Table, targets: Mapping[str, pa.DataType]) -> pa.Table:
    for position, column in enumerate(table.schema):
        target = targets.get(column.name, column.type)
        if column.type == target or pa.types.is_null(column.type):
            continue
        values = table.column(position)
        if target == pa.string():
            values = pa.array([value if value is None else as_text(value) for value in values.to_pylist()], target)
        else:
            values = values.cast(target, safe=False)
        table = table.set_column(position, pa.field(column.name, target), values)
    return table


def _removed_error(path: Path) -> JournalError:
    """Return the error for a file or folder that existed when this process started."""
    return JournalError(
        f"{path} was removed or moved while the sweep was running. Nothing more is written there.\n"
        "Run the same command again: it resumes if sweep.dir holds the sweep, and otherwise starts over."
    )


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode()


def _record(values: dict[str, Any]) -> PointRecord:
    summaries = {name: state_files.build(Summary, summary) for name, summary in values.pop("summaries").items()}
    axes = tuple((key, value) for key, value in values.pop("axes"))
    return state_files.build(PointRecord, {**values, "summaries": summaries, "axes": axes})
