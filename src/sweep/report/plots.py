"""Dose–response plots as PNG, for papers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sweep.console.text import one_line
from sweep.report.dose_response import SHARES, DoseResponse, Line, Value, format_doses, responses
from sweep.report.figures import BREAKING, EFFECTIVE, GREY, LEGIBLE, PALETTE, colour_of
from sweep.report.measures import headline_groups, main_measures, title
from sweep.report.results import SweepResults
from sweep.scoring.registry import spec
from sweep.util.atomic import replace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 200
WIDTH = 60  # characters of a legend line per panel
PANEL = (4.2, 3.2)  # inches
MARKERS, LINES = "osD^", ("-", ":", "--", (0, (8, 2)))


def write(results: SweepResults, folder: Path) -> list[Path]:
    """Write `<group>_<axis>.png` for each numeric axis and for quality and divergence, and return the files.

    Each plot has one panel per main measure of the group. A panel shows:

    - means with intervals; markers are filled where the difference from the control is significant;
    - the control as a dotted line, and the noise floor as a band;
    - the first effective dose and the breaking point as dashed lines with their intervals, on each side of the neutral
      dose.

    Plots have 200 dpi and colours that colour-blind readers can tell apart.
    """
    doses = responses(results)
    written = []
    for axis in dict.fromkeys(dose.axis for dose in doses):
        by_measure = {dose.measure: dose for dose in doses if dose.axis == axis}
        for group in headline_groups():
            panels = [by_measure[measure] for measure in main_measures(by_measure, [group], results.first)]
            if panels:
                folder.mkdir(parents=True, exist_ok=True)
                figure = draw(panels, results.confidence)
                path = folder / f"{group}_{re.sub(r'[^A-Za-z0-9._-]+', '_', axis)}.png"
                written.append(replace(path, lambda path, figure=figure: figure.savefig(path, dpi=DPI)))  # type: ignore[misc]
    return written


def draw(panels: Sequence[DoseResponse], confidence: float) -> Figure:
    """Return a figure with one panel per measure, side by side, all along the same axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PANEL[0] * len(panels), PANEL[1]), layout="constrained")
    FigureCanvasAgg(figure)  # not pyplot: it keeps figures in memory and is not thread-safe
    for axes, response in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _panel(axes, response)
        axes.set_xlabel(_plain(response.dose_title))
        axes.set_ylabel(f"{_plain(title(response.measure))}\nmean [{confidence:.0%}]")
    handles = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if len(panels[0].lines) <= LEGIBLE:
        columns = max(1, min(6, int(WIDTH * len(panels) / max(map(len, handles)))))
        position: Any = {"loc": "outside lower center", "ncols": columns, "frameon": False, "fontsize": 8}
        figure.legend(handles.values(), handles.keys(), **position)
    return figure


def _plain(text: str) -> str:
    # "$" starts a formula, and matplotlib leaves labels that begin with "_" out of the legend.
    text = one_line(text).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _panel(axes: Axes, response: DoseResponse) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    if response.logarithmic:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=response.digits))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    if response.share:
        axes.set_ylim(SHARES[0], SHARES[1])
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, alpha=0.25, linewidth=0.6)
    for number, line in enumerate(response.lines):
        _line(axes, line, number)
    for index, (low, high) in response.floor_bands:
        colour = GREY if index is None else colour_of(index)
        label = "noise floor" if index is None else f"noise floor: {response.lines[index].control_name}"
        axes.axhspan(low, high, color=colour, alpha=0.25, linewidth=0, label=_plain(label))
        axes.axhline(low if spec(response.measure).direction == "higher" else high, color=colour, linewidth=0.8)
    for index, mean, name in response.controls:
        axes.axhline(mean, color=GREY if index is None else colour_of(index), linestyle=":", label=_plain(name))
    alone = len(response.lines) == 1
    for number, line in enumerate(response.lines):
        for doses, label, colour, style, height in (
            (line.effective, "first effective", EFFECTIVE, "--", 1.02),
            (line.breaking, "breaking point", BREAKING, "-.", 1.1),
        ):
            _uprights(axes, response, doses, label, colour if alone else colour_of(number), style, alone)
            if doses and alone:
                text = f"{label} {format_doses(doses)}"
                axes.text(0, height, text, color=colour, fontsize=8, va="bottom", transform=axes.transAxes)


def _uprights(
    axes: Axes,
    response: DoseResponse,
    doses: Sequence[tuple[Value, str]],
    label: str,
    colour: str,
    style: str,
    shaded: bool,
) -> None:
    for value, _ in doses:
        axes.axvline(value[0], color=colour, linestyle=style, linewidth=1.4, label=label)
        if shaded and (interval := response.visible_interval(value)):
            axes.axvspan(*interval, color=colour, alpha=0.12, linewidth=0)


def _line(axes: Axes, line: Line, number: int) -> None:
    colour, style = colour_of(number), number // len(PALETTE) % len(MARKERS)
    mean, low, high = np.array(line.means).T
    errors = np.nan_to_num(np.clip([mean - low, high - mean], 0, None))
    axes.errorbar(
        line.doses,
        mean,
        errors,
        color=colour,
        linewidth=1.6,
        linestyle=LINES[style],
        elinewidth=1.2,
        capsize=2.5,
        label=_plain(line.label or "mean"),
    )
    if line.series.pooled:
        axes.fill_between(line.doses, low, high, color=colour, alpha=0.2, linewidth=0)
    size = 3.5 if line.series.pooled else 5.5  # smaller for single seeds, which are not the line's means
    for filled, face in ((True, colour), (False, "white")):
        markers = [marker for marker in line.markers if marker.significant == filled]
        doses, means = [marker.dose for marker in markers], [marker.mean[0] for marker in markers]
        axes.plot(doses, means, MARKERS[style], color=colour, markerfacecolor=face, markersize=size, zorder=3)
