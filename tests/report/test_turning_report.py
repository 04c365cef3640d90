"""Turning responses in the comparison, the tables and the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
import pytest
from compared_points import result

from sweep.config.report_config import ReportConfig
from sweep.config.schema import SweepConfig
from sweep.planning.results import PointResult
from sweep.points.point import Point
from sweep.report.comparison import compare
from sweep.report.html import render
from sweep.report.plane_figures import FRONT, heat_maps
from sweep.report.results import tables
from sweep.report.run_summary import describe
from sweep.report.turning_text import shape_words, turning_findings

Configure = Callable[..., SweepConfig]
EXACT, EDIT, KL = "quality/exact_match", "divergence/edit_distance", "divergence/first_token_kl"
SHARES = {None: 38, 0.25: 4, 0.5: 30, 1.5: 39, 2.0: 24, 4.0: 2}


def values(right: int, edit: float) -> dict[str, list[float]]:
    """Forty prompts, of which so many are right; the edit distance and the KL of each."""
    kl = [edit * (1 + prompt) for prompt in range(40)]
    return {EXACT: [float(prompt < right) for prompt in range(40)], EDIT: [edit] * 40, KL: kl}


def scaled(configure: Configure, shares: Mapping[float | None, int] = SHARES) -> list[PointResult]:
    results = []
    for index, (factor, right) in enumerate(shares.items()):
        transform = {"name": "identity"} if factor is None else {"name": "scale", "factor": factor}
        axes = () if factor is None else (("transform.factor", factor),)
        edit = 0.0 if factor is None else abs(math.log2(factor)) / 4
        point = Point(configure(transform=transform), axes, is_control=factor is None)
        results.append(result(index, point, values(right, edit)))
    return results


def test_best_dose_shape_and_trend(configure: Configure) -> None:
    compared = compare(scaled(configure), 0.95)
    [turning] = [one for one in compared.turnings if one.measure == EXACT]
    assert turning.best is not None and (turning.best.dose, turning.best.mean) == (1.5, 39 / 40)
    assert (turning.best.within_low, turning.best.within_high) == (1.0, 1.5)  # the control is the dose 1
    assert turning.doses == 6 and turning.turns and turning.shape == "rises, then falls"
    assert turning.trend_p_below < 1e-6 and turning.trend_p_above < 1e-6 and turning.trend_p > 0.001
    assert all(one.best is None for one in compared.turnings if one.measure != EXACT)  # a divergence has none
    [line, front] = turning_findings(compared, [EXACT])
    assert line.startswith(f"{EXACT}: the best factor is 1.5 [") and "at most 0.05 worse at 1 to 1.5" in line
    assert "rises, then falls (monotone: p = 0.001, trend: p = " in line
    assert line in [text.replace("\\", "").replace("`", "") for text in describe(compared, "", {}).split("\n- ")]
    assert front.startswith(f"Pareto front of {EDIT} (effect) and {EXACT}: ")


@pytest.mark.parametrize(
    ("shape", "monotone_p", "trend_p", "words"),
    [
        ("rises, then falls", 0.01, 0.4, "rises, then falls"),
        ("rises", 0.6, 0.01, "rises, no turn found"),
        ("rises", 0.6, 0.4, "neither a turn nor a trend found"),
        ("flat", 1.0, 1.0, "flat"),
        ("falls", math.nan, 0.01, "falls"),
        ("falls", math.nan, 0.5, "no trend found"),
    ],
)
def test_shapes_are_named_as_far_as_the_tests_show_them(
    shape: str, monotone_p: float, trend_p: float, words: str
) -> None:
    assert shape_words(shape, monotone_p, trend_p) == words


def test_an_unchanged_response_is_flat(configure: Configure) -> None:
    compared = compare(scaled(configure, {factor: 20 for factor in SHARES}), 0.95)
    [line, _] = turning_findings(compared, [EXACT])
    assert line == f"{EXACT}: flat: the same mean at every factor"


def test_tolerance_is_a_share_of_the_range(configure: Configure) -> None:
    [turning] = [
        one
        for one in compare(scaled(configure), 0.95, (), report=ReportConfig(tolerance=0.4)).turnings
        if one.measure == EXACT
    ]
    assert turning.best is not None and (turning.best.within_low, turning.best.within_high) == (0.5, 2.0)


def test_front_of_effect_and_quality(configure: Configure) -> None:
    """More change and more right answers are better: 1.5 beats the control, and 0.25 beats 0.25's equal, 4."""
    front = compare(scaled(configure), 0.95).front
    assert front is not None and (front.effect, front.quality) == (EDIT, EXACT)
    by_point = {point.point: point for point in front.points}
    assert [index for index, point in by_point.items() if point.on_front] == [1, 2, 3]
    assert by_point[1].effect == 0.5 and by_point[1].quality == 0.1 and by_point[1].share > 0.8
    assert by_point[3].share == 1 and by_point[0].share == 0 and by_point[5].share < 0.5
    chosen = compare(scaled(configure), 0.95, (), report=ReportConfig(effect=EXACT)).front
    assert chosen is None  # effect and quality are one measure


def test_front_with_a_divergence_as_quality(configure: Configure) -> None:
    """Without references, quality is the agreement with the control: the wrecked point is not the best one."""
    agreement = "divergence/token_agreement"
    shares = ((None, 0.0, 1.0), (0.5, 0.2, 0.9), (4.0, 0.9, 0.1), (5.0, 0.8, 0.05))
    results = []
    for index, (factor, edit, agree) in enumerate(shares):
        transform = {"name": "identity"} if factor is None else {"name": "scale", "factor": factor}
        axes = () if factor is None else (("transform.factor", factor),)
        point = Point(configure(transform=transform), axes, is_control=factor is None)
        results.append(result(index, point, {EDIT: [edit] * 40, agreement: [agree] * 40}))
    front = compare(results, 0.95).front
    assert front is not None and (front.effect, front.quality) == (EDIT, agreement)
    assert [(point.effect, point.quality, point.on_front) for point in front.points] == [
        (0.0, 1.0, True), (0.2, 0.9, True), (0.9, 0.1, True), (0.8, 0.05, False),
    ]  # fmt: skip


def test_few_doses_have_no_turning(configure: Configure) -> None:
    compared = compare(scaled(configure, {None: 40, 2.0: 20}), 0.95)
    assert compared.turnings == []


def test_tables_and_report(configure: Configure) -> None:
    compared = compare(scaled(configure), 0.95, [EXACT])
    frame = pd.DataFrame(
        {"point": [0], "prompt_id": ["q"], "prompt": ["?"], "sample": [0], "generation": ["g"], "reference": [""]}
        | {"role": ["control"], "finish_reason": ["stop"], EXACT: [1.0]}
    )
    results = tables(compared, frame, sweep_id="", name="", command="", confidence=0.95)
    row = results.turnings.set_index("measure").loc[EXACT]
    assert (row["best"], row["within_low"], row["shape"], row["prompts"]) == (1.5, 1.0, "rises, then falls", 40)
    assert results.front["on_front"].tolist() == [False, True, True, True, False, False]
    kl = results.points.set_index("name").loc["factor=4"]
    expected = np.quantile(np.array(values(0, 0.5)[KL]), [0.5, 0.9, 0.99])
    assert [kl[f"{KL}/quantile_{share}"] for share in (50, 90, 99)] == pytest.approx(expected.tolist())
    page = render(results)
    assert "best dose" in page and f'data-axis="{FRONT}"' in page and '"name":"Pareto front"' in page
    assert "90 %:" in page  # quantiles of KL


def test_heat_map_of_two_numeric_axes(configure: Configure) -> None:
    results = [result(0, Point(configure(), is_control=True), values(40, 0.0))]
    for first in (0.5, 2.0, 4.0):
        for second in (1.0, 3.0):
            transform = [{"name": "scale", "factor": first}, {"name": "noise", "sigma": second}]
            axes = (("transform.0.factor", first), ("transform.1.sigma", second))
            point = Point(configure(transform=transform), axes)
            results.append(result(len(results), point, values(int(10 * first * second) % 40, 0.1)))
    tabled = tables(compare(results, 0.95), pd.DataFrame(), sweep_id="", name="", command="", confidence=0.95)
    maps = {one["measure"]: one for one in heat_maps(tabled)}
    trace = maps[EXACT]["data"][0]
    assert maps[EXACT]["axis"] == "transform.0.factor × transform.1.sigma"
    assert (trace["x"], trace["y"]) == (["0.5", "2", "4"], ["1", "3"])
    assert trace["z"] == [pytest.approx([5 / 40, 20 / 40, 0]), pytest.approx([15 / 40, 20 / 40, 0])]
    alone = tables(compare(scaled(configure), 0.95), pd.DataFrame(), sweep_id="", name="", command="", confidence=0.95)
    assert list(heat_maps(alone)) == []
