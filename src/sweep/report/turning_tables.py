"""Turning responses, the Pareto front and quantiles as tables, for files and notebooks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import astuple

import numpy as np
import pandas as pd

from sweep.planning.results import PointResult
from sweep.report.turning import Front, Turning
from sweep.scoring.registry import spec

BEST = (
    *("best", "best/ci_low", "best/ci_high", "best_mean"),
    *("within_low", "within_high", "confirmed_low", "confirmed_high"),
)
NUMBERS = ("tolerance", "shape", "monotone_p", "trend", "trend_p", "trend_p_below", "trend_p_above", "doses", "prompts")


def turning_table(turnings: Iterable[Turning]) -> pd.DataFrame:
    """Return one row per axis, series and measure; see `SweepResults.turnings`."""
    rows = [
        (t.axis, t.series, t.measure)
        + (astuple(t.best) if t.best is not None else (math.nan,) * len(BEST))
        + tuple(getattr(t, name) for name in NUMBERS)
        for t in turnings
    ]
    return pd.DataFrame(rows, columns=["axis", "series", "measure", *BEST, *NUMBERS])


def front_table(front: Front | None, names: Mapping[int, str]) -> pd.DataFrame:
    """Return one row per point of the front's plane; see `SweepResults.front`.

    Args:
        front: the points by effect and quality; None: the table is empty.
        names: names of the points, by index.
    """
    points = front.points if front is not None else ()
    rows = [(p.point, names[p.point], p.effect, p.quality, p.on_front, p.share) for p in points]
    table = pd.DataFrame(rows, columns=["point", "name", "effect", "quality", "on_front", "share"])
    if front is not None:
        table.attrs = {"effect": front.effect, "quality": front.quality}
        table = table.assign(effect_measure=front.effect, quality_measure=front.quality)
    return table


def quantiles(measure: str, result: PointResult) -> dict[str, float]:
    """Return a point's quantiles over prompts of a measure that has them, by column: `m/quantile_90`."""
    values = result.values.get(measure)
    if values is None or not spec(measure).quantiles or np.isnan(values).all():
        return {}
    found = np.nanquantile(values, spec(measure).quantiles)
    return {
        f"{measure}/quantile_{share * 100:g}": float(v) for share, v in zip(spec(measure).quantiles, found, strict=True)
    }
