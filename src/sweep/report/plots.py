"""Dose–response plots as PNG, for papers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sweep.disk.atomic import replace
from sweep.report.doses import SHARES, Line, Response, responses, spoken
from sweep.report.figures import BREAKING, EFFECTIVE, GREY, LEGIBLE, PALETTE
from sweep.report.measures import GROUPS, main, short, title
from sweep.report.results import SweepResults

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PLOTTED = ("quality", "divergence")
DPI = 200
PANEL = (4.2, 3.2)  # inches
MARKERS = "osD^"


def write(results: SweepResults, folder: Path) -> list[Path]:
    """Write `<group>_<axis>.png` for each numeric axis and for quality and divergence, and return the files.

    Each has a panel for each main measure of the group: means with intervals, filled where they differ significantly
    from the control; the control dotted; the noise floor as a band; the first effective dose and the breaking point
    dashed, on each side of the neutral dose, with their intervals.  200 dpi, in colours that colour-blind people can
    tell apart.
    """
    doses = responses(results)
    written = []
    for axis in dict.fromkeys(dose.axis for dose in doses):
        own = {dose.measure: dose for dose in doses if dose.axis == axis}
        for group in (group for group in GROUPS if group in PLOTTED):
            panels = [own[measure] for measure in main(own, [group])]
            if panels:
                folder.mkdir(parents=True, exist_ok=True)
                figure = draw(panels, results.confidence)
                path = folder / f"{group}_{re.sub(r'[^A-Za-z0-9._-]+', '_', axis)}.png"
                written.append(replace(path, lambda path, figure=figure: figure.savefig(path, dpi=DPI)))  # type: ignore[misc]
    return written


def draw(panels: Sequence[Response], confidence: float) -> Figure:
    """Return a figure with a panel for each measure, side by side, all of them along the same axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(PANEL[0] * len(panels), PANEL[1]), layout="constrained")
    FigureCanvasAgg(figure)  # not pyplot, which keeps figures and belongs to one thread
    for axes, response in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _panel(axes, response)
        axes.set_xlabel(_plain(short(response.axis)))
        axes.set_ylabel(f"{_plain(title(response.measure))}\nmean [{confidence:.0%}]")
    handles = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if len(handles) <= LEGIBLE:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    return figure


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # else it begins a formula


def _panel(axes: Axes, response: Response) -> None:
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
    low, high = response.floor_band
    if not math.isnan(low):
        axes.axhspan(low, high, color=GREY, alpha=0.25, linewidth=0, label="noise floor")
        axes.axhline(response.floor, color=GREY, linewidth=0.8)
    if not math.isnan(response.control):
        axes.axhline(response.control, color=GREY, linestyle=":", label="control")
    for doses, label, colour, style, height in (
        (response.effective, "first effective", EFFECTIVE, "--", 1.02),
        (response.breaking, "breaking point", BREAKING, "-.", 1.1),
    ):
        for value, _ in doses:
            axes.axvline(value[0], color=colour, linestyle=style, linewidth=1.4, label=label)
            if reach := response.reach(value):
                axes.axvspan(*reach, color=colour, alpha=0.12, linewidth=0)
        if doses:
            text = f"{label} {spoken(doses)}"
            axes.text(0, height, text, color=colour, fontsize=8, va="bottom", transform=axes.transAxes)


def _line(axes: Axes, line: Line, number: int) -> None:
    colour = PALETTE[number % len(PALETTE)]
    marker = MARKERS[number % len(MARKERS)]
    mean, low, high = np.array(line.means).T
    reach = np.nan_to_num(np.clip([mean - low, high - mean], 0, None))
    axes.errorbar(
        line.doses,
        mean,
        reach,
        color=colour,
        linewidth=1.6,
        elinewidth=1.2,
        capsize=2.5,
        label=_plain(line.label or "mean"),
    )
    filled = np.array(line.significant, bool)
    for which, face in ((filled, colour), (~filled, "white")):
        doses = np.array(line.doses)[which]
        axes.plot(doses, mean[which], marker, color=colour, markerfacecolor=face, markersize=5.5, zorder=3)
