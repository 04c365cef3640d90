"""Responses that turn: the best dose, the doses that are as good, and a test whether the response is monotone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import isotonic_regression

from sweep.core.values import Floats
from sweep.scoring.significance import smallest_p
from sweep.scoring.statistics import resampled_counts

Shape = Literal["flat", "rises", "falls", "neither rises nor falls", "rises, then falls", "falls, then rises"]
FEW_DOSES = 40
LEVEL = 0.05  # a p-value of a monotone response below it means that the response turns


@dataclass(frozen=True, slots=True)
class BestDose:
    """The best of several doses.

    Attributes:
        dose: the dose with the best mean.
        ci_low, ci_high: its percentile bootstrap interval, among the tested doses; NaN for a single prompt.
        mean: its mean.
        within_low, within_high: the doses next to each other around it whose means are at most the tolerance worse.
        confirmed_low, confirmed_high: those of them that are as good in at least the share `confidence` of resamples,
            each compared with the best dose of the resample. NaN if not even the best dose is.
    """

    dose: float
    ci_low: float
    ci_high: float
    mean: float
    within_low: float
    within_high: float
    confirmed_low: float
    confirmed_high: float


@dataclass(frozen=True, slots=True)
class Monotone:
    """Test of a monotone response.

    Attributes:
        p: p-value of a response that only rises or only falls; small: it turns.
        shape: the shape of the means: `flat` if all are equal, else the nearest monotone one, or with p below `LEVEL`
            where it turns. `neither rises nor falls` if rising and falling means are equally near.
    """

    p: float
    shape: Shape


def best_dose(
    doses: ArrayLike,
    values: ArrayLike,
    tolerance: float,
    *,
    neutral: float | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> BestDose:
    """Return the dose with the highest mean, with its interval and the doses that are as good.

    All doses share the resampled prompts. If doses tie, the one nearest to the neutral dose is reported, and bounds of
    the interval use the lowest and the highest of them.

    Args:
        doses: (doses,), ascending.
        values: (doses, prompts), higher is better. Prompts without a value (NaN) at some dose are left out.
        tolerance: how much worse a mean may be, in units of the values.
        neutral: the dose that changes nothing; None: ties go to the lowest dose.
        confidence: level of the interval.
        resamples: number of bootstrap resamples.
        seed: of the resamples.

    Raises:
        ValueError: the shapes do not match, or no prompt has all values.
    """
    x, table = _checked(doses, values)
    means = table.mean(axis=1)
    near = means >= means.max() - _rounding(table)
    tied = np.flatnonzero(near)
    best = int(tied[0]) if neutral is None else int(tied[np.abs(x[tied] - neutral).argmin()])
    within = _around(best, means >= means[best] - tolerance - _rounding(table))
    if table.shape[1] < 2:
        nan = math.nan
        return BestDose(x[best], nan, nan, means[best], x[within[0]], x[within[1]], nan, nan)
    resampled = _resampled_means(table, resamples, seed)
    top = resampled.max(axis=0) - _rounding(table)
    is_best = resampled >= top
    tails = (1 - confidence) / 2, (1 + confidence) / 2
    low = np.quantile(x[is_best.argmax(axis=0)], tails[0], method="inverted_cdf")
    high = np.quantile(x[len(x) - 1 - is_best[::-1].argmax(axis=0)], tails[1], method="inverted_cdf")
    as_good = (resampled >= top - tolerance).mean(axis=1) >= confidence
    confirmed = (math.nan, math.nan)
    if as_good[best]:
        first, last = _around(best, as_good)
        confirmed = float(x[first]), float(x[last])
    bounds = min(float(low), float(x[best])), max(float(high), float(x[best]))
    return BestDose(float(x[best]), *bounds, float(means[best]), float(x[within[0]]), float(x[within[1]]), *confirmed)


def monotone_test(values: ArrayLike, *, resamples: int = 2000, seed: int = 0) -> Monotone:
    """Test whether a response only rises or only falls: isotonic against unrestricted means, by bootstrap over prompts.

    The statistic is the squared distance of the means from the nearest rising means (isotonic regression). Its null
    distribution comes from the centred bootstrap means, which is the least favourable case: equal means at all doses.
    The same is done for falling means, and p is the larger of the two (Silvapulle and Sen 2005, Constrained Statistical
    Inference, chapter 3; intersection–union of the two). The test is conservative: it rejects monotone responses in at
    most 5 % of cases at p < 0.05. p is at least 1/(resamples + 1), and at least what a test of so few prompts can show
    (`significance.smallest_p`).

    Args:
        values: (doses, prompts), doses in order. Prompts without a value (NaN) at some dose are left out.
        resamples: number of bootstrap resamples.
        seed: of the resamples.

    Returns:
        The test; p is NaN for fewer than two prompts or three doses.

    Raises:
        ValueError: `values` is not two-dimensional, or no prompt has all values.
    """
    _, table = _checked(np.arange(len(np.asarray(values))), values)
    prompts = table.shape[1]
    means = table.mean(axis=1)
    distances = {sign: float(_distance(sign * means[:, None])[0]) for sign in (1, -1)}
    shape = _shape(means, distances, _rounding(table))
    if prompts < 2 or len(table) < 3:
        return Monotone(math.nan, shape)
    if min(distances.values()) <= _rounding(table) ** 2:
        return Monotone(1.0, shape)
    noise = (_resampled_means(table, resamples, seed) - means[:, None]) * math.sqrt(prompts / (prompts - 1))
    ps = [(1 + int((_distance(sign * noise) >= distances[sign]).sum())) / (1 + resamples) for sign in (1, -1)]
    p = max(*ps, min(smallest_p(prompts), 1.0))
    if p < LEVEL:
        ends = sorted((means[0], means[-1]))
        shape = "rises, then falls" if means.max() - ends[1] >= ends[0] - means.min() else "falls, then rises"
    return Monotone(p, shape)


def _shape(means: Floats, distances: Mapping[int, float], rounding: float) -> Shape:
    """Return the shape of means that do not turn.

    Args:
        means: (doses,).
        distances: squared distances of the means from the nearest rising (1) and falling (-1) ones.
        rounding: means that differ by less are equal.
    """
    if np.ptp(means) <= rounding:
        return "flat"
    if math.isclose(distances[1], distances[-1], rel_tol=1e-9):
        return "neither rises nor falls"
    return "rises" if distances[1] < distances[-1] else "falls"


def isotonic(means: Floats) -> Floats:
    """Return the nearest non-decreasing values of each column, in least squares, (doses, columns).

    For up to `FEW_DOSES` doses by the max-min formula (Robertson, Wright and Dykstra 1988), which works on all columns
    at once. It equals `scipy.optimize.isotonic_regression` for each column, which is used for more doses.
    """
    if len(means) > FEW_DOSES:
        return np.stack([isotonic_regression(column).x for column in means.T], axis=1)
    fitted = np.full(means.shape, -np.inf)
    sums = np.vstack([np.zeros((1, means.shape[1])), np.cumsum(means, axis=0)])
    for start in range(len(means)):
        lengths = np.arange(1, len(means) - start + 1)[:, None]
        averages = (sums[start + 1 :] - sums[start]) / lengths
        lowest = np.minimum.accumulate(averages[::-1], axis=0)[::-1]
        fitted[start:] = np.maximum(fitted[start:], lowest)
    return fitted


def _distance(means: Floats) -> Floats:
    squared: Floats = ((means - isotonic(means)) ** 2).sum(axis=0)
    return squared


def _resampled_means(table: Floats, resamples: int, seed: int) -> Floats:
    means: Floats = table @ resampled_counts(table.shape[1], resamples, seed).T / table.shape[1]
    return means


def _around(best: int, good: ArrayLike) -> tuple[int, int]:
    """Return the first and the last of the doses next to each other around the best that are good."""
    flags = np.asarray(good, dtype=bool)
    first = last = best
    while first > 0 and flags[first - 1]:
        first -= 1
    while last < len(flags) - 1 and flags[last + 1]:
        last += 1
    return first, last


def _rounding(table: Floats) -> float:
    return 1e-12 * max(1.0, float(np.abs(table).max()))


def _checked(doses: ArrayLike, values: ArrayLike) -> tuple[Floats, Floats]:
    x, table = np.asarray(doses, dtype=float), np.asarray(values, dtype=float)
    if table.ndim != 2 or x.shape != (len(table),):
        raise ValueError(f"the shapes of doses and values do not match: {list(x.shape)}, {list(table.shape)}")
    complete = table[:, ~np.isnan(table).any(axis=0)]
    if not complete.shape[1]:
        raise ValueError("no prompt has a value at each dose")
    return x, complete
