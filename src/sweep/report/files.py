"""What stays of a sweep on disk: the report, its plots, and tables for notebooks."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from sweep.disk.atomic import replace
from sweep.loading import GENERATIONS, POINTS
from sweep.report import html, plots
from sweep.report.results import SweepResults

RESPONSES, REPORT, PLOTS = "responses.csv", "report.html", "plots"


def write(results: SweepResults, folder: Path) -> list[Path]:
    """Write `points.csv`, `responses.csv`, `generations.parquet`, `report.html`, `plots/` into a folder, which is made.

    Each file is replaced as a whole, so that a reader, or a run that dies here, never leaves half of one.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = generations_table(results)
    report = html.render(results)
    return [
        replace(folder / POINTS, lambda path: results.points.to_csv(path, index=False)),
        replace(folder / RESPONSES, lambda path: results.responses.to_csv(path, index=False)),
        replace(folder / GENERATIONS, lambda path: pq.write_table(table, path, compression="zstd")),
        replace(folder / REPORT, lambda path: path.write_text(report, "utf-8")),
        *plots.write(results, folder / PLOTS),
    ]


def generations_table(results: SweepResults) -> pa.Table:
    """Return a sweep's generations for Parquet: `token_ids` is a column of lists, `attrs` say what sweep it was."""
    frame = results.generations.copy()
    if "token_ids" not in frame:  # nothing was generated
        frame["token_ids"] = pd.Series(dtype=object)
    for column in frame.columns:
        # A swept key may have numbers at some points and texts at others, which Parquet cannot hold in one column.
        if column.startswith("axis/") and frame[column].dtype == object:
            frame[column] = _uniform(frame[column])
    frame.attrs = {
        "sweep_id": results.sweep_id,
        "name": results.name,
        "command": results.command,
        "confidence": results.confidence,
    }
    schema = pa.Schema.from_pandas(frame.drop(columns="token_ids"), preserve_index=False)
    place = frame.columns.get_loc("token_ids")
    schema = schema.insert(place, pa.field("token_ids", pa.list_(pa.int64())))
    return pa.Table.from_pandas(frame, schema=schema, preserve_index=False)


def _uniform(values: pd.Series) -> pd.Series:
    numbers = pd.to_numeric(values, errors="coerce")
    if bool((numbers.notna() == values.notna()).all()):
        return numbers
    return values.where(values.isna(), values.astype(str))
