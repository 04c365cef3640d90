"""Every finished point's generations and scores, on disk: what the report, notebooks and MLflow are filled from.

A point's file holds all that is published of it, so that publication can wait for MLflow, or for the next run.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sweep.disk.atomic import replace
from sweep.errors import JournalError
from sweep.scoring.values import Summary
from sweep.tracking.records import PointRecord, Table

METADATA, DIGEST = b"sweep", b"sweep.sha256"
UNSHOWN = ("sample", "token_ids", "point", "name", "role")  # columns that MLflow's table does without


@dataclass(frozen=True, slots=True)
class Archived:
    """A point's file, without its rows.

    Attributes:
        key: the `Identity.result_key` of the point.
        record: what is published of it.
    """

    key: str
    record: PointRecord

    @property
    def done(self) -> bool:
        """Whether the point was finished and has not failed."""
        return self.record.error is None


class Archive:
    """A folder with a Parquet file for each point, so that a sweep's generations need not stay in memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, key: str, record: PointRecord, rows: Sequence[Mapping[str, Any]]) -> Archived:
        """Keep one point's record and rows; whole or not at all.

        Raises:
            JournalError: the folder cannot be written; the generations are in the journal.
        """
        columns = dict.fromkeys(column for row in rows for column in row)
        table = pa.table({column: [row.get(column) for row in rows] for column in columns})
        described = json.dumps(asdict(record)).encode()
        metadata = {METADATA: described, DIGEST: _digest(described)}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            replace(
                self._path(key),
                lambda path: pq.write_table(table.replace_schema_metadata(metadata), path, write_page_checksum=True),
            )
        except OSError as error:
            reason = error.strerror or error
            raise JournalError(f"{self._folder} cannot be written: {reason}.  The generations are kept.") from error
        return Archived(key, record)

    def get(self, key: str) -> Archived | None:
        """Return a point's file; None: there is none that can be read."""
        try:
            metadata = pq.read_schema(self._path(key)).metadata
            if metadata[DIGEST] != _digest(metadata[METADATA]):
                return None
            return Archived(key, _record(json.loads(metadata[METADATA])))
        except (OSError, ValueError, KeyError, TypeError):  # then the point is scored again
            return None

    def __iter__(self) -> Iterator[Archived]:
        """Return all points' files, in the order of the sweep."""
        found = [self.get(path.stem) for path in self._folder.glob("*.parquet") if not path.name.startswith(".")]
        return iter(sorted((a for a in found if a is not None), key=lambda archived: archived.record.index))

    def written(self) -> Iterator[tuple[str, float]]:
        """Yield the keys of all files that are there, and when each was written, without reading them."""
        if not self._folder.is_dir():
            return
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if entry.name.endswith(".parquet") and not entry.name.startswith("."):
                    with suppress(FileNotFoundError):  # it was put aside meanwhile
                        yield entry.name.removesuffix(".parquet"), entry.stat().st_mtime

    def table(self, key: str) -> Table:
        """Return a point's generations as they are published.

        Raises:
            JournalError: as of `read`.
        """
        rows = self._rows(key)
        shown = [column for column in rows.column_names if column not in UNSHOWN]
        columns = [rows.column(column).to_pylist() for column in shown]
        return Table(shown or ["prompt", "generation"], [list(row) for row in zip(*columns, strict=True)])

    def read(self, keys: Sequence[str]) -> Any:
        """Return some points' rows as a pandas DataFrame; columns that a point lacks are empty.

        Raises:
            JournalError: a file is damaged, and was put aside; the journal has what it is made of.
        """
        import pandas as pd

        tables = [self._rows(key).replace_schema_metadata() for key in keys]
        filled = [table for table in tables if table.num_rows]
        return pa.concat_tables(filled, promote_options="permissive").to_pandas() if filled else pd.DataFrame()

    def put_aside(self, key: str) -> None:
        """Take a point out that has been superseded; its file stays under another name."""
        self._path(key).replace(self._path(key).with_suffix(".superseded"))

    def _rows(self, key: str) -> pa.Table:
        path = self._path(key)
        try:
            return pq.read_table(path, page_checksum_verification=True)
        except (OSError, pa.ArrowException) as error:
            if path.is_file():
                path.replace(path.with_suffix(".damaged"))
            raise JournalError(
                f"{path} is damaged, and was put aside: {str(error).splitlines()[0]}\n"
                "The same command makes it again from what was generated."
            ) from error

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.parquet"


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode()


def _record(plain: dict[str, Any]) -> PointRecord:
    summaries = {name: Summary(**summary) for name, summary in plain.pop("summaries").items()}
    axes = tuple((key, value) for key, value in plain.pop("axes"))
    return PointRecord(summaries=summaries, axes=axes, **plain)
