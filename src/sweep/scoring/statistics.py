"""Means over prompts with confidence intervals, vectorised over all points of a sweep.

The unit is the prompt: there is one value per prompt, the mean of its samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.special import ndtr, ndtri

from sweep.core.values import Floats

Limits = tuple[float, float]

# Number of points whose resampled means are in memory at once: 512 × 2,000 numbers are 8 MB.
BLOCK = 512


@dataclass(frozen=True, slots=True)
class Intervals:
    """Means over prompts of many points, with confidence intervals.

    Attributes:
        mean: (points,); NaN without a value.
        ci_low, ci_high: (points,); NaN without a value, and where a single prompt does not determine the spread.
        n: (points,), number of prompts with a value.
    """

    mean: Floats
    ci_low: Floats
    ci_high: Floats
    n: NDArray[np.int64]


def intervals(
    values: ArrayLike, confidence: float = 0.95, *, yes_or_no: bool = False, resamples: int = 2000, seed: int = 0
) -> Intervals:
    """Return each point's mean over its prompts with its confidence interval: Wilson's or BCa.

    Args:
        values: (points, prompts); NaN marks missing values.
        confidence: level of the intervals.
        yes_or_no: whether the measure is 0 or 1. Points with only such values get Wilson's interval, which does not
            shrink to nothing if all prompts agree. Means over several samples of a prompt can lie between 0 and 1;
            such points get the BCa interval.
        resamples: number of bootstrap resamples.
        seed: of the resamples.

    Raises:
        ValueError: see `bootstrap_bca`.
    """
    table = _table(values)
    exact = is_yes_or_no(table) & yes_or_no
    if exact.all():  # no resampling needed
        n = np.isfinite(table).sum(axis=1)
        mean = np.where(n > 0, np.nansum(table, axis=1) / np.maximum(n, 1), np.nan)
        return Intervals(mean, *wilson(mean, n, confidence), n)
    bca = bootstrap_bca(table, confidence, resamples=resamples, seed=seed)
    low, high = wilson(np.where(exact, bca.mean, np.nan), bca.n, confidence)
    return Intervals(bca.mean, np.where(exact, low, bca.ci_low), np.where(exact, high, bca.ci_high), bca.n)


def paired_difference(
    values: ArrayLike,
    control: ArrayLike,
    confidence: float = 0.95,
    *,
    yes_or_no: bool = False,
    resamples: int = 2000,
    seed: int = 0,
) -> Intervals:
    """Return each point's mean difference from its control, paired by prompt, with its interval.

    The interval is BCa. For yes-or-no measures it is that of Agresti and Min (2005, doi:10.1002/sim.1781) for matched
    proportions: Wald's interval after adding half a prompt to each of the four cells. Like Wilson's interval, it does
    not shrink to nothing if no prompt changes.

    Args:
        values: (points, prompts); NaN marks missing values.
        control: (prompts,) or (points, prompts). Prompts missing on either side are left out.
        confidence: level of the intervals, in (0, 1).
        yes_or_no: whether values that are all 0 or 1 get the interval for matched proportions.
        resamples: number of bootstrap samples.
        seed: seed of the bootstrap.

    Raises:
        ValueError: see `bootstrap_bca`.
    """
    table, other = _table(values), np.asarray(control, dtype=float)
    differences = differences_of(table, other)
    bca = bootstrap_bca(differences, confidence, resamples=resamples, seed=seed)
    exact = is_yes_or_no(table) & is_yes_or_no(np.broadcast_to(other, table.shape)) & yes_or_no & (bca.n > 0)
    gained, lost = (differences > 0).sum(axis=1), (differences < 0).sum(axis=1)
    middle = (gained - lost) / (bca.n + 2)
    variance = gained + lost + 1 - (gained - lost) ** 2 / (bca.n + 2)
    half = ndtri((1 + confidence) / 2) * np.sqrt(variance) / (bca.n + 2)
    low, high = np.maximum(middle - half, -1.0), np.minimum(middle + half, 1.0)
    return Intervals(bca.mean, np.where(exact, low, bca.ci_low), np.where(exact, high, bca.ci_high), bca.n)


def differences_of(values: ArrayLike, control: ArrayLike) -> Floats:
    """Return values less those of the control, with 0 where they differ by rounding errors only, (points, prompts).

    Means of the same samples in another order differ in the last bits. Tests of ranks and signs would count that.

    Args:
        values: (points, prompts).
        control: (prompts,) or (points, prompts).
    """
    table, other = np.asarray(values, dtype=float), np.asarray(control, dtype=float)
    with np.errstate(invalid="ignore"):
        differences = table - other
        rounding = np.abs(differences) <= 1e-12 * np.maximum(np.abs(table), np.abs(other))
    return np.where(rounding & np.isfinite(differences), 0.0, differences)


def is_yes_or_no(values: Floats) -> NDArray[np.bool_]:
    """Return for each row whether all its values are 0 or 1, ignoring NaN, (rows,)."""
    all_are: NDArray[np.bool_] = ((values == 0) | (values == 1) | np.isnan(values)).all(axis=1)
    return all_are


def wilson(share: Floats, n: NDArray[np.int64], confidence: float) -> tuple[Floats, Floats]:
    """Return the bounds of Wilson's score interval (1927, doi:10.2307/2276774) of shares of n; NaN if n is 0."""
    z = float(ndtri((1 + confidence) / 2))
    count = np.where(n > 0, n, np.nan)
    middle = share + z**2 / (2 * count)
    half = z * np.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    low, high = (middle - half) / (1 + z**2 / count), (middle + half) / (1 + z**2 / count)
    return np.where(share == 0, 0.0, low), np.where(share == 1, 1.0, high)


def bootstrap_bca(
    values: ArrayLike, confidence: float = 0.95, *, resamples: int = 2000, seed: int = 0, expand: bool = True
) -> Intervals:
    """Return each point's mean over its prompts with its BCa bootstrap interval (Efron 1987, doi:10.2307/2289144).

    All points with the same number of values share their resamples, so their means are one matrix product. The
    acceleration uses the jackknife, which has a closed form for the mean. If all values are equal, the interval is that
    value. If there is only one value, the bounds are NaN.

    Args:
        values: (points, prompts); NaN marks missing values.
        confidence: level of the interval.
        resamples: number of bootstrap resamples.
        seed: of the resamples.
        expand: whether to widen the interval for small samples: Student's t replaces the normal distribution, and
            n - 1 replaces n (Hesterberg 2015, arXiv:1411.5279). Without this the result equals
            `scipy.stats.bootstrap(method="BCa")`. For 15 normal values, 95 % intervals cover the mean in 94.6 % of
            cases, without this in 91.6 %.

    Raises:
        ValueError: `values` is not two-dimensional, or has infinite entries.
    """
    table = _table(values)
    n = np.isfinite(table).sum(axis=1)
    mean, low, high = (np.full(len(table), np.nan) for _ in range(3))
    for rows, packed in _by_count(table, n):
        centre = packed.mean(axis=1)
        mean[rows] = centre
        if packed.shape[1] == 1:
            continue
        deviations = packed - centre[:, None]
        # Rounding errors of equal values are not spread.
        deviations[np.ptp(packed, axis=1) <= 1e-12 * np.abs(packed).max(axis=1)] = 0.0
        below, above = _bca(deviations, confidence, resamples, seed, expand)
        low[rows], high[rows] = _snapped(centre + below, packed), _snapped(centre + above, packed)
    return Intervals(mean, low, high, n)


def _snapped(bound: Floats, values: Floats) -> Floats:
    """Return the bounds with rounding errors around 0 set to 0."""
    return np.where(np.abs(bound) <= 1e-12 * np.abs(values).max(axis=1), 0.0, bound)


def resampled_counts(n: int, resamples: int, seed: int) -> Floats:
    """Return how often each of n prompts occurs in each resample, (resamples, n); cached and read-only."""
    return _resampled_counts(n, resamples, seed)


@lru_cache(maxsize=16)
def _resampled_counts(n: int, resamples: int, seed: int) -> Floats:
    drawn = np.random.default_rng(seed).integers(n, size=(resamples, n))
    drawn += np.arange(resamples)[:, None] * n
    counts = np.bincount(drawn.ravel(), minlength=resamples * n).reshape(resamples, n).astype(float)
    counts.setflags(write=False)
    return counts


def _table(values: ArrayLike) -> Floats:
    table = np.asarray(values, dtype=float)
    if table.ndim != 2 or np.isinf(table).any():
        raise ValueError(f"values must have shape (points, prompts) and no infinite entries; got {list(table.shape)}")
    return table


def _by_count(table: Floats, n: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Floats]]:
    """Group the rows by their number of values; yield row indices and the values, (rows, count)."""
    for count in np.unique(n[n > 0]):
        same = np.flatnonzero(n == count)
        for start in range(0, len(same), BLOCK):
            rows = same[start : start + BLOCK]
            block = table[rows]
            yield rows, block[~np.isnan(block)].reshape(len(rows), count)


def _bca(deviations: Floats, confidence: float, resamples: int, seed: int, expand: bool) -> tuple[Floats, Floats]:
    """Return the interval bounds, (points,) each, of the mean of centred values, (points, prompts)."""
    n = deviations.shape[1]
    means = deviations @ resampled_counts(n, resamples, seed).T / n
    tie = 1e-12 * np.abs(deviations).max(axis=1, keepdims=True)
    below = ((means < -tie).sum(axis=1) + (means <= tie).sum(axis=1)) / (2 * resamples)
    means.sort(axis=1)
    bias = ndtri(np.clip(below, 0.5 / resamples, 1 - 0.5 / resamples))
    squares = (deviations**2).sum(axis=1)
    acceleration = (deviations**3).sum(axis=1) / np.where(squares > 0, 6 * squares**1.5, 1.0)
    tail = ndtri((1 + confidence) / 2)
    if expand:
        tail = stats.t.ppf((1 + confidence) / 2, n - 1) * math.sqrt(n / (n - 1))
    low, high = (_at(means, ndtr(_corrected(bias, acceleration, side * tail))) for side in (-1, 1))
    return low, high


def _corrected(bias: Floats, acceleration: Floats, tail: float) -> Floats:
    moved = bias + tail
    # Beyond the pole of the correction, take the last value. Only the widest intervals of very few values get there.
    corrected: Floats = bias + moved / np.maximum(1 - acceleration * moved, 1e-9)
    return corrected


def _at(ordered: Floats, share: Floats) -> Floats:
    """Return one quantile per row, linearly interpolated, as `numpy.quantile` does with one share for all rows."""
    position = share * (ordered.shape[1] - 1)
    left = np.floor(position).astype(int)
    right = np.minimum(left + 1, ordered.shape[1] - 1)
    rows = np.arange(len(ordered))
    quantiles: Floats = ordered[rows, left] + (position - left) * (ordered[rows, right] - ordered[rows, left])
    return quantiles
