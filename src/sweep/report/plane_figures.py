"""Plotly figures of two dimensions: heat maps over two numeric axes, and effect against quality."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import pandas as pd

from sweep.report.figures import EFFECTIVE, GREY, plotly_text
from sweep.report.measures import headline_groups, main_measures, measures, short_key, title
from sweep.report.results import SweepResults
from sweep.report.series import is_seed

FRONT = "effect and quality"  # heading of the plot of the Pareto front
FEWEST = 2  # values of an axis of a heat map


def heat_maps(results: SweepResults) -> Iterator[dict[str, Any]]:
    """Yield a heat map for each pair of numeric axes and each main measure.

    A cell is the mean of the points with these two values, over all other swept keys. Its text says how many points
    that are. Numbers are spaced evenly, whatever their distance.
    """
    points = results.points[results.points["role"] != "control"]
    if "error" in points:
        points = points[points["error"].isna()]
    chosen = main_measures(measures(results.points.columns), headline_groups(), results.first)
    for first, second in combinations(_numeric(points, results.axes), 2):
        for measure in chosen:
            rows = points[points[[f"axis/{first}", f"axis/{second}", measure]].notna().all(axis=1)]
            grid = rows.pivot_table(measure, f"axis/{second}", f"axis/{first}", ["mean", "count"])
            if not len(grid):
                continue
            mean, count = grid["mean"].sort_index(), grid["count"].sort_index()
            if mean.shape[0] >= FEWEST and mean.shape[1] >= FEWEST and mean.notna().sum().sum() > max(mean.shape):
                yield _heat_map(first, second, measure, mean, count)


def _numeric(points: pd.DataFrame, axes: Sequence[str]) -> list[str]:
    columns = {axis: pd.to_numeric(points[f"axis/{axis}"], errors="coerce") for axis in axes if not is_seed(axis)}
    return [
        axis
        for axis, numbers in columns.items()
        if numbers.nunique() >= FEWEST and (numbers.notna() == points[f"axis/{axis}"].notna()).all()
    ]


def _heat_map(first: str, second: str, measure: str, mean: pd.DataFrame, count: pd.DataFrame) -> dict[str, Any]:
    texts = [
        [
            "" if math.isnan(value) else f"{value:.3g}" + (f" (n={n:.0f})" if n > 1 else "")
            for value, n in zip(*rows, strict=True)
        ]
        for rows in zip(mean.to_numpy().tolist(), count.to_numpy().tolist(), strict=True)
    ]
    trace = {
        "type": "heatmap",
        "x": [f"{value:.6g}" for value in mean.columns],
        "y": [f"{value:.6g}" for value in mean.index],
        "z": [[None if math.isnan(value) else value for value in row] for row in mean.to_numpy().tolist()],
        "text": texts,
        "texttemplate": "%{text}" if mean.size <= 100 else "",
        "hovertemplate": "%{x}, %{y}: %{text}<extra></extra>",
        "colorscale": "Viridis",
        "colorbar": {"thickness": 10},
    }
    layout = {
        "title": {"text": plotly_text(title(measure))},
        "xaxis": {"title": {"text": plotly_text(short_key(first))}, "type": "category"},
        "yaxis": {"title": {"text": plotly_text(short_key(second))}, "type": "category"},
        "showlegend": False,
    }
    return {"axis": f"{first} × {second}", "measure": measure, "data": [trace], "layout": layout}


def front_figure(results: SweepResults) -> dict[str, Any] | None:
    """Return the plot of effect against quality with the Pareto front; None without such points."""
    table = results.front
    if table.empty:
        return None
    effect, quality = str(table["effect_measure"].iloc[0]), str(table["quality_measure"].iloc[0])
    on_front = table["on_front"].astype(bool)
    ordered = table[on_front].sort_values(["effect", "quality"])
    line = {
        "type": "scatter", "mode": "lines", "name": "Pareto front", "hoverinfo": "skip",
        "x": ordered["effect"].tolist(), "y": ordered["quality"].tolist(),
        "line": {"color": EFFECTIVE, "width": 1.5, "dash": "dot"},
    }  # fmt: skip
    traces = [line]
    for kept, name, colour in ((on_front, "not dominated", EFFECTIVE), (~on_front, "dominated", GREY)):
        rows = table[kept]
        texts = [
            f"{plotly_text(str(row.name))}<br>effect {row.effect:.3g}, quality {row.quality:.3g}<br>"
            f"on the front in {row.share:.0%} of resamples"
            for row in rows[["name", "effect", "quality", "share"]].itertuples(index=False, name="P")
        ]
        traces.append({
            "type": "scatter", "mode": "markers", "name": name, "x": rows["effect"].tolist(),
            "y": rows["quality"].tolist(), "text": texts, "hovertemplate": "%{text}<extra></extra>",
            "marker": {"size": 9, "color": colour, "symbol": "circle" if kept is on_front else "circle-open"},
        })  # fmt: skip
    layout = {
        "title": {"text": plotly_text(f"{title(quality)} against {title(effect)}")},
        "xaxis": {"title": {"text": plotly_text(f"effect: {title(effect)}")}, "type": "linear"},
        "yaxis": {"title": {"text": plotly_text(title(quality))}},
        "showlegend": True,
    }
    return {"axis": FRONT, "measure": quality, "data": traces, "layout": layout}
