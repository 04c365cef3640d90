"""Plot the cost of a sweep relative to bare `LLM.generate` against its number of points, from `bench_gpu.py`.

.venv/bin/python scripts/bench/plot_points.py docs/benchmarks/h200.json docs/benchmarks/points.svg
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

LINES = {"engine": "engine", "scored": "until scored", "published": "until published"}
mpl.rcParams["svg.hashsalt"] = "points"  # makes the file depend on the data only


def ratios_by_points(results: list[dict[str, Any]]) -> dict[int, dict[str, list[float]]]:
    """Return median, least and largest ratio for each number of points; later results replace earlier ones."""
    ratios: dict[int, dict[str, list[float]]] = {}
    for result in results:
        for name, values in result["figures"].get("figure 1", {}).items():
            if match := re.fullmatch(r"(\d+) points", name):
                ratios[int(match[1])] = {line: values["sweep"][f"{line} / bare"] for line in LINES}
    return dict(sorted(ratios.items()))


def main() -> None:
    """Read the results and write the plot."""
    source, target = map(Path, sys.argv[1:])
    ratios = ratios_by_points(json.loads(source.read_text("utf-8")))
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for index, (line, label) in enumerate(LINES.items()):
        counts = [points * 1.03 ** (index - 1) for points in ratios]  # shifted, so that error bars do not overlap
        medians = [values[line][0] for values in ratios.values()]
        below = [values[line][0] - values[line][1] for values in ratios.values()]
        above = [values[line][2] - values[line][0] for values in ratios.values()]
        axes.errorbar(counts, medians, [below, above], marker="o", markersize=4, capsize=3, linewidth=1, label=label)
    axes.axhline(1.0, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(ratios), list(map(str, ratios)))
    axes.minorticks_off()
    axes.set_xlabel("points (64 prompts × 32 tokens each)")
    axes.set_ylabel("sweep / bare LLM.generate")
    axes.legend(frameon=False)
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    main()
