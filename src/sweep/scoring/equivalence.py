"""Equivalence tests, and the smallest effect that a number of prompts can show; vectorised over points.

Both are about the mean paired difference from the control, over prompts, in the unit of the measure.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats
from scipy.special import betaincinv, ndtri

from sweep.core.values import Floats
from sweep.scoring.significance import permutation_p
from sweep.scoring.statistics import Intervals, differences_of, is_yes_or_no, paired_difference

POWER = 0.8
# The spread of fewer differing prompts than this says too little.
FEW = 10
# Above this many prompts, McNemar's exact test needs hardly larger effects than the t-test.
MOST_EXACT = 1000
SPREADS = np.linspace(0.0, 1.0, 41)


def equivalence_intervals(
    values: ArrayLike, control: ArrayLike, confidence: float = 0.95, *, yes_or_no: bool = False, width: float = math.inf
) -> Intervals:
    """Return the intervals of two one-sided tests (TOST; Schuirmann 1987, doi:10.1007/BF01068419).

    A point is equivalent to its control within ±δ, at the level α = 1 - confidence, if its interval at the level 1 - 2α
    lies between -δ and δ. It is the BCa interval, and Tango's score interval (1998) for yes-or-no values, whose error
    in one direction does not exceed α, unlike that of Agresti and Min's. If fewer than `FEW` prompts differ in
    another measure, the interval is at least as wide as Agresti and Min's with differences as large as `width`: the
    rarest changes may not have been seen.

    Args:
        values: (points, prompts); NaN marks missing values.
        control: (prompts,) or (points, prompts).
        confidence: level of the two-sided intervals elsewhere; in (0.5, 1).
        yes_or_no: whether the measure is 0 or 1.
        width: largest possible difference; infinite: the largest value that occurs stands for it.
    """
    level = 2 * confidence - 1
    table = np.asarray(values, dtype=float)
    other = np.broadcast_to(np.asarray(control, dtype=float), table.shape)
    found = paired_difference(table, other, level)
    differences, few, largest = _few_changes(values, control, width)
    total = np.nansum(differences, axis=1)
    half = ndtri((1 + level) / 2) * np.sqrt(_rare_variance(differences, found.n, largest) / (found.n + 2))
    middle = total / (found.n + 2)
    low = np.where(few, np.minimum(found.ci_low, middle - half), found.ci_low)
    high = np.where(few, np.maximum(found.ci_high, middle + half), found.ci_high)
    exact = is_yes_or_no(table) & is_yes_or_no(other) & yes_or_no & (found.n > 0)
    if exact.any():
        gained, lost = (differences[exact] > 0).sum(axis=1), (differences[exact] < 0).sum(axis=1)
        low[exact], high[exact] = score_interval(gained, lost, found.n[exact], level)
    return Intervals(found.mean, low, high, found.n)


def score_interval(gained: ArrayLike, lost: ArrayLike, n: ArrayLike, level: float) -> tuple[Floats, Floats]:
    """Return the bounds of Tango's score interval of the difference of matched proportions, (points,) each.

    Tango (1998, doi:10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>3.0.CO;2-B): all differences that a score
    test does not reject.

    Args:
        gained: (points,), number of prompts that changed from 0 to 1.
        lost: (points,), number of prompts that changed from 1 to 0.
        n: (points,), number of prompts.
        level: level of the interval.
    """
    up, down, count = (np.asarray(number, dtype=float) for number in (gained, lost, n))
    z = float(ndtri((1 + level) / 2))

    def score(difference: Floats) -> Floats:
        # The share of losses that is most likely at this difference solves a quadratic equation.
        b = (2 * count - up + down) * difference - up - down
        c = -down * difference * (1 - difference)
        share = (np.sqrt(np.maximum(b**2 - 8 * count * c, 0.0)) - b) / (4 * count)
        variance = count * (2 * share + difference * (1 - difference))
        scores: Floats = (up - down - count * difference) / np.sqrt(np.maximum(variance, 1e-12))
        return scores

    bounds = []
    for target in (z, -z):
        low, high = -np.ones_like(count), np.ones_like(count)
        for _ in range(50):  # the score falls with the difference, so bisection finds the bound
            middle = (low + high) / 2
            above = score(middle) > target
            low, high = np.where(above, middle, low), np.where(above, high, middle)
        bounds.append((low + high) / 2)
    return bounds[0], bounds[1]


def detectable_effects(
    values: ArrayLike, control: ArrayLike, confidence: float = 0.95, *, yes_or_no: bool = False, width: float = math.inf
) -> Floats:
    """Return the smallest mean difference that a test at the level 1 - confidence finds in 80 % of cases, (points,).

    It is the effect for which the two-sided paired t-test has that power, given the spread of the differences over
    prompts. If fewer than `FEW` prompts differ, but not all, it is at least that of as many prompts changing in one
    direction as a sign test needs (`detectable_share`), each by `width`, or by the largest change seen if that is
    infinite. If fewer than `FEW` prompts all differ, it is at least that of the sign-flip test (`detectable_small`).
    For yes-or-no values it is that of McNemar's exact test. Infinite: the prompts are too few to find any difference.

    Args:
        values: (points, prompts); NaN marks missing values.
        control: (prompts,) or (points, prompts).
        confidence: 1 minus the level of the test.
        yes_or_no: whether the measure is 0 or 1.
        width: largest possible difference; see `equivalence_intervals`.
    """
    table = np.asarray(values, dtype=float)
    other = np.broadcast_to(np.asarray(control, dtype=float), table.shape)
    differences, few, largest = _few_changes(table, other, width)
    n = (~np.isnan(differences)).sum(axis=1)
    centred = differences - (np.nansum(differences, axis=1) / np.maximum(n, 1))[:, None]
    variance = np.nansum(centred**2, axis=1) / np.maximum(n - 1, 1)
    variance = np.where(few, np.maximum(variance, _rare_variance(differences, n, largest)), variance)
    effects = np.array([detectable(math.sqrt(v), int(count), confidence) for v, count in zip(variance, n, strict=True)])
    changed = np.count_nonzero(np.nan_to_num(differences), axis=1)
    seen = np.nan_to_num(np.abs(differences)).max(axis=1, initial=0.0)
    size = largest if math.isfinite(width) else np.where(changed > 0, seen, largest)
    for i in np.flatnonzero(few):  # the t-test is too optimistic
        if changed[i] == n[i]:
            effects[i] = max(effects[i], detectable_small(int(n[i]), confidence) * math.sqrt(variance[i]))
        else:  # a few large changes are not normally distributed
            effects[i] = max(effects[i], detectable_share(int(n[i]), confidence) * float(size[i]))
    exact = is_yes_or_no(table) & is_yes_or_no(other) & yes_or_no
    for i in np.flatnonzero(exact):
        effects[i] = detectable_matched(math.sqrt(variance[i]), int(n[i]), confidence)
    return np.where(effects <= width, effects, math.inf)


def detectable(spread: float, prompts: int, confidence: float = 0.95, power: float = POWER) -> float:
    """Return the smallest mean that a two-sided t-test against 0 finds with this power.

    Args:
        spread: standard deviation over prompts, with n - 1.
        prompts: number of prompts.
        confidence: 1 minus the level of the test.
        power: probability of finding the effect.

    Returns:
        The effect, in the unit of `spread`; infinite if no test of so few prompts can reach the level.
    """
    if prompts < _changes_needed(confidence):
        return math.inf
    return _noncentrality(prompts, confidence, power) * spread / math.sqrt(prompts)


@lru_cache(maxsize=256)
def detectable_small(prompts: int, confidence: float = 0.95) -> float:
    """Return the smallest mean, in standard deviations, that the sign-flip test finds at the power `POWER`.

    By simulation of normal differences, for a number of prompts of which all sign patterns are enumerated.

    Args:
        prompts: number of prompts, fewer than `FEW`.
        confidence: 1 minus the level of the test.
    """
    if prompts < _changes_needed(confidence):
        return math.inf
    noise = np.random.default_rng(0).normal(size=(4000, prompts))
    low, high = 0.0, 16.0
    for _ in range(24):  # the power rises with the mean
        middle = (low + high) / 2
        enough = np.mean(permutation_p(noise + middle) <= 1 - confidence) >= POWER
        low, high = (low, middle) if enough else (middle, high)
    return high


def detectable_share(prompts: int, confidence: float = 0.95, power: float = POWER) -> float:
    """Return the smallest share of prompts, all changing one way, that McNemar's exact test finds with this power."""
    needed = _changes_needed(confidence)
    return float(betaincinv(needed, prompts - needed + 1, power)) if prompts >= needed else math.inf


def detectable_matched(spread: float, prompts: int, confidence: float = 0.95) -> float:
    """Return the smallest difference of matched shares that McNemar's exact test finds at the power `POWER`.

    The power is that over the number of prompts that change, which is random too (Duffy 1984, Biometrics 40). With more
    than `MOST_EXACT` prompts, the t-test stands for McNemar's.

    Args:
        spread: standard deviation over prompts of the differences, which are -1, 0 or 1.
        prompts: number of prompts.
        confidence: 1 minus the level of the test.
    """
    one_way = detectable_share(prompts, confidence)
    if prompts > MOST_EXACT or math.isinf(one_way):
        return max(one_way, detectable(spread, prompts, confidence))
    return max(one_way, float(np.interp(spread, SPREADS, _matched_effects(prompts, confidence))))


@lru_cache(maxsize=256)
def _matched_effects(prompts: int, confidence: float) -> Floats:
    """Return the detectable difference of matched shares at each of `SPREADS`."""
    changed = np.arange(prompts + 1)
    # Of so many changes, the largest number in one direction that is still significant; -1: none is.
    rejected = stats.binom.ppf((1 - confidence) / 2, changed, 0.5)
    rejected -= 2 * stats.binom.cdf(rejected, changed, 0.5) > 1 - confidence
    low, high = np.zeros(len(SPREADS)), np.ones(len(SPREADS))
    for _ in range(20):
        effect = (low + high) / 2
        changing = np.clip(SPREADS**2 + effect**2, effect, 1.0)
        one_way = ((1 + effect / changing) / 2)[:, None]
        found = stats.binom.cdf(rejected, changed, 1 - one_way) + stats.binom.cdf(rejected, changed, one_way)
        enough = (stats.binom.pmf(changed, prompts, changing[:, None]) * found).sum(axis=1) >= POWER
        low, high = np.where(enough, low, effect), np.where(enough, effect, high)
    return low


def _changes_needed(confidence: float) -> int:
    """Return how many prompts must change in one direction for a p-value of at most 1 - confidence."""
    return 1 + math.ceil(-math.log2(1 - confidence) - 1e-9)


@lru_cache(maxsize=1024)
def _noncentrality(prompts: int, confidence: float, power: float) -> float:
    degrees = prompts - 1
    critical = float(stats.t.ppf((1 + confidence) / 2, degrees))

    def excess(shift: float) -> float:
        found = stats.nct.sf(critical, degrees, shift) + stats.nct.cdf(-critical, degrees, shift)
        return (
            1.0 if math.isnan(found) else float(found)
        ) - power  # SciPy gives NaN for shifts far beyond the quantile

    return float(optimize.brentq(excess, 0.0, 2 * critical + 5))


def _few_changes(values: ArrayLike, control: ArrayLike, width: float) -> tuple[Floats, Floats, Floats]:
    """Return the differences, which points have few of them, and the largest difference to expect of each point."""
    table = np.asarray(values, dtype=float)
    other = np.broadcast_to(np.asarray(control, dtype=float), table.shape)
    differences = differences_of(table, other)
    few = np.count_nonzero(np.nan_to_num(differences), axis=1) < FEW
    if math.isfinite(width):
        return differences, few, np.full(len(table), width)
    seen = np.maximum(np.nan_to_num(np.abs(table)).max(axis=1), np.nan_to_num(np.abs(other)).max(axis=1))
    return differences, few, np.where(seen > 0, seen, math.inf)


def _rare_variance(differences: Floats, n: NDArray[np.int64], largest: Floats) -> Floats:
    """Return the variance of differences after adding one of ±`largest` as half a prompt each, twice."""
    total, squares = np.nansum(differences, axis=1), np.nansum(differences**2, axis=1)
    variance: Floats = (squares + largest**2 - total**2 / (n + 2)) / (n + 2)
    return variance
