"""Intervals against scipy's, and against data with known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sweep.scoring.statistics import bootstrap_bca, intervals, paired_difference, resampled_counts

SIMULATIONS = 2000


@pytest.mark.parametrize("kind", ["normal", "skewed", "ties"])
def test_bca_equals_scipys_within_resampling_error(kind: str) -> None:
    draw = np.random.default_rng(1)
    values = {
        "normal": draw.normal(5, 2, (6, 25)),
        "skewed": draw.exponential(1, (6, 25)) ** 2,
        "ties": draw.choice([0.0, 0.5, 1.0], p=[0.1, 0.2, 0.7], size=(6, 25)),
    }[kind]
    ours = bootstrap_bca(values, 0.9, resamples=20_000, seed=0, expand=False)
    for row, sample in enumerate(values):
        theirs = stats.bootstrap((sample,), np.mean, confidence_level=0.9, n_resamples=20_000, method="BCa", rng=2)
        low, high = theirs.confidence_interval
        within = 0.04 * (high - low)
        assert ours.ci_low[row] == pytest.approx(low, abs=within)
        assert ours.ci_high[row] == pytest.approx(high, abs=within)
        assert ours.mean[row] == pytest.approx(sample.mean())
    percentile = np.quantile(np.random.default_rng(0).choice(values[0], (20_000, 25)).mean(axis=1), [0.05, 0.95])
    if kind == "skewed":  # the correction is more than what the tolerance lets pass
        assert percentile[1] < ours.ci_high[0] - 0.06 * (percentile[1] - percentile[0])


@pytest.mark.parametrize("expand", [False, True])
def test_bca_equals_its_definition(expand: bool) -> None:
    """Efron's formulae, with a jackknife that leaves out one prompt after the other."""
    draw = np.random.default_rng(4)
    n, resamples = 12, 500
    for sample in (draw.exponential(size=n) ** 4, draw.choice([0.0, 0.25, 1.0], p=[0.1, 0.1, 0.8], size=n)):
        means = np.array([np.repeat(sample, row.astype(int)).mean() for row in resampled_counts(n, resamples, 9)])
        below = np.mean(means < sample.mean() - 1e-9) + np.mean(abs(means - sample.mean()) < 1e-9) / 2
        bias = stats.norm.ppf(below)
        assert abs(bias) > 0.1
        left_out = np.array([np.delete(sample, i).mean() for i in range(n)])
        deviations = left_out.mean() - left_out
        acceleration = (deviations**3).sum() / (6 * (deviations**2).sum() ** 1.5)
        tail = stats.t.ppf(0.95, n - 1) * math.sqrt(n / (n - 1)) if expand else stats.norm.ppf(0.95)
        shares = [stats.norm.cdf(bias + (bias + z) / (1 - acceleration * (bias + z))) for z in (-tail, tail)]
        found = bootstrap_bca(sample[None], 0.9, resamples=resamples, seed=9, expand=expand)
        assert [found.ci_low[0], found.ci_high[0]] == pytest.approx(np.quantile(means, shares).tolist(), rel=1e-9)


def test_missing_values_are_left_out_at_any_position() -> None:
    draw = np.random.default_rng(0)
    sample = draw.normal(size=20)
    table = np.full((4, 30), np.nan)
    table[0, :20], table[1, 10:], table[2, 5:25] = sample, sample, sample
    found = bootstrap_bca(table)
    alone = bootstrap_bca(sample[None])
    assert found.n.tolist() == [20, 20, 20, 0]
    for bound in ("mean", "ci_low", "ci_high"):
        assert getattr(found, bound)[:3] == pytest.approx(getattr(alone, bound)[[0, 0, 0]], abs=1e-12)
    assert all(math.isnan(getattr(found, bound)[3]) for bound in ("mean", "ci_low", "ci_high"))


def test_a_summary_leaves_missing_values_out() -> None:
    with_gap, without = intervals([[1.0, math.nan, 3.0, 2.0]]), intervals([[1.0, 3.0, 2.0]])
    assert (with_gap.mean, with_gap.ci_low, with_gap.n) == (without.mean, without.ci_low, without.n)
    nothing = intervals([[math.nan]], yes_or_no=True)
    assert math.isnan(nothing.mean[0]) and nothing.n[0] == 0


def test_equal_values_and_single_values() -> None:
    found = bootstrap_bca([[0.1] * 30, [0.0] * 30, [4.0] + [math.nan] * 29])
    assert (found.mean[0], found.ci_low[0], found.ci_high[0]) == (pytest.approx(0.1),) * 3
    assert (found.ci_low[1], found.ci_high[1]) == (0, 0)
    assert found.mean[2] == 4 and math.isnan(found.ci_low[2]) and found.n[2] == 1
    with pytest.raises(ValueError, match="no infinite entries"):
        bootstrap_bca([[1.0, math.inf]])
    with pytest.raises(ValueError, match=r"\(points, prompts\)"):
        bootstrap_bca([1.0, 2.0])


def test_intervals_depend_on_the_seed_and_not_on_other_points() -> None:
    values = np.random.default_rng(0).normal(size=(3, 20))
    one, again = bootstrap_bca(values), bootstrap_bca(values[1:2])
    assert one.ci_low[1] == pytest.approx(again.ci_low[0], abs=1e-12)
    assert bootstrap_bca(values, seed=1).ci_low[1] != one.ci_low[1]
    many = np.repeat(values, 400, axis=0)  # more than one block
    assert bootstrap_bca(many).ci_low[::400] == pytest.approx(one.ci_low, abs=1e-12)


def test_yes_or_no_intervals_equal_wilsons() -> None:
    table = np.array([[1.0] * 10, [0.0] * 10, [1.0] * 7 + [0.0] * 3, [1.0] * 4 + [math.nan] * 6, [0.5] * 10])
    found = intervals(table, 0.9, yes_or_no=True)
    for row, (k, n) in enumerate([(10, 10), (0, 10), (7, 10), (4, 4)]):
        wilson = stats.binomtest(k, n).proportion_ci(0.9, method="wilson")
        assert (found.ci_low[row], found.ci_high[row]) == (pytest.approx(wilson.low), pytest.approx(wilson.high))
    assert (found.ci_low[4], found.ci_high[4]) == (0.5, 0.5)  # samples within a prompt: no longer 0 or 1
    assert intervals(table, 0.9).ci_low[0] == 1


def samples(kind: str, n: int) -> tuple[np.ndarray, float | np.ndarray]:
    draw = np.random.default_rng(7)
    size = (SIMULATIONS, n)
    match kind:
        case "normal":
            return draw.normal(2, 3, size), 2
        case "skewed":
            return draw.gamma(4, size=size), 4
        case "share":
            return draw.beta(0.8, 0.4, size), 0.8 / 1.2
    # Of one share and so few prompts there are but a few intervals, which cover it more or less often than the average.
    shares = draw.uniform(0.5, 0.98, SIMULATIONS)
    return (draw.random(size) < shares[:, None]).astype(float), shares


@pytest.mark.parametrize("n", [30, 60])
@pytest.mark.parametrize("kind", ["normal", "skewed", "share", "yes_or_no"])
def test_intervals_have_their_nominal_coverage(kind: str, n: int) -> None:
    values, truth = samples(kind, n)
    found = intervals(values, yes_or_no=kind == "yes_or_no")
    assert 0.93 <= np.mean((found.ci_low <= truth) & (truth <= found.ci_high)) <= 0.97


def test_small_samples_are_covered_too() -> None:
    """Of 15 prompts, as many as come with the project."""
    values, truth = samples("normal", 15)
    covered = {}
    for expand in (False, True):
        found = bootstrap_bca(values, expand=expand)
        covered[expand] = np.mean((found.ci_low <= truth) & (truth <= found.ci_high))
    assert covered[False] < 0.93 <= covered[True] <= 0.97


@pytest.mark.parametrize("yes_or_no", [False, True])
@pytest.mark.parametrize("n", [30, 60])
def test_intervals_of_differences_cover_the_truth(yes_or_no: bool, n: int) -> None:
    draw = np.random.default_rng(3)
    easy = draw.normal(size=(SIMULATIONS, n))  # what point and control have in common
    control, values = easy + draw.normal(size=easy.shape), easy + draw.normal(0.3, 1, easy.shape)
    truth = 0.3
    if yes_or_no:
        control, values = (control > -1).astype(float), (values > 0).astype(float)
        truth = stats.norm.cdf(0.3 / math.sqrt(2)) - stats.norm.cdf(1 / math.sqrt(2))
    found = paired_difference(values, control, yes_or_no=yes_or_no)
    assert 0.93 <= np.mean((found.ci_low <= truth) & (truth <= found.ci_high)) <= 0.97
    assert found.mean == pytest.approx((values - control).mean(axis=1))


def test_paired_differences() -> None:
    control = np.array([1.0, 2.0, math.nan, 4.0])
    found = paired_difference([[2.0, 2.0, 3.0, math.nan], [1.0, 2.0, 3.0, 4.0]], control)
    assert found.mean.tolist() == [0.5, 0.0] and found.n.tolist() == [2, 3]
    ones = np.ones((2, 20))
    unchanged = paired_difference(ones, ones[0], yes_or_no=True)
    # Agresti and Min: one discordant prompt in 22, as likely up as down.
    assert unchanged.ci_high[0] == pytest.approx(1.959964 / 22) and unchanged.ci_low[0] == -unchanged.ci_high[0]
    assert (unchanged.mean[0], paired_difference(ones, ones[0]).ci_high[0]) == (0, 0)
    lost = ones.copy()
    lost[:, :10] = 0
    half = 1.959964 * math.sqrt(11 - 100 / 22) / 22
    assert paired_difference(lost, ones, yes_or_no=True).ci_low[1] == pytest.approx(-10 / 22 - half)
    nothing = paired_difference([[math.nan] * 4], control, yes_or_no=True)
    assert math.isnan(nothing.ci_low[0]) and nothing.n[0] == 0
