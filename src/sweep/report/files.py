"""Report files on disk: the report, its plots, and tables for notebooks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from sweep.console.streams import visible
from sweep.report import GENERATIONS, POINTS, html, plots, recovery_figure
from sweep.report.recovery import recovery_results
from sweep.report.results import SweepResults
from sweep.util.atomic import replace

RESPONSES, ROWS, REPORT, PLOTS = "responses.csv", "rows.csv", "report.html", "plots"
CONTRASTS, TURNING, FRONT = "contrasts.csv", "turning.csv", "pareto.csv"


def write(results: SweepResults, folder: Path) -> list[Path]:
    """Write `points.csv`, `rows.csv`, `responses.csv`, `generations.parquet`, `report.html` and `plots/` into a folder.

    `contrasts.csv`, `turning.csv` and `pareto.csv` are written if they have rows, and otherwise removed. The folder is
    created. Each file is replaced atomically, so readers and crashes never see half of one.

    Returns:
        Paths of the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = generations_table(results)
    report = html.render(results)
    recovered = recovery_results(results, list(range(len(results.points))))
    more = {CONTRASTS: results.contrasts, TURNING: results.turnings, FRONT: results.front}
    for name in (name for name, rows in more.items() if not len(rows)):
        (folder / name).unlink(missing_ok=True)
    return [
        replace(folder / POINTS, lambda path: _printable(results.points).to_csv(path, index=False)),
        replace(folder / ROWS, lambda path: _printable(results.rows).to_csv(path, index=False)),
        replace(folder / RESPONSES, lambda path: _printable(results.responses).to_csv(path, index=False)),
        *(_write_csv(folder / name, rows) for name, rows in more.items() if len(rows)),
        replace(folder / GENERATIONS, lambda path: pq.write_table(table, path, compression="zstd")),
        replace(folder / REPORT, lambda path: path.write_text(report, "utf-8")),
        *plots.write(results, folder / PLOTS),
        *([recovery_figure.write_png(recovered, folder / PLOTS, results.confidence)] if recovered else []),
    ]


def generations_table(results: SweepResults) -> pa.Table:
    """Return a sweep's generations for Parquet. `token_ids` is a column of lists; `attrs` identify the sweep."""
    frame = results.generations.copy()
    if "token_ids" not in frame:  # nothing was generated
        frame["token_ids"] = pd.Series(dtype=object)
    for column in frame.columns:
        # A swept key can have numbers at some points and texts at others. A Parquet column has one type.
        if column.startswith("axis/") and frame[column].dtype == object:
            frame[column] = _uniform(frame[column])
    frame.attrs = {
        "sweep_id": results.sweep_id,
        "name": results.name,
        "command": results.command,
        "confidence": results.confidence,
    }
    schema = pa.Schema.from_pandas(frame.drop(columns="token_ids"), preserve_index=False)
    position = frame.columns.get_loc("token_ids")
    schema = schema.insert(position, pa.field("token_ids", pa.list_(pa.int64())))
    return pa.Table.from_pandas(frame, schema=schema, preserve_index=False)


def _write_csv(path: Path, table: pd.DataFrame) -> Path:
    return replace(path, lambda temporary: _printable(table).to_csv(temporary, index=False))


def _printable(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table whose texts are safe to print in a terminal."""
    # Formulas of spreadsheets are not escaped: values such as `-1` or `@x` must stay unchanged.
    texts = {c: table[c].map(_visible) for c in table.columns if not pd.api.types.is_numeric_dtype(table[c])}
    return table.assign(**texts)


def _visible(value: Any) -> Any:
    return visible(value) if isinstance(value, str) else value


def _uniform(values: pd.Series) -> pd.Series:
    numbers = pd.to_numeric(values, errors="coerce")
    if bool((numbers.notna() == values.notna()).all()):
        return numbers
    return values.where(values.isna(), values.astype(str))
