"""Tables of the report: the points, and the dose–response results along each axis."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sweep.report.dose_response import DoseResponse, SideFindings, Value, is_true
from sweep.report.marks import OPEN, SAME
from sweep.report.matrix import by_strength
from sweep.report.measures import main_measures, measures, title
from sweep.report.paired_differences import EQUIVALENT, UNDECIDED
from sweep.report.results import SweepResults
from sweep.scoring.registry import spec

NONE = "–"
NOT_ANALYSED = SideFindings("", *[(math.nan, math.nan, math.nan)] * 3)


@dataclass(frozen=True, slots=True)
class Column:
    """A measure. `main` columns are visible initially, the others on request."""

    measure: str
    title: str
    main: bool


@dataclass(frozen=True, slots=True)
class Cell:
    """A mean, its interval, marks, and a tooltip.

    The marks are "▲" or "▼" if it differs significantly from the reference's, and the verdict on equivalence.
    """

    mean: str
    interval: str = ""
    mark: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of points, or one side of a measure's response along an axis; `single`: a point of the pooled row above."""

    name: str
    role: str
    error: str
    cells: list[Cell]
    single: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows with one cell per column."""

    columns: list[Column]
    rows: list[Row]


def points_table(results: SweepResults) -> Table:
    """Return the means of all rows, in the order of strength; after a pooled row, its points."""
    table = results.rows if len(results.rows) else results.points
    points = {int(record["point"]): record for record in results.points.to_dict("records")}
    names = measures(results.points.columns)
    chosen = main_measures(names, first=results.first)
    columns = [Column(name, title(name), name in chosen) for name in sorted(names, key=_first(chosen))]
    records = table.to_dict("records")
    rows = []
    for record in (records[position] for position in by_strength(table)):
        rows.append(_row(record, columns, results.reference))
        members = [int(member) for member in str(record.get("points", "")).split()]
        if len(members) > 1:
            rows += [_row(points[member], columns, results.reference, single=True) for member in members]
    return Table(columns, rows)


def _row(record: dict[Any, Any], columns: list[Column], reference: str, single: bool = False) -> Row:
    error = "" if pd.isna(record.get("error")) else str(record["error"])
    cells = [_cell(record, column.measure, reference) for column in columns]
    return Row(str(record["name"]), str(record["role"]), error, cells, single)


def findings(doses: list[DoseResponse], axis: str, reference: str = "control") -> Table:
    """Return the dose–response results along an axis, one row per measure, series and side of the neutral dose."""
    lines = [(dose.measure, line) for dose in doses if dose.axis == axis for line in dose.lines]
    several = any(line.label for _, line in lines)
    titles = (
        "doses",
        "Spearman’s ρ",
        "first effective",
        "breaking point",
        "noise floor" if reference == "control" else "baseline’s divergence",
    )
    rows = []
    for measure, line in lines:
        for side in line.sides or [NOT_ANALYSED]:
            cells = [_value(v) for v in (side.rho, side.first_effective, side.breaking_point)]
            cells.append(Cell(_number(line.floor)))
            # An analysed series without an effect keeps its row: that is a result too.
            if any(cell != Cell(NONE) for cell in cells) or (several and line.sides):
                before = [Cell(line.label)] if several else []
                doses_cell = Cell(_side(side.side, line.neutral))
                rows.append(Row(title(measure), measure, "", [*before, doses_cell, *cells]))
    return Table([Column(name, name, True) for name in (("series",) if several else ()) + titles], rows)


def _side(side: str, neutral: float) -> str:
    return f"{side} {_number(neutral)}" if side in ("above", "below") else side


def _first(chosen: list[str]) -> Any:
    return lambda name: chosen.index(name) if name in chosen else len(chosen)


def _cell(record: dict[Any, Any], name: str, reference: str) -> Cell:
    def number(suffix: str) -> float:
        value = record.get(f"{name}{suffix}", math.nan)
        return math.nan if pd.isna(value) else float(value)

    difference = number("/difference")
    hints = [f"n = {number('/n'):.0f}"] if number("/n") == number("/n") else []
    if not math.isnan(difference):
        low, high = number("/difference/ci_low"), number("/difference/ci_high")
        hints.append(f"difference from the {reference} {difference:+.3g}" + _interval(low, high))
        hints += [f"{letter} = {number(f'/{letter}'):.2g}" for letter in "pq" if number(f"/{letter}") >= 0]
    if not math.isnan(number("/detectable")):
        hints.append(f"the prompts could show a difference of {_number(number('/detectable'))}")
    mark = ("▼" if difference < 0 else "▲") if is_true(record.get(f"{name}/significant", False)) else ""
    verdict = record.get(f"{name}/equivalence")
    if isinstance(verdict, str) and verdict:
        inner = _interval(number("/equivalence/ci_low"), number("/equivalence/ci_high"))
        hints.append(f"{verdict} (±{number('/equivalence/margin'):g}):{inner}")
        mark += {EQUIVALENT: SAME, UNDECIDED: OPEN}.get(verdict, "")
    interval = _interval(number("/ci_low"), number("/ci_high")) if spec(name).group.tested else ""
    if not math.isnan(number("/seed_sd")):
        hints.append(f"standard deviation between the seeds’ means {number('/seed_sd'):.2g}")
        interval += f" ±{number('/seed_sd'):.2g}" if interval else ""
    if spec(name).quantiles and number("/quantile_50") == number("/quantile_50"):
        shares = [(share, number(f"/quantile_{share * 100:g}")) for share in spec(name).quantiles]
        interval += "; " + ", ".join(f"{share:.0%}: {_number(value)}".replace("%", " %") for share, value in shares)
    if number("/gained") >= 0:
        interval += f" +{number('/gained'):.0f}/−{number('/lost'):.0f}"
    return Cell(_number(number("")), interval, mark, ", ".join(hints))


def _value(value: Value) -> Cell:
    middle, low, high = value
    return Cell(_number(middle), _interval(low, high))


def _number(value: float) -> str:
    return NONE if math.isnan(value) else f"{value:.3g}".replace("inf", "∞")


def _interval(low: float, high: float) -> str:
    return "" if math.isnan(low) or math.isnan(high) else f" [{_number(low)}, {_number(high)}]"
