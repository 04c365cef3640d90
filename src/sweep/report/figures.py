"""Dose–response plots as Plotly figures. The page's script adds the colours of its theme."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from sweep.console.streams import visible
from sweep.report.dose_response import SHARES, DoseResponse, Line, Value, format_doses
from sweep.report.measures import title

# Okabe and Ito's palette for colour-blind readers; these colours are legible on white and on black.
PALETTE = ("#0072B2", "#E69F00", "#CC79A7", "#56B4E9")
GREY = "#808080"
CROWDED = 20  # doses from which on markers get smaller
DASHES, SYMBOLS = ("solid", "dot", "dash", "longdash"), ("circle", "square", "diamond", "triangle-up")
LEGIBLE = len(PALETTE) * len(DASHES)  # number of distinct line styles
EFFECTIVE, BREAKING = "#009E73", "#D55E00"


def figure(response: DoseResponse) -> dict[str, Any]:
    """Return one plot as a dictionary: `axis`, `measure`, and Plotly's `data` and `layout`."""
    alone = len(response.lines) == 1
    layout: dict[str, Any] = {
        "title": {"text": plotly_text(title(response.measure))},
        "xaxis": {"title": {"text": plotly_text(response.dose_title)}, "type": "linear"},
        "yaxis": {"range": SHARES} if response.share else {},
        "shapes": [*_floors(response), *_controls(response)],
        "annotations": [],
        "showlegend": 1 < len(response.lines) <= LEGIBLE,
    }
    if response.logarithmic:
        layout["xaxis"] |= {"type": "log"} | _ticks(response)
    for index, line in enumerate(response.lines):
        for doses, text, colour, dash, height in (
            (line.effective, "first effective", EFFECTIVE, "dash", 1.0),
            (line.breaking, "breaks at", BREAKING, "dashdot", 1.1),
        ):
            line_colour = colour if alone else colour_of(index)
            for value, _ in doses:
                layout["shapes"] += _upright(response, value, line_colour, dash, alone)
            if doses and alone:  # with several lines there is no room; the table below the plots has them all
                layout["annotations"].append(_label(f"{text} {format_doses(doses)}", line_colour, height))
    data = [trace for index, line in enumerate(response.lines) for trace in _traces(line, index)]
    return {"axis": response.axis, "measure": response.measure, "data": data, "layout": layout}


def colour_of(index: int) -> str:
    """Return the colour of a line by its index."""
    return PALETTE[index % len(PALETTE)]


def _traces(line: Line, index: int) -> list[dict[str, Any]]:
    """Return the line of means and, for pooled seeds, the single points and the band of the intervals."""
    colour, style = colour_of(index), index // len(PALETTE) % len(DASHES)
    points = _points(line, colour, SYMBOLS[style])
    means = {
        "type": "scatter",
        "name": plotly_text(line.label),
        "legendgroup": str(index),
        "x": line.doses,
        "y": [mean for mean, _, _ in line.means],
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [_bar_length(high - mean) for mean, _, high in line.means],
            "arrayminus": [_bar_length(mean - low) for mean, low, _ in line.means],
            "color": colour,
            "thickness": 1.5,
            "width": 4 if len(line.doses) < CROWDED else 0,
        },
        "line": {"color": colour, "width": 2, "dash": DASHES[style]},
        "hovertemplate": "%{text}<extra></extra>",
    }
    if not line.series.pooled:
        return [means | points | {"mode": "lines+markers", "name": means["name"], "x": line.doses}]
    texts = [_hover(f"{line.label}: {dose:.6g}", mean) for dose, mean in zip(line.doses, line.means, strict=True)]
    single = points | {"type": "scatter", "mode": "markers", "opacity": 0.6}
    return [means | {"mode": "lines", "text": texts}, single, *_band(line, colour, str(index))]


def _band(line: Line, colour: str, group: str) -> list[dict[str, Any]]:
    """Return the area between the bounds of the intervals, over the doses that have one."""
    bounds = [(dose, low, high) for dose, (_, low, high) in zip(line.doses, line.means, strict=True) if low <= high]
    if len(bounds) < 2:
        return []
    doses, lows, highs = (list(values) for values in zip(*bounds, strict=True))
    area = {"x": doses + doses[::-1], "y": highs + lows[::-1], "fill": "toself", "fillcolor": colour, "opacity": 0.2}
    style = {"type": "scatter", "mode": "lines", "line": {"width": 0, "color": colour}, "legendgroup": group}
    return [area | style | {"showlegend": False, "hoverinfo": "skip"}]


def _points(line: Line, colour: str, symbol: str) -> dict[str, Any]:
    pooled = bool(line.series.pooled)
    return {
        "x": [marker.dose for marker in line.markers],
        "y": [marker.mean[0] for marker in line.markers],
        "marker": {
            "size": 6 if len(line.doses) >= CROWDED or pooled else 9,
            "color": colour,
            "symbol": [symbol + "-open" * (not marker.significant) for marker in line.markers],
        },
        "text": [_hover(marker.name, marker.mean) for marker in line.markers],
        "hovertemplate": "%{text}<extra></extra>",
    } | ({"showlegend": False} if pooled else {})


def _ticks(response: DoseResponse) -> dict[str, Any]:
    # Plotly labels 0.2 and 0.5 with their leading digit only.
    doses = [dose for line in response.lines for dose in line.doses]
    powers = range(math.floor(math.log10(min(doses))), math.ceil(math.log10(max(doses))) + 1)
    ticks = [f"{digit}e{power}" for power in powers for digit in response.digits]
    return {"tickvals": [float(tick) for tick in ticks], "ticktext": [f"{float(tick):g}" for tick in ticks]}


def plotly_text(text: str) -> str:
    """Escape a text for Plotly, which interprets some HTML; make control characters visible."""
    return visible(text).replace("&", "&amp;").replace("<", "&lt;")


def _bar_length(length: float) -> float:
    return 0.0 if math.isnan(length) else max(0.0, length)


def _hover(name: str, value: Value) -> str:
    mean, low, high = value
    return f"{plotly_text(name)}<br>{mean:.3g}" + ("" if math.isnan(low) else f" [{low:.3g}, {high:.3g}]")


def _floors(response: DoseResponse) -> Iterator[dict[str, Any]]:
    for index, (low, high) in response.floor_bands:
        colour = GREY if index is None else colour_of(index)
        band = {"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "y0": low, "y1": high, "layer": "below"}
        band |= {"fillcolor": colour, "opacity": 0.25, "line": {"width": 1, "color": colour}}
        text = "noise floor" if index is None else f"noise floor: {response.lines[index].control_name}"
        label = {"text": plotly_text(text), "textposition": "bottom right", "font": {"size": 10, "color": colour}}
        yield band | {"label": label}


def _controls(response: DoseResponse) -> Iterator[dict[str, Any]]:
    for index, mean, name in response.controls:
        colour = GREY if index is None else colour_of(index)
        line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": mean, "y1": mean, "layer": "below"}
        font = {"size": 10, "color": colour}
        label = {"text": plotly_text(name), "textposition": "end", "yanchor": "top", "font": font}
        yield line | {"line": {"color": colour, "width": 1.5, "dash": "dot"}, "label": label}


def _upright(response: DoseResponse, value: Value, colour: str, dash: str, shaded: bool) -> list[dict[str, Any]]:
    upright = {"yref": "paper", "y0": 0, "y1": 1, "layer": "below"}
    shapes = []
    if shaded and (interval := response.visible_interval(value)):
        area = {"type": "rect", "x0": interval[0], "x1": interval[1], "fillcolor": colour, "opacity": 0.12}
        shapes.append(upright | area | {"line": {"width": 0}})
    line = {"color": colour, "width": 2, "dash": dash}
    return [*shapes, upright | {"type": "line", "x0": value[0], "x1": value[0], "line": line}]


def _label(text: str, colour: str, height: float) -> dict[str, Any]:
    # At the left edge: next to its line, a label would overlap those of other doses or leave the plot.
    position = {"xref": "paper", "x": 0, "xanchor": "left", "yref": "paper", "y": height, "yanchor": "bottom"}
    return position | {"text": text, "showarrow": False, "font": {"size": 11, "color": colour}}
