"""Pareto front: points that no other point beats in both of two measures."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sweep.core.values import Floats
from sweep.scoring.statistics import resampled_counts


def pareto_front(first: ArrayLike, second: ArrayLike) -> NDArray[np.bool_]:
    """Return which points are not dominated, (points, ...); higher is better in both.

    A point is dominated if another one is at least as good in both and better in one. Equal points are both on the
    front. A point with NaN is not on it.

    Args:
        first: (points,) or (points, resamples).
        second: likewise.
    """
    x, y = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    front: NDArray[np.bool_] = ~(np.isnan(x) | np.isnan(y))
    for other in range(len(x)):
        with np.errstate(invalid="ignore"):
            no_worse = (x[other] >= x) & (y[other] >= y)
            better = (x[other] > x) | (y[other] > y)
        front &= ~(no_worse & better)
    return front


def front_shares(first: ArrayLike, second: ArrayLike, *, resamples: int = 2000, seed: int = 0) -> Floats:
    """Return in which share of resamples of the prompts each point is on the Pareto front, (points,).

    Args:
        first: (points, prompts), higher is better; NaN marks missing values.
        second: likewise, of the same prompts.
        resamples: number of bootstrap resamples; all points share the resampled prompts.
        seed: of the resamples.
    """
    means = []
    for values in (np.asarray(first, dtype=float), np.asarray(second, dtype=float)):
        counts = resampled_counts(values.shape[1], resamples, seed)
        present = ~np.isnan(values)
        with np.errstate(invalid="ignore", divide="ignore"):
            # Rounded, so that rounding errors do not make one of two equal points better.
            means.append(np.round((np.where(present, values, 0.0) @ counts.T) / (present @ counts.T), 12))
    shares: Floats = pareto_front(means[0], means[1]).mean(axis=1)
    return shares
