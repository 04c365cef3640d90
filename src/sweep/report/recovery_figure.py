"""Figure "recovery against utility": one curve per attack, for the report and as PNG."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.report.dose_response import SHARES
from sweep.report.figures import PALETTE, plotly_text
from sweep.report.measures import title
from sweep.report.recovery import RecoveryPoint, RecoveryResults, Value, is_share
from sweep.util.atomic import replace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE = "recovery"  # name of the figure in the report, and of its file
X_TITLE = "share of tokens recovered"
DPI = 200
MARKERS = "osD"
Error = tuple[float, float]


def plotly_figure(recovered: RecoveryResults) -> dict[str, Any]:
    """Return the figure as a dictionary: `axis`, `measure`, and Plotly's `data` and `layout`."""
    symbols = ("circle", "square", "diamond")
    # Smaller one after the other, so that attacks that recover the same share stay visible.
    data = [
        _trace(recovered, attack, PALETTE[number], symbols[number], 13 - 3 * number)
        for number, attack in enumerate(recovered.attacks)
    ]
    layout = {
        "title": {"text": "Recovery against utility"},
        "xaxis": {"title": {"text": X_TITLE}, "type": "linear", "range": SHARES},
        "yaxis": {"title": {"text": plotly_text(title(recovered.utility))}}
        | ({"range": SHARES} if is_share(recovered.utility) else {}),
        "shapes": [],
        "annotations": [],
        "showlegend": len(data) > 1,
    }
    return {"axis": FIGURE, "measure": FIGURE, "data": data, "layout": layout}


def _trace(recovered: RecoveryResults, attack: str, colour: str, symbol: str, size: int) -> dict[str, Any]:
    points = [point for point in recovered.points if _is_drawn(point, attack)]
    shares, utilities = [point.recovered[attack] for point in points], [point.utility for point in points]
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers",
        "name": attack,
        "x": [share[0] for share in shares],
        "y": [utility[0] for utility in utilities],
        "marker": {
            "size": size,
            "color": colour,
            "symbol": [symbol + "-open" * (point.role == "control") for point in points],
        },
        "text": [plotly_text(f"{point.name}: {point.recovered[attack][0]:.3g} recovered") for point in points],
        "hovertemplate": "%{text}, %{y:.3g}<extra></extra>",
    }
    for key, values in (("error_x", shares), ("error_y", utilities)):
        below, above = _errors(values)
        trace[key] = {
            "type": "data",
            "symmetric": False,
            "array": above,
            "arrayminus": below,
            "color": colour,
            "thickness": 1,
            "width": 0,
        }
    return trace


def write_png(recovered: RecoveryResults, folder: Path, confidence: float) -> Path:
    """Write `recovery.png` into a folder, which is created, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    figure = draw(recovered, confidence)
    return replace(folder / f"{FIGURE}.png", lambda path: figure.savefig(path, dpi=DPI))


def draw(recovered: RecoveryResults, confidence: float) -> Figure:
    """Return the figure for papers; markers of controls are open, bars are confidence intervals."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 3.6), layout="constrained")
    FigureCanvasAgg(figure)  # not pyplot: it keeps figures in memory and is not thread-safe
    axes = figure.subplots()
    for number, attack in enumerate(recovered.attacks):
        label = attack
        for is_control in (False, True):
            points = [p for p in recovered.points if _is_drawn(p, attack) and (p.role == "control") == is_control]
            if not points:
                continue
            shares, utilities = [point.recovered[attack] for point in points], [point.utility for point in points]
            axes.errorbar(
                [share[0] for share in shares],
                [utility[0] for utility in utilities],
                xerr=_errors(shares),
                yerr=_errors(utilities),
                fmt=MARKERS[number],
                color=PALETTE[number],
                markerfacecolor="white" if is_control else PALETTE[number],
                linewidth=1,
                markersize=9 - 2 * number,
                label=f"{label}, control" if is_control else label,
            )
    axes.set_xlim(*SHARES)
    if is_share(recovered.utility):
        axes.set_ylim(*SHARES)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, alpha=0.25, linewidth=0.6)
    axes.set_xlabel(f"{X_TITLE} [{confidence:.0%}]")
    axes.set_ylabel(f"{title(recovered.utility)} [{confidence:.0%}]".replace("$", r"\$"))
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def _is_drawn(point: RecoveryPoint, attack: str) -> bool:
    return attack in point.recovered and math.isfinite(point.utility[0])


def _errors(values: list[Value]) -> tuple[list[float], list[float]]:
    """Return the lengths of the bars below and above each mean; 0 without an interval."""
    below = [max(mean - low, 0.0) if math.isfinite(low) else 0.0 for mean, low, _ in values]
    above = [max(high - mean, 0.0) if math.isfinite(high) else 0.0 for mean, _, high in values]
    return below, above
