"""Thresholds of a response: the first effective dose and the breaking point, observed and in each resample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sweep.core.values import Floats
from sweep.scoring.significance import p_values
from sweep.scoring.statistics import bootstrap_bca, paired_difference

PERMUTATIONS = 999
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class DoseSeries:
    """Data of one side, by strength.

    A strength is the dose, or its negative below the neutral dose. This orders and spaces doses like their distance
    from the neutral one, also if that is infinite, and the exact dose can be recovered.

    Attributes:
        strengths: (doses,), ascending.
        values: (doses, prompts).
        control: (prompts,).
        floor: noise floor, one number or (prompts,).
        counts: how often each resample has each prompt: (resamples, prompts).
    """

    strengths: Floats
    values: Floats
    control: Floats
    floor: float | Floats
    counts: Floats
    confidence: float
    yes_or_no: bool
    seed: int


def means_of(values: Floats, counts: Floats) -> Floats:
    """Return each row's mean over the prompts that have a value, in each resample, (..., resamples)."""
    means: Floats
    present = ~np.isnan(values)
    if present.all():  # one product instead of two
        means = values @ counts.T / counts.sum(axis=1)
        return means
    with np.errstate(invalid="ignore"):
        means = (np.where(present, values, 0.0) @ counts.T) / (present @ counts.T)
    return means


def observed_means(values: Floats) -> Floats:
    """Return each row's mean over the prompts that have a value."""
    return means_of(values, np.ones((1, values.shape[-1])))[..., 0]


def first_effective(series: DoseSeries, sustained: bool) -> tuple[float, Floats]:
    """Return the weakest effective strength: observed (NaN: none), and in each resample (infinity: none)."""
    clear = _clear(series)
    observed = float(_weakest(series.strengths, clear[:, None], sustained)[0])
    resampled = _weakest(series.strengths, _resampled_clear(series), sustained)
    return observed if np.isfinite(observed) else float("nan"), resampled


def _weakest(strengths: Floats, clear: Bools, sustained: bool) -> Floats:
    if sustained:
        clear = np.logical_and.accumulate(clear[::-1], axis=0)[::-1]
    return np.where(clear.any(axis=0), strengths[clear.argmax(axis=0)], np.inf)


def _clear(series: DoseSeries) -> Bools:
    confidence, resamples, seed = series.confidence, len(series.counts), series.seed
    if isinstance(series.floor, float):
        difference = paired_difference(
            series.values,
            series.control,
            confidence,
            yes_or_no=series.yes_or_no,
            resamples=resamples,
            seed=seed,
        )
        # With few prompts the bootstrap interval is too short, so a dose must pass the test too.
        p = p_values(series.values, series.control, yes_or_no=series.yes_or_no, permutations=PERMUTATIONS, seed=seed)
        apart = (difference.ci_low > series.floor) | (difference.ci_high < -series.floor)
        return np.asarray(apart & (p <= 1 - confidence))
    differences = series.values - series.control
    above = bootstrap_bca(differences - series.floor, confidence, resamples=resamples, seed=seed)
    below = bootstrap_bca(differences + series.floor, confidence, resamples=resamples, seed=seed)
    return np.asarray((above.ci_low > 0) | (below.ci_high < 0))


def _resampled_clear(series: DoseSeries) -> Bools:
    differences = series.values - series.control
    above, below = differences - series.floor, differences + series.floor
    return np.asarray((_t_bound(above, series, -1) > 0) | (_t_bound(below, series, 1) < 0))


def _t_bound(values: Floats, series: DoseSeries, side: int) -> Floats:
    """Return a bound of Student's t interval of each row in each resample, (rows, resamples)."""
    # Centred on the observed mean, so that squares of large values do not cancel.
    centre = observed_means(values)[:, None]
    n = (~np.isnan(values)) @ series.counts.T
    means, squares = means_of(values - centre, series.counts), means_of((values - centre) ** 2, series.counts)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.sqrt(np.maximum(squares - means**2, 0.0) / (n - 1))
        sizes, place = np.unique(n, return_inverse=True)
        t = stats.t.ppf((1 + series.confidence) / 2, sizes - 1)[place].reshape(n.shape)
        bound: Floats = centre + means + side * t * error
    return bound


def breaking_point(series: DoseSeries, start: float | None, limit: float | None) -> tuple[float, Floats, Floats]:
    """Return the strength at which the mean falls below half the control's.

    Args:
        series: the data.
        start: the control's strength; None: it has none.
        limit: if the mean is below half at the weakest dose already, how weak the dose may be at which it fell; None:
            no weaker than that dose.

    Returns:
        The observed strength (NaN: none), and the weakest and the strongest that each resample allows (infinity: none).
    """
    # `start` is the control's strength. Without one, the first dose may be below half already.
    paired = np.where(np.isnan(series.control), np.nan, series.values)
    # The first column is the observed data.
    counts = np.vstack([np.ones((1, series.counts.shape[1])), series.counts])
    control, means = means_of(series.control, counts), means_of(paired, counts)
    strengths = series.strengths
    if start is not None:
        strengths, means = np.concatenate([[start], strengths]), np.vstack([control[None], means])
    half = control / 2
    below = means < half
    first = below.argmax(axis=0)
    before, columns = np.maximum(first - 1, 0), np.arange(means.shape[1])
    drop = means[before, columns] - means[first, columns]
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(drop > 0, (means[before, columns] - half) / drop, 1.0)
    breaking = strengths[before] + share * (strengths[first] - strengths[before])
    weakest = breaking if limit is None else np.where(below[0], limit, breaking)
    breaks = below.any(axis=0) & (control > 0)
    observed = float(breaking[0]) if breaks[0] else float("nan")
    return observed, np.where(breaks, weakest, np.inf)[1:], np.where(breaks, breaking, np.inf)[1:]
