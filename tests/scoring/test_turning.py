"""Best doses, monotone responses and Pareto fronts: hand-made cases, and simulations with a known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import isotonic_regression

from sweep.core.values import Floats
from sweep.scoring import turning
from sweep.scoring.pareto import front_shares, pareto_front
from sweep.scoring.turning import best_dose, isotonic, monotone_test

DOSES = [0.25, 0.5, 1.0, 2.0, 4.0]


def right(*counts: int, prompts: int = 40) -> Floats:
    """Yes-or-no values: the first prompts of each dose are right."""
    return np.array([[float(prompt < count) for prompt in range(prompts)] for count in counts])


def test_best_dose_and_the_doses_that_are_as_good() -> None:
    found = best_dose(DOSES, right(10, 38, 40, 37, 5), tolerance=0.05)
    assert (found.dose, found.mean) == (1.0, 1.0)
    assert (found.within_low, found.within_high) == (0.5, 1.0)  # 37 of 40 are 0.075 worse
    wider = best_dose(DOSES, right(10, 38, 40, 37, 5), tolerance=0.08)
    assert (wider.within_low, wider.within_high) == (0.5, 2.0)
    surely = best_dose(DOSES, right(10, 38, 40, 37, 5), tolerance=0.2)
    assert (surely.confirmed_low, surely.confirmed_high) == (0.5, 2.0)


def test_the_range_ends_at_the_first_dose_that_is_worse() -> None:
    found = best_dose(DOSES, right(39, 20, 40, 39, 20), tolerance=0.05)
    assert (found.within_low, found.within_high) == (1.0, 2.0)


def test_ties_go_to_the_neutral_dose_and_widen_the_interval() -> None:
    tied = right(10, 40, 40, 40, 5)
    assert best_dose(DOSES, tied, 0.0).dose == 0.5
    found = best_dose(DOSES, tied, 0.0, neutral=1.0)
    assert (found.dose, found.ci_low, found.ci_high) == (1.0, 0.5, 2.0)


def test_one_prompt_has_no_interval() -> None:
    found = best_dose([1, 2, 3], [[0.0], [1.0], [0.5]], 0.1)
    assert found.dose == 2 and math.isnan(found.ci_low) and math.isnan(found.confirmed_low)
    assert math.isnan(monotone_test([[0.0], [1.0], [0.5]]).p)
    assert monotone_test([[1.0], [1.0], [1.0]]).shape == "flat"


def test_prompts_without_all_values_are_left_out() -> None:
    values = np.array([[1.0, 0, 9], [0, 0, math.nan], [1, 1, 0]])
    assert best_dose([1, 2, 3], values, 0).dose == 3
    with pytest.raises(ValueError, match="no prompt has a value at each dose"):
        best_dose([1, 2], [[math.nan], [1.0]], 0)
    with pytest.raises(ValueError, match="do not match"):
        best_dose([1, 2, 3], values[:2], 0)


@pytest.mark.parametrize("few", [0, 40])
def test_isotonic_regression_equals_scipys(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turning, "FEW_DOSES", few)
    means = np.random.default_rng(0).normal(size=(9, 6))
    for column, fitted in zip(means.T, isotonic(means).T, strict=True):
        assert fitted == pytest.approx(isotonic_regression(column).x)


@pytest.mark.parametrize(
    ("counts", "shape", "turns"),
    [
        ((5, 20, 40, 20, 5), "rises, then falls", True),
        ((40, 20, 5, 20, 40), "falls, then rises", True),
        ((5, 10, 20, 30, 40), "rises", False),
        ((40, 30, 20, 10, 5), "falls", False),
        ((20, 21, 20, 21, 22), "rises", False),
        ((20, 20, 20, 20, 20), "flat", False),
        ((20, 20, 21, 20, 20), "neither rises nor falls", False),
    ],
)
def test_shapes(counts: tuple[int, ...], shape: str, turns: bool) -> None:
    generator = np.random.default_rng(1)
    values = np.stack([generator.permutation(row) for row in right(*counts)])
    found = monotone_test(values)
    assert found.shape == shape and (found.p < 0.05) == turns
    assert found.p >= 1 / 2001


def test_few_prompts_cannot_show_a_turn() -> None:
    """Three equal prompts have no spread, but three signs show no more than 1 in 4."""
    assert monotone_test(np.tile([[0.0], [1.0], [0.0]], (1, 3))).p == 0.25


def test_front_by_hand() -> None:
    effect, quality = [0.0, 1, 2, 1, 2, 0, math.nan], [1.0, 0.9, 0.5, 0.8, 0.5, 0.9, 2]
    assert pareto_front(effect, quality).tolist() == [True, True, True, False, True, False, False]


def test_shares_of_resamples() -> None:
    """The second point is better in quality by one prompt of ten: without it, which 0.9^10 of resamples are, equal."""
    effect = np.ones((3, 10))
    effect[2] = 0
    quality = np.zeros((3, 10))
    quality[1, 0] = quality[2, 0] = 1
    shares = front_shares(effect, quality, resamples=20_000)
    assert shares[1] == 1 and shares[0] == pytest.approx(0.9**10, abs=0.01) and shares[2] == 0


def simulated(means: Floats, prompts: int, run: int) -> Floats:
    """Normal values with these means; prompts differ in their level, which all doses share."""
    generator = np.random.default_rng(run)
    level, noise = generator.normal(size=(1, prompts)), generator.normal(size=(len(means), prompts))
    return means[:, None] + 0.35 * level + 0.35 * noise


@pytest.mark.slow
@pytest.mark.parametrize("curvature", [0.003, 0.01, 0.03])
def test_the_interval_of_the_best_dose_covers_it(curvature: float) -> None:
    """At least 93 % must cover; 99.8 % do, as a dose is one of nine numbers."""
    means = -curvature * (np.arange(9) - 5.0) ** 2
    found = [best_dose(np.arange(9), simulated(means, 60, run), 0.1, resamples=500, seed=run) for run in range(2000)]
    assert np.mean([one.ci_low <= 5 <= one.ci_high for one in found]) > 0.93
    if curvature == 0.03:
        assert np.mean([one.ci_high - one.ci_low for one in found]) < 3  # and the interval is of use


@pytest.mark.slow
def test_confirmed_doses_are_as_good() -> None:
    """Doses 3 to 7 are at most 0.05 worse than the best one; a dose beyond is confirmed in at most 5 % of runs."""
    means = -0.0125 * (np.arange(9) - 5.0) ** 2
    found = [best_dose(np.arange(9), simulated(means, 60, run), 0.05, resamples=500, seed=run) for run in range(2000)]
    wrong = [one.confirmed_low < 3 or one.confirmed_high > 7 for one in found]
    assert np.mean(wrong) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("means", [(0, 0, 0, 0, 0), (0, 0, 0, 3, 3, 3), (3, 3, 0, 0), (0, 1, 2, 3)])
@pytest.mark.parametrize("prompts", [8, 40])
def test_monotone_responses_are_rejected_in_at_most_5_percent(means: tuple[float, ...], prompts: int) -> None:
    values = [simulated(np.array(means, float), prompts, run) for run in range(2000)]
    assert np.mean([monotone_test(v, resamples=499, seed=i).p < 0.05 for i, v in enumerate(values)]) < 0.06


@pytest.mark.slow
def test_a_turn_is_found() -> None:
    means = np.array([0, 0.15, 0.3, 0.15, 0])
    found = [monotone_test(simulated(means, 60, run), resamples=499).p < 0.05 for run in range(300)]
    assert np.mean(found) > 0.8
