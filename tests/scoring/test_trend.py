"""Page's trend test: equal to SciPy's without ties, to enumeration with ties, and at its level under no trend."""

from __future__ import annotations

import math
from itertools import permutations, product

import numpy as np
import pytest
from scipy import stats

from sweep.core.values import Floats
from sweep.scoring.trend import TINY, page_trend


@pytest.mark.parametrize("doses", [3, 4, 5, 6, 7])
@pytest.mark.parametrize("prompts", [2, 7, 12])
def test_equals_scipys_exact_test_without_ties(doses: int, prompts: int) -> None:
    generator = np.random.default_rng(doses * prompts)
    for slope in (0.0, 0.4, -2.0):
        values = generator.normal(size=(doses, prompts)) + slope * np.arange(doses)[:, None]
        tails = [stats.page_trend_test(sign * values.T, method="exact").pvalue for sign in (1, -1)]
        found = page_trend(values)
        assert found.exact and found.p == pytest.approx(min(1.0, 2 * min(tails)), rel=1e-9)
        assert math.copysign(1, found.statistic) == (1 if tails[0] <= tails[1] else -1)


@pytest.mark.parametrize(
    "columns",
    [
        [(0, 0, 1), (0, 1, 1), (1, 1, 1)],
        [(0, 2, 1), (0, 1, 1), (1, 1, 3), (5, 5, 5)],
        [(0, 0, 1, 1), (0, 1, 1, 1), (1, 0, 0, 2)],
        [(0, 0, 0, 1), (0, 0, 1, 1)],
    ],
)
def test_ties_are_exact(columns: list[tuple[float, ...]]) -> None:
    values = np.array(columns, float).T
    ranks = stats.rankdata(values, axis=0)
    weights = np.arange(1, len(values) + 1)
    middle = len(columns) * len(values) * (len(values) + 1) ** 2 / 4
    observed = abs(weights @ ranks.sum(axis=1) - middle)
    orders = product(*(permutations(column) for column in ranks.T.tolist()))
    far = [abs(sum(float(weights @ np.array(one)) for one in order) - middle) >= observed - 1e-9 for order in orders]
    assert page_trend(values).p == pytest.approx(np.mean(far), rel=1e-12)


def test_the_most_extreme_order_has_the_probability_of_one_order() -> None:
    """Six doses in order for two prompts: one of 720² orders, in either direction."""
    values = np.tile(np.arange(6.0)[:, None], (1, 2))
    assert page_trend(values).p == pytest.approx(2 / 720**2)
    assert page_trend(-values).statistic == -page_trend(values).statistic


def test_p_is_never_zero() -> None:
    values = np.tile(np.arange(6.0)[:, None], (1, 5000))
    assert page_trend(values).p == TINY > 0
    values[:, 0] = 0
    assert page_trend(values).p == TINY
    many = np.tile(np.arange(9.0)[:, None], (1, 50))
    assert page_trend(many, permutations=199).p == 1 / 200 and not page_trend(many, permutations=9).exact


def test_far_tails_keep_their_accuracy() -> None:
    """Prompts of two equal halves: the distribution is a binomial."""
    values = np.zeros((3, 100))
    values[2, :95] = values[0, 95:] = 1
    # Of a prompt's three orders, one is the highest, one in the middle, one the lowest: a sum of 100 of -1, 0, 1.
    step = np.ones(3) / 3
    total = np.ones(1)
    for _ in range(100):
        total = np.convolve(total, step)
    assert page_trend(values).p == pytest.approx(2 * total[-11:].sum(), rel=1e-9)  # the sum is 90 or more


def test_missing_prompts_are_left_out() -> None:
    values = np.array([[1.0, 5, 1], [2, math.nan, 3], [3, 1, 2]])
    found = page_trend(values)
    assert found.prompts == 2 and found.p == page_trend(values[:, [0, 2]]).p
    assert math.isnan(page_trend(np.full((3, 2), math.nan)).p)
    with pytest.raises(ValueError, match="three doses or more"):
        page_trend(values[:2])


def test_no_differences_have_p_1() -> None:
    assert page_trend(np.ones((4, 10))).p == 1


@pytest.mark.parametrize("kind", ["normal", "yes or no", "one prompt in four"])
@pytest.mark.parametrize("slope", [0.0, 0.004, 0.01])
def test_much_data_has_the_p_of_random_permutations(kind: str, slope: float) -> None:
    generator = np.random.default_rng(3)
    values = generator.normal(size=(9, 300)) + 4 * slope * np.arange(9)[:, None]
    if kind != "normal":
        values = (generator.random((9, 300)) < 0.5 + slope * np.arange(9)[:, None]).astype(float)
    if kind == "one prompt in four":
        values[:, 75:] = 1
    found, sampled = page_trend(values).p, page_trend(values, permutations=1999).p
    assert found == pytest.approx(sampled, abs=4 * math.sqrt(sampled * (1 - sampled) / 1999) + 1e-3)
    assert found >= 1 / 2000
    is_random = found != page_trend(values, seed=1).p
    assert is_random == (kind == "one prompt in four" and sampled > 1 / 2000)


def test_few_prompts_that_change_are_permuted() -> None:
    """Of 3,000 prompts one changes, at the last of ten doses: 2 of 10 places are as far from the middle."""
    values = np.zeros((10, 3000))
    values[9, 0] = 1
    assert page_trend(values).p == pytest.approx(0.2, abs=0.03)


def rejected(values: Floats) -> bool:
    return page_trend(values, permutations=199).p < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["normal", "yes or no", "nine doses"])
def test_it_keeps_its_level(kind: str) -> None:
    found = []
    for run in range(2000):
        generator = np.random.default_rng(run)
        if kind == "yes or no":
            found.append(rejected((generator.random((4, 60)) < generator.random(60)).astype(float)))
        else:
            found.append(rejected(generator.normal(size=(9 if kind == "nine doses" else 5, 30))))
    assert 0.03 < np.mean(found) < 0.065


def test_rounding_errors_are_no_trend() -> None:
    values = np.repeat([0.8, 0.6], 20)
    assert page_trend([values, values + 1e-16, values + 2e-16]).p == 1
    assert page_trend([values, values, values + 1e-9]).p < 1e-3
