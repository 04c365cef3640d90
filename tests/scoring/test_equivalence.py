"""Equivalence tests and detectable effects: by hand, and by simulation with a known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, optimize, stats

from sweep.report.paired_differences import table_tests
from sweep.scoring.equivalence import (
    POWER,
    detectable,
    detectable_effects,
    detectable_matched,
    detectable_share,
    detectable_small,
    equivalence_intervals,
    score_interval,
)
from sweep.scoring.measures import summarise_scores
from sweep.scoring.registry import spec
from sweep.scoring.significance import p_values, permutation_p
from sweep.scoring.statistics import paired_difference

SIMULATIONS, PROMPTS = 2000, 40
SLACK = 2.6 * math.sqrt(0.05 * 0.95 / SIMULATIONS)  # 99 % of simulations of a true 5 % are this close to it


def test_the_interval_is_the_paired_one_at_the_level_of_two_one_sided_tests() -> None:
    draw = np.random.default_rng(0)
    control, values = draw.normal(size=(3, 30)), draw.normal(size=(3, 30))
    for confidence, level in ((0.95, 0.9), (0.9, 0.8)):
        found, same = equivalence_intervals(values, control, confidence), paired_difference(values, control, level)
        assert (found.ci_low.tolist(), found.ci_high.tolist()) == (same.ci_low.tolist(), same.ci_high.tolist())
    student = stats.ttest_rel(values[0], control[0]).confidence_interval(0.9)
    found = equivalence_intervals(values, control)
    assert [found.ci_low[0], found.ci_high[0]] == pytest.approx([student.low, student.high], abs=0.05)


def test_no_change_among_few_prompts_is_not_a_narrow_interval() -> None:
    """As Agresti and Min's, with a prompt added that changes by the whole range: 1.645 / (n + 2)."""
    for n in (10, 100):
        found = equivalence_intervals(np.ones((1, n)), np.ones(n), width=1.0)
        assert (
            found.ci_high[0] == pytest.approx(stats.norm.ppf(0.95) / (n + 2)) and found.ci_low[0] == -found.ci_high[0]
        )
    tokens = equivalence_intervals(np.full((1, 10), 60.0), np.full(10, 60.0))  # without a range: the largest value
    assert tokens.ci_high[0] == pytest.approx(60 * stats.norm.ppf(0.95) / 12)
    nothing = equivalence_intervals(np.zeros((1, 10)), np.zeros(10))
    assert nothing.ci_high[0] == math.inf
    missing = equivalence_intervals(np.full((1, 10), math.nan), np.zeros(10), width=1.0)
    assert math.isnan(missing.ci_low[0])


def test_yes_or_no_differences_have_the_score_interval() -> None:
    """The bounds are the differences whose score, by a likelihood that is maximised numerically, is the quantile."""
    z = stats.norm.ppf(0.95)
    for gained, lost, n in ((0, 1, 44), (5, 12, 60), (3, 0, 15), (9, 9, 40)):
        found = [float(bound[0]) for bound in score_interval([gained], [lost], [n], 0.9)]
        for bound, target in zip(found, (z, -z), strict=True):

            def loss(share: float, bound: float = bound, counts: tuple[int, int, int] = (gained, lost, n)) -> float:
                up, down, total = counts
                chances = (share + bound, share, 1 - 2 * share - bound)
                return -sum(
                    k * math.log(max(c, 1e-300)) for k, c in zip((up, down, total - up - down), chances, strict=True)
                )

            best = optimize.minimize_scalar(
                loss, bounds=(max(0.0, -bound), (1 - bound) / 2), method="bounded", options={"xatol": 1e-12}
            ).x
            score = (gained - lost - n * bound) / math.sqrt(n * (2 * best + bound * (1 - bound)))
            assert score == pytest.approx(target, abs=1e-4)
        mirrored = [float(bound[0]) for bound in score_interval([lost], [gained], [n], 0.9)]
        assert mirrored == pytest.approx([-found[1], -found[0]], abs=1e-9)
    unchanged = equivalence_intervals(np.ones((1, 60)), np.ones(60), yes_or_no=True)
    assert unchanged.ci_high[0] == pytest.approx(z**2 / (60 + z**2))  # as Wilson's interval of 0 of 60


def test_detectable_effect_of_a_t_test() -> None:
    """The values of G*Power 3.1 for paired t-tests: dz at 80 % power and a level of 5 %."""
    for prompts, dz in ((10, 0.996), (20, 0.660), (34, 0.495), (100, 0.283)):
        assert detectable(1.0, prompts) == pytest.approx(dz, abs=0.001)
        assert detectable(2.5, prompts) == pytest.approx(2.5 * dz, abs=0.003)
    assert detectable(1.0, 5) == math.inf  # the smallest p of 5 prompts is 0.0625
    assert detectable(1.0, 6) < math.inf and detectable(1.0, 20, 0.999) > detectable(1.0, 20, 0.95)
    assert all(0 < detectable(1.0, n, c) < math.inf for n in (15, 16, 500) for c in (0.6, 0.9, 0.99, 0.9999))


def test_detectable_share_of_mcnemars_test() -> None:
    """Six prompts that change one way give p = 2/64; fewer are never significant."""
    for prompts in (6, 15, 60, 336):
        share = detectable_share(prompts)
        assert stats.binom.sf(5, prompts, share) == pytest.approx(POWER)
    assert detectable_share(5) == math.inf and detectable_share(8, 0.99) < math.inf == detectable_share(7, 0.99)


@pytest.mark.parametrize(
    ("prompts", "spread", "level"),
    [(24, 0.6, 0.95), (60, 0.5, 0.95), (104, 0.33, 0.9), (104, 0.7, 0.95), (336, 0.2, 0.95)],
)
def test_detectable_difference_of_matched_shares(prompts: int, spread: float, level: float) -> None:
    """The power of McNemar's exact test, over all numbers of prompts that change. The t-test's effect has less."""

    def power(effect: float) -> float:
        changing = spread**2 + effect**2
        total = 0.0
        for changed in range(1, prompts + 1):
            for gained in range(changed + 1):
                if stats.binomtest(gained, changed).pvalue <= 1 - level:
                    total += float(
                        stats.binom.pmf(changed, prompts, changing)
                        * stats.binom.pmf(gained, changed, (1 + effect / changing) / 2)
                    )
        return total

    def quick(effect: float) -> float:
        gained = np.arange(prompts + 1)
        changing, changed = spread**2 + effect**2, gained[:, None]
        p = np.minimum(2 * stats.binom.cdf(np.minimum(gained, changed - gained), changed, 0.5), 1)
        found = stats.binom.pmf(gained, changed, (1 + effect / changing) / 2) * (p <= 1 - level)
        return float((stats.binom.pmf(gained, prompts, changing) * found.sum(axis=1)).sum())

    effect = detectable_matched(spread, prompts, level)
    assert quick(effect) == pytest.approx(POWER, abs=0.01)
    if prompts == 24:
        assert quick(effect) == pytest.approx(power(effect))
    assert quick(detectable(spread, prompts, level)) < POWER - 0.01


def test_detectable_difference_of_many_matched_prompts() -> None:
    exact, approximate = detectable_matched(0.4, 1000), detectable_matched(0.4, 1001)
    assert exact == pytest.approx(approximate, rel=0.03) and detectable_matched(0.0, 5000) == detectable_share(5000)
    assert detectable_matched(0.9, 5) == math.inf and detectable_matched(0.0, 60) == detectable_share(60)


def test_detectable_effects_of_points() -> None:
    draw = np.random.default_rng(1)
    control, values = draw.normal(size=30), draw.normal(size=(2, 30))
    spread = np.std(values[0] - control, ddof=1)
    assert detectable_effects(values, control)[0] == pytest.approx(detectable(float(spread), 30))
    assert math.isinf(detectable_effects(values[:1], control, width=0.5)[0])  # more than the measure can differ
    same = np.ones((1, 60))
    unchanged = detectable_effects(same, same[0], yes_or_no=True, width=1.0)[0]
    assert unchanged == pytest.approx(detectable_share(60)) and 0.1 < unchanged < 0.2
    assert math.isinf(detectable_effects(same[:, :5], same[0, :5], yes_or_no=True, width=1.0)[0])
    gap = np.where(np.arange(30) < 10, math.nan, values[0])
    alone = detectable_effects(values[:1, 10:], control[10:])[0]
    assert detectable_effects(gap[None], control)[0] == pytest.approx(alone)


def differences(kind: str, mean: float, seed: int, simulations: int = SIMULATIONS) -> tuple[np.ndarray, np.ndarray]:
    """Return values and controls of simulated points whose true mean difference is `mean`, with a spread of 1."""
    draw = np.random.default_rng(seed)
    size = (simulations, PROMPTS)
    noise = draw.normal(size=size) if kind == "normal" else (draw.gamma(4, size=size) - 4) / 2
    control = draw.normal(size=size)
    return control + mean + noise, control


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["normal", "skewed"])
@pytest.mark.parametrize("side", [-1, 1])
def test_false_equivalence_is_as_rare_as_its_level(kind: str, side: int) -> None:
    """With a true difference of exactly the margin, a point is called equivalent in 5 % of cases."""
    margin = 0.8
    values, control = differences(kind, side * margin, seed=2)
    found = equivalence_intervals(values, control)
    error = np.mean((found.ci_low > -margin) & (found.ci_high < margin))
    slack = SLACK if kind == "normal" else 2 * SLACK
    assert 0.05 - slack <= error <= 0.05 + slack


@pytest.mark.slow
def test_false_equivalence_of_yes_or_no_measures_is_no_more_frequent_than_its_level() -> None:
    draw = np.random.default_rng(3)
    for lost, gained in ((0.15, 0.05), (0.12, 0.02), (0.1, 0.0)):  # a true difference of -0.1
        u = draw.random((SIMULATIONS, 150))
        control = np.where(u < lost, 1.0, np.where(u < lost + gained, 0.0, draw.integers(0, 2, u.shape)))
        values = np.where(u < lost, 0.0, np.where(u < lost + gained, 1.0, control))
        found = equivalence_intervals(values, control, yes_or_no=True, width=1.0)
        assert np.mean((found.ci_low > -0.1) & (found.ci_high < 0.1)) <= 0.05 + SLACK


@pytest.mark.slow
@pytest.mark.parametrize("margin", [0.5, 0.6])
def test_power_of_the_equivalence_test_is_that_of_students(margin: float) -> None:
    """Without a difference: the mean lies within margin - t s / √n, integrated over the distribution of s."""
    critical, degrees = stats.t.ppf(0.95, PROMPTS - 1), PROMPTS - 1

    def within(variance: float) -> float:
        reach = margin * math.sqrt(PROMPTS) - critical * math.sqrt(variance)
        return float(max(0.0, 2 * stats.norm.cdf(reach) - 1) * stats.chi2.pdf(variance * degrees, degrees) * degrees)

    nominal, _ = integrate.quad(within, 0, 5)
    found = equivalence_intervals(*differences("normal", 0.0, seed=4))
    power = np.mean((found.ci_low > -margin) & (found.ci_high < margin))
    assert 0.5 < nominal < 0.99
    assert power == pytest.approx(nominal, abs=2.6 * math.sqrt(nominal * (1 - nominal) / SIMULATIONS) + 0.01)


@pytest.mark.slow
@pytest.mark.parametrize("level", [0.95, 0.99])
def test_a_detectable_effect_is_found_with_its_power(level: float) -> None:
    effect = detectable(1.0, PROMPTS, level)
    p = p_values(*differences("normal", effect, seed=5), permutations=1999)
    assert np.mean(p <= 1 - level) == pytest.approx(
        POWER, abs=2.6 * math.sqrt(POWER * (1 - POWER) / SIMULATIONS) + 0.01
    )
    p = p_values(*differences("normal", 0.0, seed=6), permutations=1999)
    assert np.mean(p <= 1 - level) == pytest.approx(1 - level, abs=SLACK)


@pytest.mark.slow
def test_a_detectable_share_is_found_with_its_power() -> None:
    share = detectable_share(60)
    changed = np.random.default_rng(7).random((SIMULATIONS, 60)) < share
    p = p_values(np.where(changed, 0.0, 1.0), np.ones(60), yes_or_no=True)
    assert np.mean(p <= 0.05) == pytest.approx(POWER, abs=2.6 * math.sqrt(POWER * (1 - POWER) / SIMULATIONS))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prompts", "share", "size"), [(15, 0.13, 1.0), (40, 0.0, 1.0), (40, 0.1, 0.5), (15, 0.2, 1 / 3)]
)
def test_rare_changes_are_found_with_the_power(prompts: int, share: float, size: float) -> None:
    """Fewer than ten prompts change: others may change by the largest possible difference, 1."""
    draw = np.random.default_rng(9)
    changed = draw.random((200, prompts)) < share
    seen = np.where(changed, size, 0.0) * draw.choice([-1, 1], changed.shape)
    effect = float(np.median(detectable_effects(0.5 + seen / 2, 0.5 - seen / 2, width=1.0)))
    moved = (draw.random((SIMULATIONS, prompts)) < effect).astype(float)
    assert np.mean(permutation_p(moved, permutations=999) <= 0.05) == pytest.approx(POWER, abs=0.035)


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [6, 7, 9, 12, 40])
def test_a_shift_of_all_prompts_is_found_with_the_power(prompts: int) -> None:
    """Nothing is added to the effect of the t-test, but where so few prompts change that the test is coarse."""
    draw = np.random.default_rng(10)
    seen = draw.normal(0.8, 0.05, (1, prompts))
    effect = float(detectable_effects(seen, np.zeros(prompts), width=1.0)[0])
    spread = float(seen.std(ddof=1))
    if prompts >= 10:
        assert effect == pytest.approx(detectable(spread, prompts))
        return
    noise = draw.normal(0, 1, (SIMULATIONS, prompts))
    power = np.mean(permutation_p(noise + detectable_small(prompts)) <= 0.05)
    assert power == pytest.approx(POWER, abs=0.035) and detectable_small(prompts) > detectable(1.0, prompts) - 0.1
    assert effect >= detectable_small(prompts) * spread * 0.999


def test_an_unbounded_measure_counts_with_the_changes_seen() -> None:
    """Nine of twenty values near 100 change by about 0.01."""
    control = np.full(20, 100.0)
    few = control + np.where(np.arange(20) < 9, 0.01, 0.0)
    many = control + np.where(np.arange(20) < 10, 0.01, 0.0)
    effects = detectable_effects(np.stack([few, many]), control)
    assert effects[1] < 0.01
    assert detectable_share(20) * 0.01 <= effects[0]


def test_a_users_function_of_zeros_and_ones_is_a_yes_or_no_measure() -> None:
    own, known = "quality/first_word", "quality/exact_match"
    values, control = np.array([[1.0] * 12 + [0.0] * 3]), np.ones((1, 15))
    [(_, found)], [(_, expected)] = (list(table_tests(name, values, control, 0.95)) for name in (own, known))
    assert found == expected and (found.difference.gained, found.difference.lost) == (0, 3)
    summaries = summarise_scores({own: control[0], known: control[0]}, 0.95)
    assert summaries[own] == summaries[known] and summaries[own].ci_low < 0.8
    [(_, graded)] = table_tests(own, values / 2, control, 0.95)
    assert graded.difference.gained is None
    assert spec(own).yes_or_no is False  # it decides no sample


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["normal", "skewed"])
def test_estimated_effects_are_near_the_true_one_and_intervals_cover(kind: str) -> None:
    values, control = differences(kind, 0.3, seed=8)
    effects = detectable_effects(values, control)
    assert np.median(effects) == pytest.approx(detectable(1.0, PROMPTS), rel=0.04)
    found = equivalence_intervals(values, control)
    assert 0.88 <= np.mean((found.ci_low <= 0.3) & (found.ci_high >= 0.3)) <= 0.92
    wide = paired_difference(values, control)
    assert 0.93 <= np.mean((wide.ci_low <= 0.3) & (wide.ci_high >= 0.3)) <= 0.97
