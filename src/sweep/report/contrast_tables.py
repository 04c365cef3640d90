"""Contrasts as a table, for files and notebooks."""

from __future__ import annotations

import pandas as pd

from sweep.report.contrasts import Contrasts, table_rows


def contrast_table(contrasts: Contrasts) -> pd.DataFrame:
    """Return one row per contrast and measure; see `SweepResults.contrasts`."""
    numbers = {"difference": "mean", "difference/ci_low": "ci_low", "difference/ci_high": "ci_high"}
    numbers |= {name: name for name in ("p", "q", "significant", "gained", "lost", "detectable")}
    rows = [
        (c.first, c.second, measure, *(getattr(d, name) for name in numbers.values()), c.prompts[measure])
        for c, measure, d in table_rows(contrasts)
    ]
    columns = ["first", "second", "measure", *numbers, "n"]
    return pd.DataFrame(rows, columns=columns).astype({"gained": "Int64", "lost": "Int64"})
