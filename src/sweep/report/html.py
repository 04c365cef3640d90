"""HTML report: one self-contained file that works without a network.

Python computes everything that is shown; the browser only displays it. Texts of prompts and models reach the page in
two ways, which both keep them texts: escaped by Jinja, and as JSON that the script puts into text nodes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from sweep.console.streams import visible
from sweep.report.contrast_text import COLUMNS
from sweep.report.dose_response import responses
from sweep.report.figures import figure
from sweep.report.matrix import Matrix, by_strength
from sweep.report.measures import headline_groups, main_measures, short_key
from sweep.report.overview import Table, findings, points_table
from sweep.report.plane_figures import front_figure, heat_maps
from sweep.report.recovery import recovery_results
from sweep.report.recovery_figure import FIGURE, plotly_figure
from sweep.report.results import SweepResults
from sweep.report.turning_overview import turning_rows

FOLDER = Path(__file__).parent


def render(results: SweepResults) -> str:
    """Return the report as HTML.

    For sweeps with more than `matrix.LARGEST` generations it contains only the first prompts, and says so.

    Args:
        results: at least one point; points that failed may have no generations.
    """
    doses = responses(results)
    order = by_strength(results.points)
    matrix = Matrix.of(results, order)
    axes = [
        Axis(key, short_key(key), findings(doses, key, results.reference), turning_rows(results.turnings, key))
        for key in dict.fromkeys(dose.axis for dose in doses)
    ]
    front = front_figure(results)
    planes = [*heat_maps(results), *([front] if front is not None else [])]
    plotted = dict.fromkeys([*(dose.measure for dose in doses), *(plane["measure"] for plane in planes)])
    points = points_table(results)
    data: dict[str, Any] = matrix.payload() | {
        "figures": [*(figure(dose) for dose in doses), *planes],
        "main": main_measures(plotted, headline_groups(), results.first),
    }
    recovered = recovery_results(results, order)
    if recovered is not None:
        data["figures"].append(plotly_figure(recovered))
        data["main"].append(FIGURE)
    scripts = {"plotly": _plotly(), "program": (FOLDER / "report.js").read_text("utf-8")}
    template = _environment().get_template("report.html.jinja")
    return template.render(
        results=results,
        points=points,
        matrix=matrix,
        axes=axes,
        recovered=recovered,
        planes=list(dict.fromkeys(plane["axis"] for plane in planes)),
        contrasts={"columns": COLUMNS, "rows": results.contrast_table} if results.contrast_table else None,
        written=time.strftime("%Y-%m-%d %H:%M"),
        style=Markup((FOLDER / "report.css").read_text("utf-8")),
        scripts={name: Markup(text) for name, text in scripts.items()},
        policy=_policy(list(scripts.values())),
        data=as_script(data),
    )


@dataclass(frozen=True, slots=True)
class Axis:
    """A numeric axis: its key, its short name, and the tables of its results and of its best doses."""

    key: str
    name: str
    findings: Table
    turnings: Table


def as_script(value: Any) -> Markup:
    """Return JSON that cannot close the script element that contains it, whatever texts it has."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    text = text.encode("utf-8", "replace").decode()  # lone surrogates cannot be encoded
    return Markup(text.replace("<", "\\u003c"))


def _policy(scripts: list[str]) -> str:
    # Second line of defence: the browser refuses all requests and all other scripts, even if an escape is missing.
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:"


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs  # imported here: notebooks that only load results do not need it

    return str(get_plotlyjs())


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
