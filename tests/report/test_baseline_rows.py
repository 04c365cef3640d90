"""Baselines of rows: replicates are compared by means over seeds, or seed by seed if several rows are the baseline."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sweep.config.report_config import ReportConfig
from sweep.config.schema import SweepConfig
from sweep.planning.results import PointResult
from sweep.points.point import Point
from sweep.report.comparison import Comparison, compare
from sweep.report.contrast_text import baseline_notes
from sweep.report.marks import legend
from sweep.report.paired_differences import EQUIVALENT
from sweep.report.results import tables
from sweep.scoring.measures import summarise_scores
from sweep.scoring.statistics import paired_difference
from sweep.scoring.trend import page_trend

Configure = Callable[..., SweepConfig]
Values = Mapping[str, np.ndarray]
F1, EXACT, AGREEMENT = "quality/token_f1", "quality/exact_match", "divergence/token_agreement"
PROMPTS = 30


def result(index: int, point: Point, values: Values) -> PointResult:
    ids = [f"p{number}" for number in range(PROMPTS)]
    return PointResult(
        index, point, summarise_scores(values, 0.95), values, None if values else "died", ids if values else ()
    )


def noise(configure: Configure, sigma: float, seed: int, **axes: str) -> Point:
    config = configure(transform={"name": "noise", "sigma": sigma}, seed=seed)
    return Point(config, (("transform.sigma", sigma), *axes.items(), ("seed", float(seed))))


def seeded(configure: Configure, failed: int | None = None) -> list[PointResult]:
    """A control; points 1 to 3, 4 to 6 and 7 to 9 are sigma=0.5, 1 and 2, each with three seeds."""
    draw = np.random.default_rng(0)
    clean, hard = draw.uniform(0.4, 0.9, PROMPTS), draw.random(PROMPTS)
    values = {F1: clean, EXACT: (hard < 0.8).astype(float), AGREEMENT: np.ones(PROMPTS)}
    results = [result(0, Point(configure(), is_control=True), values)]
    for sigma in (0.5, 1.0, 2.0):
        for seed in range(3):
            values = {
                F1: clean - sigma / 5 + draw.normal(0, 0.1, PROMPTS),
                EXACT: (hard + draw.normal(0, 0.1, PROMPTS) < 0.8 - sigma / 4).astype(float),
                AGREEMENT: draw.uniform(0.9 - sigma / 5, 1, PROMPTS),
            }
            index = len(results)
            results.append(result(index, noise(configure, sigma, seed), {} if index == failed else values))
    return results


def against(results: list[PointResult], baseline: str | None, **options: Any) -> Comparison:
    return compare(results, 0.95, report=ReportConfig(baseline=baseline), **options)


def pooled(results: list[PointResult], measure: str, *points: int) -> np.ndarray:
    return np.mean([results[point].values[measure] for point in points], axis=0)


@pytest.mark.parametrize("text", ["transform.sigma=0.5", "sigma=0.5 seed=1", "2"])
def test_a_baseline_with_seeds_is_its_row(configure: Configure, text: str) -> None:
    results = seeded(configure)
    compared = against(results, text)
    assert (compared.baselines.single, compared.baselines.name) == (1, "sigma=0.5 (3 seeds)")
    assert compared.baselines.rows == {0: 1, 4: 1, 7: 1}
    base = pooled(results, F1, 1, 2, 3)
    table = np.stack([results[0].values[F1], pooled(results, F1, 4, 5, 6), pooled(results, F1, 7, 8, 9)])
    expected = paired_difference(table, base)
    found = [compared.row_differences[index][F1] for index in (0, 4, 7)]
    assert [d.mean for d in found] == pytest.approx(expected.mean.tolist())
    assert [(d.ci_low, d.ci_high) for d in found] == [
        pytest.approx(pair) for pair in zip(expected.ci_low, expected.ci_high, strict=True)
    ]
    changes = pooled(results, EXACT, 7, 8, 9) - pooled(results, EXACT, 1, 2, 3)
    exact = compared.row_differences[7][EXACT]
    assert (exact.gained, exact.lost) == ((changes > 1e-9).sum(), (changes < -1e-9).sum())
    assert exact.lost is not None and exact.lost > 0


def test_single_points_are_compared_with_the_point_of_their_seed(configure: Configure) -> None:
    results = seeded(configure)
    assert against(results, "transform.sigma=0.5").baselines.of == {4: 1, 5: 2, 6: 3, 7: 1, 8: 2, 9: 3}
    one = against(results, "sigma=0.5 seed=1")
    assert one.baselines.of == {index: 2 for index in (0, 1, 3, 4, 5, 6, 7, 8, 9)}
    assert one.differences[9][F1].mean == pytest.approx((results[9].values[F1] - results[2].values[F1]).mean())


def test_a_failed_seed_leaves_the_means_over_the_others(configure: Configure) -> None:
    results = seeded(configure, failed=2)
    compared = against(results, "transform.sigma=0.5")
    assert compared.baselines.name == "sigma=0.5 (2 of 3 seeds)"
    expected = pooled(results, F1, 4, 5, 6) - pooled(results, F1, 1, 3)
    assert compared.row_differences[4][F1].mean == pytest.approx(expected.mean())


def test_the_control_as_baseline_changes_nothing(configure: Configure) -> None:
    results = seeded(configure)
    plain, same = against(results, None), against(results, "control")
    assert plain.baselines == same.baselines and plain.baselines.word == "control"
    assert str(plain.row_differences) == str(same.row_differences)  # as text, in which NaN equals NaN
    assert str(plain.differences) == str(same.differences)
    assert str(plain.series) == str(same.series)


def test_pooled_controls_are_one_control(configure: Configure) -> None:
    """`sampling.seed` gives each seed its own control. Naming one of them means their row, which is the control."""
    results, values = [], np.linspace(0, 1, PROMPTS)
    for seed in range(3):
        for factor in (None, 1.5):
            config = configure(
                transform={"name": "identity"} if factor is None else {"name": "scale", "factor": factor},
                sampling={"seed": seed, "temperature": 1.0},
            )
            swept = () if factor is None else (("transform.factor", factor), ("sampling.seed", float(seed)))
            point = Point(config, swept, is_control=factor is None)
            results.append(result(len(results), point, {F1: values + 0.1 * seed - (factor or 0)}))
    plain, one = against(results, None), against(results, "2")
    assert [row.name for row in plain.rows][1:] == ["factor=1.5 (3 seeds)"]
    assert str(one.row_differences) == str(plain.row_differences) and one.baselines == plain.baselines


def test_several_rows_as_baseline_are_paired_by_seed(configure: Configure) -> None:
    """Two kinds at two strengths, with two seeds. Of kind A at sigma=1, the second seed failed."""
    draw, results = np.random.default_rng(1), []
    results.append(result(0, Point(configure(), is_control=True), {F1: draw.random(PROMPTS)}))
    for kind in "AB":
        for sigma in (1.0, 2.0):
            for seed in range(2):
                point = noise(configure, sigma, seed, **{"transform.kind": kind})
                values = {F1: draw.random(PROMPTS)} if len(results) != 2 else {}
                results.append(result(len(results), point, values))
    compared = against(results, "transform.kind=A")
    assert compared.baselines.single is None and compared.baselines.rows == {5: 1, 7: 3}
    assert compared.baselines.of == {5: 1, 7: 3, 8: 4}
    paired = results[5].values[F1] - results[1].values[F1]  # the seed that both have
    assert compared.row_differences[5][F1].mean == pytest.approx(paired.mean())
    both = pooled(results, F1, 7, 8) - pooled(results, F1, 3, 4)
    assert compared.row_differences[7][F1].mean == pytest.approx(both.mean())
    assert "First effective doses and breaking points are against the control" in list(baseline_notes(compared))
    plain = against(results, None)
    assert str(plain.series) == str(compared.series)


def test_equivalence_is_with_the_baseline(configure: Configure) -> None:
    results = seeded(configure)
    plain = against(results, None, margin=lambda measure: 0.15)
    compared = against(results, "transform.sigma=0.5", margin=lambda measure: 0.15)
    # 0.1 from each other, 0.2 from the control
    assert plain.row_differences[4][F1].verdict != EQUIVALENT
    assert compared.row_differences[4][F1].verdict == EQUIVALENT
    assert any("difference from the baseline lies within ±0.15" in line for line in legend(compared))
    table = tables(compared, pd.DataFrame(), sweep_id="", name="", command="", confidence=0.95)
    assert table.reference == "baseline"
    assert table.rows["baseline"].tolist()[2:] == [1, 1] and math.isnan(table.rows["baseline"][1])
    assert table.rows["control"].tolist()[1:] == [0, 0, 0]
    assert table.rows[f"{F1}/equivalence"][2] == EQUIVALENT


def test_turning_responses_and_the_front_are_those_of_rows(configure: Configure) -> None:
    results = seeded(configure)
    compared = compare(results, 0.95, report=ReportConfig(effect=AGREEMENT))
    [turning] = [one for one in compared.turnings if one.measure == F1]
    assert (turning.doses, turning.prompts) == (4, PROMPTS)
    table = np.stack([results[0].values[F1], *(pooled(results, F1, i, i + 1, i + 2) for i in (1, 4, 7))])
    assert turning.trend == pytest.approx(page_trend(table).statistic)
    assert turning.best is not None and turning.best.dose == 0
    assert compared.front is not None and [point.point for point in compared.front.points] == [0, 1, 4, 7]
