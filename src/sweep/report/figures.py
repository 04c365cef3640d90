"""Dose–response plots as Plotly figures.  The browser adds the colours of its theme."""

from __future__ import annotations

import math
from typing import Any

from sweep.report.doses import SHARES, Line, Response, Value
from sweep.report.measures import short, title

# Okabe and Ito's colours, which colour-blind people can tell apart; these are legible on white and on black.
PALETTE = ("#0072B2", "#E69F00", "#CC79A7", "#56B4E9")
GREY = "#808080"
CROWDED = 20  # doses
LEGIBLE = 12  # labels
EFFECTIVE, BREAKING = "#009E73", "#D55E00"


def figure(response: Response) -> dict[str, Any]:
    """Return `axis`, `measure`, and Plotly's `data` and `layout`."""
    layout: dict[str, Any] = {
        "title": {"text": _plain(title(response.measure))},
        "xaxis": {"title": {"text": _plain(short(response.axis))}, "type": "log" if response.logarithmic else "linear"},
        "yaxis": {"range": SHARES} if response.share else {},
        "shapes": [*_floor(response), *_control(response.control)],
        "annotations": [],
        "showlegend": 1 < len(response.lines) <= LEGIBLE,
    }
    # The two labels stand at different heights, so that they can be read where the two doses are close.
    _dose(layout, response, response.first_effective, "first effective", EFFECTIVE, 1.0)
    _dose(layout, response, response.breaking_point, "breaks at", BREAKING, 1.1)
    data = [_trace(line, PALETTE[i % len(PALETTE)]) for i, line in enumerate(response.lines)]
    return {"axis": response.axis, "measure": response.measure, "data": data, "layout": layout}


def _trace(line: Line, colour: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": _plain(line.label),
        "x": line.doses,
        "y": [mean for mean, _, _ in line.means],
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [_reach(high - mean) for mean, _, high in line.means],
            "arrayminus": [_reach(mean - low) for mean, low, _ in line.means],
            "color": colour,
            "thickness": 1.5,
            "width": 4 if len(line.doses) < CROWDED else 0,
        },
        "line": {"color": colour, "width": 2},
        "marker": {
            "size": 9 if len(line.doses) < CROWDED else 6,
            "color": colour,
            "symbol": [("circle-open", "circle")[mark] for mark in line.significant],
        },
        "text": [_hover(name, value) for name, value in zip(line.names, line.means, strict=True)],
        "hovertemplate": "%{text}<extra></extra>",
    }


def _plain(text: str) -> str:
    # Plotly reads a little HTML in texts, so that a name must not look like it.
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _reach(length: float) -> float:
    return 0.0 if math.isnan(length) else max(0.0, length)


def _hover(name: str, value: Value) -> str:
    mean, low, high = value
    return f"{_plain(name)}<br>{mean:.3g}" + ("" if math.isnan(low) else f" [{low:.3g}, {high:.3g}]")


def _floor(response: Response) -> list[dict[str, Any]]:
    low, high = response.floor_band
    if math.isnan(low):
        return []
    band = {"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "y0": low, "y1": high, "layer": "below"}
    label = {"text": "noise floor", "textposition": "bottom right", "font": {"size": 10, "color": GREY}}
    return [band | {"fillcolor": GREY, "opacity": 0.25, "line": {"width": 1, "color": GREY}, "label": label}]


def _control(mean: float) -> list[dict[str, Any]]:
    if math.isnan(mean):
        return []
    line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": mean, "y1": mean, "layer": "below"}
    label = {"text": "control", "textposition": "end", "yanchor": "top", "font": {"size": 10, "color": GREY}}
    return [line | {"line": {"color": GREY, "width": 1.5, "dash": "dot"}, "label": label}]


def _dose(layout: dict[str, Any], response: Response, value: Value, text: str, colour: str, height: float) -> None:
    middle = value[0]
    if math.isnan(middle):
        return
    upright = {"yref": "paper", "y0": 0, "layer": "below"}
    if reach := response.reach(value):
        place = {"type": "rect", "x0": reach[0], "x1": reach[1], "y1": 1}
        layout["shapes"].append(upright | place | {"fillcolor": colour, "opacity": 0.12, "line": {"width": 0}})
    line = {"color": colour, "width": 2, "dash": "dash"}
    layout["shapes"].append(upright | {"type": "line", "x0": middle, "x1": middle, "y1": height, "line": line})
    # Plotly takes an annotation's place on a logarithmic axis, unlike a shape's, as the logarithm.
    at = math.log10(middle) if layout["xaxis"]["type"] == "log" and middle > 0 else middle
    label = {"text": f"{text} {middle:.3g}", "showarrow": False, "font": {"size": 11, "color": colour}}
    layout["annotations"].append(label | {"x": at, "yref": "paper", "y": height, "yanchor": "bottom"})
