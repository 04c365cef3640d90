"""What is plotted along an axis."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest
from synthetic import make

from sweep.report.dose_response import responses
from sweep.report.figures import figure
from sweep.report.measures import measures
from sweep.report.overview import findings
from sweep.report.results import SweepResults


def test_lines_follow_the_doses_and_carry_intervals() -> None:
    results = make(factors=4)
    found = {(r.axis, r.measure): r for r in responses(results)}
    assert {axis for axis, _ in found} == {"transform.factor"}
    [line] = found["transform.factor", "quality/exact_match"].lines
    assert (line.label, line.doses) == ("", [1.2, 1.4, 1.6, 1.8])
    point = results.points[results.points["name"] == "factor=1.6"].iloc[0]
    ends = [point[f"quality/exact_match{end}"] for end in ("", "/ci_low", "/ci_high")]
    assert list(line.means[2]) == ends and line.markers[2].name == point["name"]
    assert line.markers[2].significant == bool(point["quality/exact_match/significant"])
    assert line.control == 1 and math.isnan(line.floor)
    [found_above] = line.sides
    assert (line.neutral, found_above.side) == (1, "above")
    assert found_above.breaking_point == (pytest.approx(1.6), pytest.approx(1.4), pytest.approx(1.8))


def test_noise_floor_band_includes_no_difference() -> None:
    found = {r.measure: r for r in responses(make())}
    assert found["divergence/token_agreement"].floor_bands == [(None, (0.98, 1))]
    assert found["divergence/edit_distance"].floor_bands == [(None, (0, 0.02))]
    [(_, (low, _))] = found["divergence/first_divergence"].floor_bands
    assert low == pytest.approx(39.2)  # the control's own, no response
    assert found["quality/contains"].floor_bands == []
    assert found["quality/contains"].controls == [(None, 1.0, "control")]
    assert found["divergence/edit_distance"].controls == []


def test_text_axes_have_no_doses() -> None:
    columns = {
        "point": range(4),
        "role": ["control", "point", "point", "point"],
        "axis/a": [math.nan, 1, 2, "auto"],
        "axis/b": [math.nan, "x", "y", "z"],
        "axis/c": [None, 3, 1, 2],
        "axis/d": [1.0, 2.0, 2.0, 2.0],
        "axis/seed": [None, 0, 1, 2],
    }
    axes = [series.axis for series in SweepResults("", "", "", 0.95, pd.DataFrame(columns), pd.DataFrame()).series]
    assert axes == ["c"] * 3  # each point has another `a`


def test_statistics_columns_are_not_measures() -> None:
    columns = [
        "point",
        "axis/x",
        "cost/tokens",
        "quality/f1",
        "quality/f1/ci_low",
        "quality/f1/difference/ci_high",
        "quality/n",
        "perturbation/start/cosine",
        "perturbation/start/cosine/n",
    ]
    assert measures(columns) == ["quality/f1", "quality/n", "perturbation/start/cosine", "cost/tokens"]


def test_wide_dose_ranges_use_a_logarithmic_axis() -> None:
    results = make(factors=3)
    spread = {1.2: 0.01, 1.4: 0.1, 1.6: 1.0}
    points = results.points.assign(**{"axis/transform.factor": results.points["axis/transform.factor"].map(spread)})
    answered = results.responses.assign(first_effective=0.1)
    moved = SweepResults("id", "", "", 0.95, points, results.generations, answered)
    layout = figure(next(r for r in responses(moved) if r.measure == "divergence/edit_distance"))["layout"]
    assert layout["xaxis"]["type"] == "log"
    assert [tick for tick in layout["xaxis"]["ticktext"] if 0.01 <= float(tick) <= 1] == [
        "0.01",
        "0.02",
        "0.05",
        "0.1",
        "0.2",
        "0.5",
        "1",
    ]
    # Plotly wants shapes in the axis' units, not in their logarithm.
    assert [s["x0"] for s in layout["shapes"] if s["type"] == "line"] == [0.1]
    # Those below the neutral dose have less room than those above.
    sides = make(below=True)  # 0.25 to 2
    assert [r.logarithmic for r in responses(sides)] == [False] * 8
    wide = sides.points.assign(**{"axis/transform.factor": sides.points["axis/transform.factor"].replace(2.0, 5.0)})
    assert [r.logarithmic for r in responses(replace(sides, points=wide))] == [True] * 8


def test_figures_have_intervals_floor_and_doses() -> None:
    drawn = {f["measure"]: f for f in map(figure, responses(make(factors=5)))}
    quality, agreement = drawn["quality/exact_match"], drawn["divergence/token_agreement"]
    trace = quality["data"][0]
    assert all(up > 0 for up in trace["error_y"]["array"]) and trace["x"] == [1.2, 1.4, 1.6, 1.8, 2.0]
    texts = [note["text"] for note in quality["layout"]["annotations"]]
    assert texts == ["first effective 1.4 ↑", "breaks at 1.7 ↑"]
    bands = [s for s in agreement["layout"]["shapes"] if s.get("label", {}).get("text") == "noise floor"]
    assert [(band["y0"], band["y1"]) for band in bands] == [(0.98, 1)]
    assert [s["y0"] for s in quality["layout"]["shapes"] if s.get("label", {}).get("text") == "control"] == [1]


def test_both_sides_of_the_neutral_dose_are_drawn_and_reported() -> None:
    results = make(below=True)
    doses = responses(results)
    drawn = {f["measure"]: f["layout"] for f in map(figure, doses)}
    quality = drawn["quality/exact_match"]
    assert [note["text"] for note in quality["annotations"]] == [
        "first effective 0.5 ↓, 1.4 ↑",
        "breaks at 0.4 ↓, 1.7 ↑",
    ]
    lines = [s["x0"] for s in quality["shapes"] if s["type"] == "line" and s.get("yref") == "paper"]
    areas = [(s["x0"], s["x1"]) for s in quality["shapes"] if s["type"] == "rect"]
    assert lines == pytest.approx([0.5, 1.4, 0.4, 1.7])
    # Intervals are shaded as far as doses were tried.
    assert areas == [pytest.approx(area) for area in [(0.3, 0.7), (1.2, 1.6), (0.25, 0.6), (1.5, 1.9)]]
    assert [n["text"] for n in drawn["divergence/edit_distance"]["annotations"]] == ["first effective 1.4 ↑"]

    rows = [(row.role, *(cell.mean for cell in row.cells)) for row in findings(doses, "transform.factor").rows]
    assert rows[:2] == [
        ("quality/exact_match", "above 1", "-0.9", "1.4", "1.7", "–"),
        ("quality/exact_match", "below 1", "-0.9", "0.5", "0.4", "–"),
    ]
    # Of measures that no responses were looked for of, the floor may still be known.
    assert ("divergence/first_divergence", "", "–", "–", "–", "39.2") in rows
    assert "quality/contains" not in [row[0] for row in rows]
