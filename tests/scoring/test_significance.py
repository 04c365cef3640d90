"""Tests against scipy's and statsmodels' definitions, and against data with known truth."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from sweep.scoring.significance import EXACT, _tail, benjamini_hochberg, mcnemar_p, p_values, permutation_p
from sweep.scoring.statistics import paired_difference


def scipys(differences: np.ndarray, resamples: float) -> float:
    test = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=resamples, vectorized=True, rng=0
    )
    return float(test.pvalue)


@pytest.mark.parametrize("n", [2, 5, EXACT])
def test_few_differences_are_tested_exactly(n: int) -> None:
    differences = np.random.default_rng(n).normal(0.5, 1, (5, n))
    assert permutation_p(differences) == pytest.approx([scipys(row, math.inf) for row in differences])
    padded = np.hstack([differences, np.zeros((5, 20)), np.full((5, 3), math.nan)])  # those who stay say nothing
    assert permutation_p(padded) == pytest.approx(permutation_p(differences))


def test_many_differences_are_tested_at_random_signs() -> None:
    differences = np.random.default_rng(0).normal(0.3, 1, (5, 40))
    found = permutation_p(differences, permutations=50_000)
    assert found == pytest.approx([scipys(row, 50_000) for row in differences], abs=0.01)
    assert np.ptp(found) > 0.05
    assert permutation_p(differences + 10)[0] == 2.0**-39  # all signs alike, or all the other


def test_nothing_to_test() -> None:
    found = permutation_p([[0.0] * 20, [math.nan] * 20, [1.0] + [math.nan] * 19])
    assert found[0] == 1 and math.isnan(found[1]) and found[2] == 1


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (5, 1), (8, 8), (2, 30)])
def test_mcnemar_equals_a_binomial_test_of_changes(gained: int, lost: int) -> None:
    control = np.array([0.0] * gained + [1.0] * lost + [0.0, 1.0, 1.0, math.nan])
    values = np.array([[1.0] * gained + [0.0] * lost + [0.0, 1.0, 1.0, 1.0]])
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert mcnemar_p(values, control)[0] == pytest.approx(expected)
    if gained + lost <= EXACT:  # of differences of one size the permutation test is the same
        assert permutation_p(values - control)[0] == pytest.approx(expected)
    assert p_values(values, control, yes_or_no=True)[0] == pytest.approx(expected)


def test_mcnemar_refuses_values_other_than_0_and_1() -> None:
    with pytest.raises(ValueError, match="0 and 1"):
        mcnemar_p([[0.5, 1.0]], [1.0, 1.0])
    assert math.isnan(mcnemar_p([[math.nan, 1.0]], [1.0, math.nan])[0])
    mixed = np.vstack([np.tile([0.5, 0.0], 10), np.tile([1.0, 0.0], 10)])
    found = p_values(mixed, np.ones(20), yes_or_no=True)  # points whose samples differ are permuted
    assert found[1] == stats.binomtest(0, 10).pvalue
    assert found[0] == permutation_p(mixed - 1)[0]


def test_benjamini_hochberg_ignores_missing_values() -> None:
    """By hand: 0.01·4/1, 0.02·4/2, 0.03·4/3 are all 0.04; 0.5·4/4."""
    found = benjamini_hochberg([0.5, math.nan, 0.01, 0.03, 0.02])
    assert found[[0, 2, 3, 4]] == pytest.approx([0.5, 0.04, 0.04, 0.04]) and math.isnan(found[1])
    assert np.isnan(benjamini_hochberg([math.nan])).all() and benjamini_hochberg([]).shape == (0,)


@pytest.mark.parametrize("yes_or_no", [False, True])
def test_false_discoveries_under_the_null_are_at_or_below_their_level(yes_or_no: bool) -> None:
    """400 sweeps of 20 points that do nothing, against one control each: any call is wrong."""
    draw = np.random.default_rng(5)
    sweeps, points, prompts = 400, 20, 30
    control = draw.normal(size=(sweeps, 1, prompts))
    values = draw.normal(size=(sweeps, points, prompts))
    if yes_or_no:
        control, values = (control < 0.5).astype(float), (values < 0.5).astype(float)
    control = np.broadcast_to(control, values.shape)
    flat = (sweeps * points, prompts)
    p = p_values(values.reshape(flat), control.reshape(flat), yes_or_no=yes_or_no).reshape(sweeps, points)
    called = np.array([(benjamini_hochberg(row) <= 0.05).any() for row in p])
    assert called.mean() <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / sweeps)
    assert (p <= 0.05).any(axis=1).mean() > 0.15  # without the adjustment there would be many
    one_in_twenty = (p <= 0.05).mean()
    assert one_in_twenty <= 0.055 if yes_or_no else 0.04 <= one_in_twenty <= 0.06


def test_false_discoveries_among_true_ones_are_at_or_below_their_level_and_true_ones_are_found() -> None:
    draw = np.random.default_rng(6)
    sweeps, points, prompts, true = 300, 20, 40, 8
    effects = np.where(np.arange(points) < true, 0.8, 0.0)
    differences = draw.normal(effects[None, :, None], 1, (sweeps, points, prompts))
    p = permutation_p(differences.reshape(-1, prompts)).reshape(sweeps, points)
    called = np.array([benjamini_hochberg(row) <= 0.05 for row in p])
    wrong = called[:, true:].sum(axis=1) / np.maximum(called.sum(axis=1), 1)
    assert wrong.mean() <= 0.05
    assert called[:, :true].mean() > 0.9


@pytest.mark.parametrize("shift", [0.9, 1.5, 4.0])
def test_tail_probability_equals_full_enumeration(shift: float) -> None:
    d = np.random.default_rng(3).normal(shift, 1.0, 18)
    signs = np.array(list(itertools.product((-1.0, 1.0), repeat=18)))
    exact = np.mean(np.abs(signs @ d) >= abs(d.sum()) - 1e-9)
    assert _tail(d[None])[0] == pytest.approx(exact, rel=0.15)


def test_one_effect_in_a_large_sweep_is_significant() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(0.0, 1.0, (120, 256))
    values[7] += 3.0
    q = benjamini_hochberg(p_values(values, np.zeros(256), permutations=1999))
    assert q[7] < 1e-6 and np.flatnonzero(q < 0.05).tolist() == [7]


def test_rounding_errors_are_no_difference() -> None:
    control = np.tile([0.1, 0.2, 0.3, 0.7], 10)
    permuted = np.nextafter(control, 1)
    assert p_values([permuted], control).tolist() == [1.0]
    assert paired_difference([permuted], control).mean.tolist() == [0.0]
    assert p_values([control + 1e-9], control)[0] < 1e-3


def test_no_p_is_zero() -> None:
    """The smallest float is reached by 1,100 prompts that all change."""
    control = np.zeros(1200)
    assert p_values([np.ones(1200)], control, yes_or_no=True)[0] > 0
    assert p_values([np.linspace(0.1, 1, 1200)], control)[0] > 0
    assert np.isnan(p_values([np.full(1200, np.nan)], control)[0])
