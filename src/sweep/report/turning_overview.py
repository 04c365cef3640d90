"""Table of an axis' best doses and shapes in the HTML report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from sweep.report.measures import title
from sweep.report.overview import NONE, Cell, Column, Row, Table
from sweep.report.turning_text import interval, shape_words


def turning_rows(turnings: pd.DataFrame, axis: str) -> Table:
    """Return the table of one axis in the HTML report, one row per measure and series."""
    chosen = turnings[turnings["axis"] == axis].to_dict("records")
    several = any(row["series"] for row in chosen)
    titles = ("best dose", "as good", "confirmed", "shape", "p of monotone", "p of trend")
    rows = []
    for row in chosen:
        before = [Cell(row["series"])] if several else []
        shape = shape_words(row["shape"], row["monotone_p"], row["trend_p"])
        cells = [_dose(row), _range(row, "within"), _range(row, "confirmed"), Cell(shape)]
        cells += [Cell(NONE if math.isnan(row[name]) else f"{row[name]:.2g}") for name in ("monotone_p", "trend_p")]
        rows.append(Row(title(row["measure"]), row["measure"], "", [*before, *cells]))
    return Table([Column(name, name, True) for name in (("series",) if several else ()) + titles], rows)


def _dose(row: Mapping[Any, Any]) -> Cell:
    if math.isnan(row["best"]) or row["shape"] == "flat":  # no dose is better than another
        return Cell(NONE)
    low, high = row["best/ci_low"], row["best/ci_high"]
    return Cell(f"{row['best']:.3g}", "" if math.isnan(low) else f" [{low:.3g}, {high:.3g}]")


def _range(row: Mapping[Any, Any], name: str) -> Cell:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return Cell(NONE if math.isnan(low) else interval(low, high, " – "))
