"""Every finished point's generations and scores, on disk, for the report and for notebooks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


class Archive:
    """A folder with a Parquet file for each point, so that a sweep's generations need not stay in memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, index: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep one point's rows; whole or not at all."""
        path = self._folder / f"{index:06d}.parquet"
        unfinished = path.with_suffix(".tmp")
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), unfinished)
        os.replace(unfinished, path)

    def read(self) -> Any:
        """Return all rows, in the order of the points, as a pandas DataFrame; columns that a point lacks are empty."""
        import pandas as pd

        tables = [pq.read_table(path) for path in sorted(self._folder.glob("*.parquet"))]
        if not tables:
            return pd.DataFrame()
        return pa.concat_tables(tables, promote_options="permissive").to_pandas()
