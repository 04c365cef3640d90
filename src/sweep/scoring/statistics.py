"""Means over prompts with confidence intervals, for one point or for all points of a sweep at once.

The prompt is the unit: values are one per prompt, samples of one prompt averaged beforehand.
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

from sweep.scoring.values import Floats

Limits = tuple[float, float]

# Points whose resampled means are held at once: 512 × 2,000 numbers are 8 MB.
BLOCK = 512


@dataclass(frozen=True, slots=True)
class Intervals:
    """Means over prompts of many points, with confidence intervals.

    Attributes:
        mean, ci_low, ci_high: [points]; NaN without a value, bounds also where one prompt says nothing of spread.
        n: [points], how many prompts have a value.
    """

    mean: Floats
    ci_low: Floats
    ci_high: Floats
    n: NDArray[np.int64]


def intervals(
    values: ArrayLike, confidence: float = 0.95, *, yes_or_no: bool = False, resamples: int = 2000, seed: int = 0
) -> Intervals:
    """Return each point's mean over its prompts with its interval: Wilson's or BCa.

    Args:
        values: [points, prompts], NaN where there is none.
        confidence: of the intervals.
        yes_or_no: whether the measure is 0 or 1.  Points whose values all are (samples of one prompt may average to
            something between) get Wilson's interval, which does not shrink to nothing when all prompts agree.
        resamples, seed: of the bootstrap.

    Raises:
        ValueError: as of `bootstrap_bca`.
    """
    table = _table(values)
    exact = is_yes_or_no(table) & yes_or_no
    if exact.all():  # nothing to resample
        n = np.isfinite(table).sum(axis=1)
        mean = np.where(n > 0, np.nansum(table, axis=1) / np.maximum(n, 1), np.nan)
        return Intervals(mean, *wilson(mean, n, confidence), n)
    found = bootstrap_bca(table, confidence, resamples=resamples, seed=seed)
    low, high = wilson(np.where(exact, found.mean, np.nan), found.n, confidence)
    return Intervals(found.mean, np.where(exact, low, found.ci_low), np.where(exact, high, found.ci_high), found.n)


def paired_difference(
    values: ArrayLike,
    control: ArrayLike,
    confidence: float = 0.95,
    *,
    yes_or_no: bool = False,
    resamples: int = 2000,
    seed: int = 0,
) -> Intervals:
    """Return each point's mean difference to its control, prompt by prompt, with its interval.

    The interval is BCa.  For yes-or-no measures it is that of Agresti and Min (2005, doi:10.1002/sim.1781) for matched
    proportions: Wald's after half a prompt was added to each of the four cells, which, like Wilson's, does not shrink
    to nothing where no prompt changes.

    Args:
        values: [points, prompts], NaN where there is none.
        control: [prompts] or [points, prompts]; prompts that either side lacks are left out.
        confidence, yes_or_no, resamples, seed: as of `intervals`.

    Raises:
        ValueError: as of `bootstrap_bca`.
    """
    table, other = _table(values), np.asarray(control, dtype=float)
    differences = table - other
    found = bootstrap_bca(differences, confidence, resamples=resamples, seed=seed)
    exact = is_yes_or_no(table) & is_yes_or_no(np.broadcast_to(other, table.shape)) & yes_or_no & (found.n > 0)
    gained, lost = (differences > 0).sum(axis=1), (differences < 0).sum(axis=1)
    middle = (gained - lost) / (found.n + 2)
    variance = gained + lost + 1 - (gained - lost) ** 2 / (found.n + 2)
    half = ndtri((1 + confidence) / 2) * np.sqrt(variance) / (found.n + 2)
    low, high = np.maximum(middle - half, -1.0), np.minimum(middle + half, 1.0)
    return Intervals(found.mean, np.where(exact, low, found.ci_low), np.where(exact, high, found.ci_high), found.n)


def is_yes_or_no(values: Floats) -> NDArray[np.bool_]:
    """Return for each row whether all its values are 0 or 1, NaN aside."""
    all_are: NDArray[np.bool_] = ((values == 0) | (values == 1) | np.isnan(values)).all(axis=1)
    return all_are


def wilson(share: Floats, n: NDArray[np.int64], confidence: float) -> tuple[Floats, Floats]:
    """Return the bounds of Wilson's score interval (1927, doi:10.2307/2276774) of shares of n; NaN where n is 0."""
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

    All points with as many values share their resamples, so that their means are one matrix product; the jackknife, on
    which the acceleration rests, has a closed form for the mean.  Where all values are the same the interval is that
    value; where there is but one, its bounds are NaN.

    Args:
        values: [points, prompts], NaN where there is none.
        confidence: of the interval.
        resamples: how many.
        seed: of the resamples.
        expand: whether to widen the interval for small samples, by Student's t for the normal distribution and n - 1
            for n (Hesterberg 2015, arXiv:1411.5279).  Without this it is what
            `scipy.stats.bootstrap(method="BCa")` gives, which at 95 % covers the mean of 15 normal values in 91.6 % of
            cases, with it in 94.6 %.

    Raises:
        ValueError: `values` is not two-dimensional, or infinite somewhere.
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
        # What rounding leaves of equal values is no spread.
        deviations[np.ptp(packed, axis=1) <= 1e-12 * np.abs(packed).max(axis=1)] = 0.0
        below, above = _bca(deviations, confidence, resamples, seed, expand)
        low[rows], high[rows] = _snapped(centre + below, packed), _snapped(centre + above, packed)
    return Intervals(mean, low, high, n)


def _snapped(bound: Floats, values: Floats) -> Floats:
    """Return bounds with what rounding has left of 0 as 0."""
    return np.where(np.abs(bound) <= 1e-12 * np.abs(values).max(axis=1), 0.0, bound)


def resampled_counts(n: int, resamples: int, seed: int) -> Floats:
    """Return how often each of n prompts is in each of so many resamples of n, [resamples, n]; read-only."""
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
        raise ValueError(f"values must be [points, prompts] and not infinite; got {list(table.shape)}")
    return table


def _by_count(table: Floats, n: NDArray[np.int64]) -> Iterator[tuple[NDArray[np.int64], Floats]]:
    """Group the rows by how many values they have: their numbers, and those values, [rows, count]."""
    for count in np.unique(n[n > 0]):
        same = np.flatnonzero(n == count)
        for start in range(0, len(same), BLOCK):
            rows = same[start : start + BLOCK]
            own = table[rows]
            yield rows, own[~np.isnan(own)].reshape(len(rows), count)


def _bca(deviations: Floats, confidence: float, resamples: int, seed: int, expand: bool) -> tuple[Floats, Floats]:
    """Return the bounds, [points] each, of the mean of deviations from the mean, [points, prompts]."""
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
    # Beyond the pole of the correction, which only the widest intervals of the fewest values reach, is the last value.
    corrected: Floats = bias + moved / np.maximum(1 - acceleration * moved, 1e-9)
    return corrected


def _at(ordered: Floats, share: Floats) -> Floats:
    """Return each row's quantile, linearly interpolated, as `numpy.quantile` does for one share for all rows."""
    place = share * (ordered.shape[1] - 1)
    left = np.floor(place).astype(int)
    right = np.minimum(left + 1, ordered.shape[1] - 1)
    rows = np.arange(len(ordered))
    found: Floats = ordered[rows, left] + (place - left) * (ordered[rows, right] - ordered[rows, left])
    return found
