"""Dose and response along one numeric axis: is there a trend, where does it begin, where does quality break.

Intervals are percentile bootstraps over prompts: the same resampled prompts for all doses and the control, so that the
means of all resamples are one matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from sweep.scoring.significance import p_values
from sweep.scoring.statistics import bootstrap_bca, paired_difference, resampled_counts
from sweep.scoring.values import Floats

NONE = (float("nan"), float("nan"))
PERMUTATIONS = 999
Bools = NDArray[np.bool_]
Side = Literal["above", "below", "all"]
SIGNS: dict[Side, int] = {"above": 1, "below": -1, "all": 1}


@dataclass(frozen=True, slots=True)
class Response:
    """What one measure does along one axis, on one side of the neutral dose.

    Of two doses the *stronger* is the one farther from the neutral dose, or the larger where there is no neutral one.
    Intervals of doses are ordered as numbers.  A bound is infinite where too many resamples have no such dose among
    those that were tried (they count as stronger than all of them).

    Attributes:
        neutral: the dose that changes nothing; None: there is none, and the side is all doses.
        rho: Spearman's rank correlation of strength and mean, so that a fall is negative on either side; NaN for fewer
            than three doses or a constant mean.
        rho_ci_low, rho_ci_high: its interval; resamples with a constant mean count as 0.
        first_effective: the weakest dose at which, and at all stronger ones, the interval of the difference to the
            control is clear of the floor and the test of no difference has p below 1 - confidence; NaN: there is none.
        first_effective_ci_low, first_effective_ci_high: its interval; NaN where there is no such dose.
        breaking_point: the dose, interpolated linearly, at which the mean first falls below half the control's; NaN
            if it never does, or the control's mean is not above 0.
        breaking_point_ci_low, breaking_point_ci_high: its interval; NaN where there is no breaking point.
        floor: the mean floor.
    """

    neutral: float | None
    rho: float
    rho_ci_low: float
    rho_ci_high: float
    first_effective: float
    first_effective_ci_low: float
    first_effective_ci_high: float
    breaking_point: float
    breaking_point_ci_low: float
    breaking_point_ci_high: float
    floor: float

    def without_breaking_point(self) -> Response:
        """Return the response of a measure that does not break when it falls."""
        nan = float("nan")
        return replace(self, breaking_point=nan, breaking_point_ci_low=nan, breaking_point_ci_high=nan)


@dataclass(frozen=True, slots=True)
class _Series:
    """One side: [doses] by strength, [doses, prompts], [prompts], and the resamples' [resamples, prompts].

    A strength is the dose, or below the neutral one its negative: ordered and spaced like the distance from there, also
    where that is infinite, and the dose can be had back to the last digit.
    """

    strengths: Floats
    values: Floats
    control: Floats
    floor: float | Floats
    counts: Floats
    confidence: float
    yes_or_no: bool
    seed: int


def dose_response(
    doses: ArrayLike,
    values: ArrayLike,
    control: ArrayLike,
    floor: float | ArrayLike = 0.0,
    *,
    neutral: float | None = None,
    control_is_neutral: bool = True,
    yes_or_no: bool = False,
    sustained: bool = True,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[Side, Response]:
    """Describe a measure's response to a dose, on each side of the neutral one by itself.

    The first effective dose is defined like toxicology's lowest observed effect concentration (OECD Test Guideline 201,
    2006): it has an effect, and so have all the stronger ones.  The weakest that is clear, whatever comes after it,
    would be found among ten doses that do nothing in a third of sweeps.  In resamples, Student's t interval of the
    resample takes the place of the observed difference's own.

    Args:
        doses: [points]; points with the same dose are averaged, prompt by prompt.  The control is none of them.
        values: [points, prompts] of the measure, NaN where there is none.
        control: [prompts], the control's.
        floor: how far from the control a second run of the control is, 0 or more: one number, or its absolute
            difference for each prompt, [prompts], whose own uncertainty then counts too.
        neutral: the dose that changes nothing (1 for a factor, infinity for a signal-to-noise ratio); None: the larger
            a dose is, the stronger.
        control_is_neutral: whether the control stands at the neutral dose, as it does unless something else has been
            changed too.  Then a point of that very dose is left out, and a breaking point may lie before the weakest
            dose; else such a point is the weakest of both sides.
        yes_or_no: whether the measure is 0 or 1; decides the interval of the difference, as in `paired_difference`.
        sustained: whether all stronger doses of the side must be clear too.
        confidence, resamples, seed: of the intervals.

    Returns:
        The response by side: `above` and `below` the neutral dose, where there are doses; `all` if it is None.

    Raises:
        ValueError: shapes do not fit, a dose is not finite, or a floor is negative.
    """
    x, table, base, least = _checked(doses, values, control, floor)
    x, table = _pooled(x, table)
    counts = resampled_counts(len(base), resamples, seed)
    mean_floor = float(np.nanmean(least)) if isinstance(least, np.ndarray) else least
    sides: tuple[Side, ...] = ("all",) if neutral is None else ("above", "below")
    found: dict[Side, Response] = {}
    for side in sides:
        sign = SIGNS[side]
        strengths, weakest = sign * x, -np.inf if neutral is None else sign * neutral
        if not (strengths > weakest).any():
            continue
        kept = strengths > weakest if control_is_neutral else strengths >= weakest
        order = np.flatnonzero(kept)[::sign]
        series = _Series(strengths[order], table[order], base, least, counts, confidence, yes_or_no, seed)
        start = weakest if control_is_neutral and np.isfinite(weakest) else None
        effective, breaking = _first_effective(series, sustained), _breaking_point(series, start)
        doses_found = (*_as_dose(*effective, sign, confidence), *_as_dose(*breaking, sign, confidence))
        if len(base) < 2:
            doses_found = (doses_found[0], *NONE, doses_found[3], *NONE)
        found[side] = Response(neutral, *_trend(series), *doses_found, floor=mean_floor)
    return found


def _checked(
    doses: ArrayLike, values: ArrayLike, control: ArrayLike, floor: float | ArrayLike
) -> tuple[Floats, Floats, Floats, float | Floats]:
    x, table, base, least = (np.asarray(given, dtype=float) for given in (doses, values, control, floor))
    if x.ndim != 1 or base.ndim != 1 or table.shape != (len(x), len(base)) or least.shape not in ((), base.shape):
        shapes = ", ".join(str(list(given.shape)) for given in (x, table, base, least))
        raise ValueError(f"doses, values, control and floor do not fit: {shapes}")
    if not np.isfinite(x).all() or (least < 0).any():
        raise ValueError("doses must be finite, and floors not negative")
    return x, table, base, least if least.ndim else float(least)


def _pooled(x: Floats, table: Floats) -> tuple[Floats, Floats]:
    """Average points of the same dose, prompt by prompt; doses ascend."""
    unique = np.unique(x)
    pooled = np.full((len(unique), table.shape[1]), np.nan)
    for row, dose in enumerate(unique):
        same = table[x == dose]
        known = (~np.isnan(same)).sum(axis=0)
        pooled[row, known > 0] = np.nansum(same, axis=0)[known > 0] / known[known > 0]
    return unique, pooled


def _means(values: Floats, counts: Floats) -> Floats:
    """Return the mean over the prompts that have a value: of each row, in each resample; [..., resamples]."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        means: Floats = (np.where(known, values, 0.0) @ counts.T) / (known @ counts.T)
    return means


def _observed(values: Floats) -> Floats:
    return _means(values, np.ones((1, values.shape[-1])))[..., 0]


def _trend(series: _Series) -> tuple[float, float, float]:
    means = _observed(series.values)
    kept = ~np.isnan(means)
    if kept.sum() < 3 or np.ptp(means[kept]) == 0:
        return float("nan"), *NONE
    x = series.strengths[kept]
    rho = float(_spearman(x, means[kept, None])[0])
    resampled = _spearman(x, _means(series.values[kept], series.counts))
    if len(series.control) < 2:  # of one prompt nothing can be said but what it did
        return rho, *NONE
    low, high = np.nanquantile(resampled, _tails(series.confidence))
    return rho, float(low), float(high)


def _spearman(x: Floats, y: Floats) -> Floats:
    """Return the rank correlations of x, [points], with the columns of y, [points, columns]; 0 for a constant one."""
    a = stats.rankdata(x)
    # Rounding must not rank what is equal.
    b = stats.rankdata(np.round(y / (np.nanmax(np.abs(y)) or 1.0), 12), axis=0, nan_policy="propagate")
    a, b = a - a.mean(), b - b.mean(axis=0)
    size = np.sqrt((a @ a) * (b * b).sum(axis=0))
    rho: Floats = (a @ b) / np.where(size == 0, 1.0, size)
    return rho


def _first_effective(series: _Series, sustained: bool) -> tuple[float, Floats]:
    """Return the weakest strength that is clear of the floor: observed, NaN if none is; in each resample, infinity."""
    clear = _clear(series)
    found = float(_weakest(series.strengths, clear[:, None], sustained)[0])
    resampled = _weakest(series.strengths, _resampled_clear(series), sustained)
    return found if np.isfinite(found) else float("nan"), resampled


def _weakest(strengths: Floats, clear: Bools, sustained: bool) -> Floats:
    if sustained:
        clear = np.logical_and.accumulate(clear[::-1], axis=0)[::-1]
    return np.where(clear.any(axis=0), strengths[clear.argmax(axis=0)], np.inf)


def _clear(series: _Series) -> Bools:
    confidence, resamples, seed = series.confidence, len(series.counts), series.seed
    if isinstance(series.floor, float):
        found = paired_difference(
            series.values,
            series.control,
            confidence,
            yes_or_no=series.yes_or_no,
            resamples=resamples,
            seed=seed,
        )
        # Of few prompts a bootstrap's interval is too short: no dose counts that the test would not let count.
        p = p_values(series.values, series.control, yes_or_no=series.yes_or_no, permutations=PERMUTATIONS, seed=seed)
        apart = (found.ci_low > series.floor) | (found.ci_high < -series.floor)
        return np.asarray(apart & (p <= 1 - confidence))
    differences = series.values - series.control
    above = bootstrap_bca(differences - series.floor, confidence, resamples=resamples, seed=seed)
    below = bootstrap_bca(differences + series.floor, confidence, resamples=resamples, seed=seed)
    return np.asarray((above.ci_low > 0) | (below.ci_high < 0))


def _resampled_clear(series: _Series) -> Bools:
    differences = series.values - series.control
    above, below = differences - series.floor, differences + series.floor
    return np.asarray((_t_bound(above, series, -1) > 0) | (_t_bound(below, series, 1) < 0))


def _t_bound(values: Floats, series: _Series, side: int) -> Floats:
    """Return a bound of Student's t interval of each row in each resample, [rows, resamples]."""
    # Around the observed mean, lest squares of large values cancel.
    centre = _observed(values)[:, None]
    n = (~np.isnan(values)) @ series.counts.T
    means, squares = _means(values - centre, series.counts), _means((values - centre) ** 2, series.counts)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.sqrt(np.maximum(squares - means**2, 0.0) / (n - 1))
        sizes, place = np.unique(n, return_inverse=True)
        t = stats.t.ppf((1 + series.confidence) / 2, sizes - 1)[place].reshape(n.shape)
        bound: Floats = centre + means + side * t * error
    return bound


def _breaking_point(series: _Series, start: float | None) -> tuple[float, Floats]:
    """Return the strength at which the mean falls below half the control's, as `_first_effective` does.

    Args:
        series: doses by strength.
        start: the strength at which the control stands; None: nowhere, and the first dose may lie below already.
    """
    paired = np.where(np.isnan(series.control), np.nan, series.values)
    # The first column is what was observed.
    counts = np.vstack([np.ones((1, series.counts.shape[1])), series.counts])
    control, means = _means(series.control, counts), _means(paired, counts)
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
    found = strengths[before] + share * (strengths[first] - strengths[before])
    found = np.where(below.any(axis=0) & (control > 0), found, np.inf)
    return float(found[0]) if np.isfinite(found[0]) else float("nan"), found[1:]


def _as_dose(strength: float, resampled: Floats, sign: int, confidence: float) -> tuple[float, float, float]:
    """Return the dose of a strength that was found, and the bounds of its interval."""
    if np.isnan(strength):
        return float("nan"), *NONE
    # A share of the resamples, not interpolated: some are infinite.
    bounds = sign * np.quantile(resampled, _tails(confidence), method="inverted_cdf")
    return sign * strength, float(bounds.min()), float(bounds.max())


def _tails(confidence: float) -> Floats:
    return np.array([(1 - confidence) / 2, (1 + confidence) / 2])
