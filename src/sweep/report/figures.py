"""Dose–response plots as Plotly figures.  The browser adds the colours of its theme."""

from __future__ import annotations

import math
from typing import Any

from sweep.report.doses import SHARES, Line, Response, Value, spoken
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
        "xaxis": {"title": {"text": _plain(short(response.axis))}, "type": "linear"},
        "yaxis": {"range": SHARES} if response.share else {},
        "shapes": [*_floor(response), *_control(response.control)],
        "annotations": [],
        "showlegend": 1 < len(response.lines) <= LEGIBLE,
    }
    if response.logarithmic:
        layout["xaxis"] |= {"type": "log"} | _ticks(response)
    for doses, text, colour, dash, height in (
        (response.effective, "first effective", EFFECTIVE, "dash", 1.0),
        (response.breaking, "breaks at", BREAKING, "dashdot", 1.1),
    ):
        layout["shapes"] += [shape for value, _ in doses for shape in _upright(response, value, colour, dash)]
        layout["annotations"] += [_label(f"{text} {spoken(doses)}", colour, height)] if doses else []
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


def _ticks(response: Response) -> dict[str, Any]:
    # Plotly's own would say no more of 0.2 or 0.5 than their digits.
    doses = [dose for line in response.lines for dose in line.doses]
    powers = range(math.floor(math.log10(min(doses))), math.ceil(math.log10(max(doses))) + 1)
    ticks = [f"{digit}e{power}" for power in powers for digit in response.digits]
    return {"tickvals": [float(tick) for tick in ticks], "ticktext": [f"{float(tick):g}" for tick in ticks]}


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


def _upright(response: Response, value: Value, colour: str, dash: str) -> list[dict[str, Any]]:
    upright = {"yref": "paper", "y0": 0, "y1": 1, "layer": "below"}
    shapes = []
    if reach := response.reach(value):
        area = {"type": "rect", "x0": reach[0], "x1": reach[1], "fillcolor": colour, "opacity": 0.12}
        shapes.append(upright | area | {"line": {"width": 0}})
    line = {"color": colour, "width": 2, "dash": dash}
    return [*shapes, upright | {"type": "line", "x0": value[0], "x1": value[0], "line": line}]


def _label(text: str, colour: str, height: float) -> dict[str, Any]:
    # Beside its line a label would run into those of other doses, or off the plot.
    place = {"xref": "paper", "x": 0, "xanchor": "left", "yref": "paper", "y": height, "yanchor": "bottom"}
    return place | {"text": text, "showarrow": False, "font": {"size": 11, "color": colour}}
