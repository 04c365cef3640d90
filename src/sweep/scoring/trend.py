"""Exact test of a trend over ordered doses: Page's L with its permutation distribution within prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations as all_orders
from math import factorial

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from sweep.core.values import Floats

EXACT_DOSES = 7  # with up to this many doses, all permutations count; with more, random ones are drawn
SAMPLED = 1999  # random permutations
MOVED = 5_000_000  # values that all random permutations move, a fraction of a second; beyond, the sum is normal
MANY = 20  # prompts whose values differ, from which the sum over prompts counts as normal
TINY = float(np.finfo(float).tiny)  # smallest p that can be written as a normal double


@dataclass(frozen=True, slots=True)
class Trend:
    """Result of `page_trend`.

    Attributes:
        statistic: Page's L minus its expectation; positive if values rise with the dose.
        p: two-sided p-value of no trend; never 0.
        prompts: number of prompts with a value at each dose.
        exact: whether all permutations count.
    """

    statistic: float
    p: float
    prompts: int
    exact: bool


def page_trend(values: ArrayLike, *, permutations: int | None = None, seed: int = 0) -> Trend:
    """Test whether values tend to rise or fall along ordered doses (Page 1963, doi:10.1080/01621459.1963.10500843).

    Each prompt's values are ranked over the doses, ties by their mean rank. L is the sum of dose number times rank.
    Without a trend, all orders of a prompt's values are equally likely. The distribution of L over all of them is
    exact, also with ties: the sum over prompts is a convolution. It is made by a Fourier transform of exponentially
    tilted distributions, so that far tails keep their relative accuracy. Without ties the result equals
    `scipy.stats.page_trend_test(method="exact")`, doubled. With more than `EXACT_DOSES` doses, p counts the observed
    order as one of the random ones (Phipson and Smyth 2010, doi:10.2202/1544-6115.1585), so it is at least
    1/(permutations + 1). For much data, the normal distribution with the exact permutation variance stands for random
    permutations; p is not less than with them.

    Args:
        values: (doses, prompts), doses in order; NaN marks missing values. Prompts without a value at some dose are
            left out.
        permutations: number of random permutations of all prompts; None: `SAMPLED`, or none for much data.
        seed: of the random permutations.

    Raises:
        ValueError: `values` is not two-dimensional, or has fewer than three doses.
    """
    table = np.asarray(values, dtype=float)
    if table.ndim != 2 or len(table) < 3:
        raise ValueError(f"values must have shape (doses, prompts) with three doses or more; got {list(table.shape)}")
    doses = len(table)
    complete = table[:, ~np.isnan(table).any(axis=0)]
    prompts = complete.shape[1]
    exact = doses <= EXACT_DOSES
    if not prompts:
        return Trend(float("nan"), float("nan"), 0, exact)
    # Twice the ranks are whole numbers, and so is twice the deviation of L from its expectation.
    # Values are rounded first, so that rounding errors between doses do not count.
    scale = float(np.abs(complete).max()) or 1.0
    ranks = np.round(2 * stats.rankdata(np.round(complete / scale, 12), axis=0)).astype(int)
    weights = np.arange(1, doses + 1)
    deviation = int((weights @ ranks).sum()) - prompts * _centre(doses)
    if deviation == 0:
        p = 1.0
    elif exact:
        patterns = Counter(tuple(sorted(column)) for column in ranks.T.tolist())
        p = _exact_p(patterns, abs(deviation))
    else:
        p = _sampled_p(ranks[:, np.ptp(ranks, axis=0) > 0], abs(deviation), permutations, seed)
    return Trend(deviation / 2, p, prompts, exact)


def _sampled_p(ranks: NDArray[np.int64], deviation: int, permutations: int | None, seed: int) -> float:
    """Return the p-value by random permutations, or for much data that of a normal sum.

    Args:
        ranks: twice the ranks of the prompts whose values differ, (doses, prompts).
        deviation: twice the observed deviation of L, 0 or more.
        permutations: see `page_trend`.
        seed: likewise.
    """
    doses, prompts = ranks.shape
    weights = np.arange(1, doses + 1)
    if permutations is None and prompts >= MANY and ranks.size * SAMPLED > MOVED:
        spread = float(((ranks - (doses + 1)) ** 2).sum()) * doses * (doses + 1) / 12
        return max(2 * float(stats.norm.sf(deviation / spread**0.5)), 1 / (1 + SAMPLED))
    permutations = permutations or SAMPLED
    generator, order = np.random.default_rng(seed), ranks.T.copy()
    beyond: int = sum(
        abs(int((generator.permuted(order, axis=1) @ weights).sum()) - prompts * _centre(doses)) >= deviation
        for _ in range(permutations)
    )
    return (1 + beyond) / (1 + permutations)


def _centre(doses: int) -> int:
    """Return twice the expectation of a prompt's L: doses (doses + 1)² / 2, a whole number."""
    return doses * (doses + 1) ** 2 // 2


@lru_cache(maxsize=256)
def _distribution(pattern: tuple[int, ...]) -> Floats:
    """Return the probabilities of twice a prompt's deviation from -m to m; m is the largest without ties."""
    doses = len(pattern)
    largest = doses * (doses**2 - 1) // 6
    orders = np.array(list(all_orders(pattern)))
    deviations = orders @ np.arange(1, doses + 1) - _centre(doses)
    found: Floats = np.bincount(deviations + largest, minlength=2 * largest + 1) / factorial(doses)
    return found


def _exact_p(patterns: Mapping[tuple[int, ...], int], deviation: int) -> float:
    """Return the probability of a deviation at least as far from 0 as observed, which is symmetric around 0."""
    single = [_distribution(pattern) for pattern in patterns]
    counts = np.array(list(patterns.values()))
    largest = len(single[0]) // 2
    steps = np.arange(-largest, largest + 1)
    tops = np.array([steps[d > 0].max() for d in single])
    if deviation >= int(counts @ tops):  # every prompt has its most extreme order
        log_p = float(counts @ np.log([d[d > 0][-1] for d in single]))
        return max(min(2 * float(np.exp(log_p)), 1.0), TINY)
    tilt = _tilt(single, counts, tops, deviation)
    tilted = [_tilted(d, top, tilt) for d, top in zip(single, tops, strict=True)]
    masses = np.array([t.sum() for t in tilted])
    size = int(counts.sum()) * 2 * largest + 1
    length = 1 << (size - 1).bit_length()
    spectrum = np.ones(length // 2 + 1, dtype=complex)
    for one, mass, count in zip(tilted, masses, counts, strict=True):
        spectrum *= np.fft.rfft(one / mass, length) ** int(count)
    total = np.fft.irfft(spectrum, length)[:size]
    place = np.arange(size) - int(counts.sum()) * largest
    tail = place >= deviation
    # Undo the tilt: the tail is e^(K(t) - t·observed) times a sum of terms of ordinary size.
    log_mass = float(counts @ (np.log(masses) + tilt * tops)) - tilt * deviation
    terms = np.maximum(total[tail], 0.0) * np.exp(-tilt * (place[tail] - deviation))
    return float(max(min(2 * np.exp(log_mass) * terms.sum(), 1.0), TINY))


def _tilted(distribution: Floats, top: int, tilt: float) -> Floats:
    """Return the distribution times e^(tilt·(deviation - top)), which is at most 1 up to its highest deviation."""
    largest = len(distribution) // 2
    steps = np.arange(-largest, largest + 1)
    weighted: Floats = distribution * np.exp(tilt * np.minimum(steps - top, 0))
    return weighted


def _tilt(single: Sequence[Floats], counts: NDArray[np.int64], tops: NDArray[np.int64], deviation: int) -> float:
    """Return the exponential tilt that makes the observed deviation the expected one, by bisection."""
    largest = len(single[0]) // 2
    steps = np.arange(-largest, largest + 1)

    def expected(tilt: float) -> float:
        weights = [_tilted(d, top, tilt) for d, top in zip(single, tops, strict=True)]
        return float(sum(c * (w @ steps) / w.sum() for c, w in zip(counts, weights, strict=True)))

    low, high = 0.0, 1.0
    while expected(high) < deviation:
        low, high = high, 2 * high
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if expected(middle) < deviation else (low, middle)
    return (low + high) / 2
