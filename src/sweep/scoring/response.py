"""Dose–response analysis along one numeric axis: trend, first effective dose, breaking point.

Intervals are percentile bootstraps over prompts. All doses and the control share the resampled prompts, so the means
of all resamples are one matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from sweep.core.values import Floats
from sweep.scoring.dose_thresholds import DoseSeries, breaking_point, first_effective, means_of, observed_means
from sweep.scoring.statistics import resampled_counts

NONE = (float("nan"), float("nan"))
Side = Literal["above", "below", "all"]
SIGNS: dict[Side, int] = {"above": 1, "below": -1, "all": 1}


@dataclass(frozen=True, slots=True)
class Response:
    """Response of one measure along one axis, on one side of the neutral dose.

    Of two doses, the *stronger* is the one farther from the neutral dose, or the larger one without a neutral dose.
    Intervals of doses are in numeric order. A bound is infinite if too many resamples have no such dose among those
    tested; such resamples count as stronger than all tested doses.

    Attributes:
        neutral: dose that changes nothing; None: there is none, and the side is all doses.
        rho: Spearman's rank correlation of strength and mean, negative for a fall on either side; NaN for fewer than
            three doses or a constant mean.
        rho_ci_low, rho_ci_high: its interval; resamples with a constant mean count as 0.
        first_effective: the weakest dose that is effective together with all stronger ones; NaN: there is none. A dose
            is effective if the interval of its difference to the control excludes the noise floor, and the test of no
            difference has p below 1 - confidence.
        first_effective_ci_low, first_effective_ci_high: its interval; NaN if there is no such dose.
        breaking_point: the dose, interpolated linearly, at which the mean first falls below half the control's; NaN
            if it never does, or the control's mean is not above 0.
        breaking_point_ci_low, breaking_point_ci_high: its interval; NaN if there is no breaking point. It does not tell
            where between two tested doses the mean really falls. If nothing is known before the weakest tested
            dose, and its mean is below half already, the point is that dose, and the bound on its weaker side is the
            neutral dose, or infinite without one.
        floor: the mean noise floor.
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
        """Return a copy without a breaking point, for measures where a fall is not a failure."""
        nan = float("nan")
        return replace(self, breaking_point=nan, breaking_point_ci_low=nan, breaking_point_ci_high=nan)


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
    """Describe a measure's response to a dose, separately on each side of the neutral dose.

    The first effective dose is defined like the lowest observed effect concentration in toxicology (OECD Test Guideline
    201, 2006): it has an effect, and so do all stronger doses. Without the second condition, a third of sweeps over ten
    ineffective doses would report one. In resamples, Student's t interval of the resample replaces the interval of the
    observed difference.

    Args:
        doses: (points,), without the control. Points with the same dose are averaged, prompt by prompt.
        values: (points, prompts) of the measure; NaN marks missing values.
        control: (prompts,), the control's values.
        floor: noise floor, 0 or more: how much a second run of the control differs from the first. One number, or the
            absolute difference of each prompt, (prompts,), whose own uncertainty is then included.
        neutral: the dose that changes nothing (1 for a factor, infinity for a signal-to-noise ratio). None: larger
            doses are stronger.
        control_is_neutral: whether the control stands at the neutral dose; it does unless something else changed too.
            If so, a point of the neutral dose is left out, and a breaking point may lie before the weakest dose. If
            not, such a point is the weakest of both sides.
        yes_or_no: whether the measure is 0 or 1; decides the interval of the difference, see `paired_difference`.
        sustained: whether all stronger doses of the side must be effective too.
        confidence: level of the intervals.
        resamples: number of bootstrap resamples.
        seed: of the resamples.

    Returns:
        The response by side: `above` and `below` the neutral dose, if there are doses; `all` if `neutral` is None.

    Raises:
        ValueError: the shapes do not match, a dose is not finite, or a floor is negative.
    """
    x, table, base, floors = _checked(doses, values, control, floor)
    x, table = pool(x, table)
    counts = resampled_counts(len(base), resamples, seed)
    mean_floor = float(np.nanmean(floors)) if isinstance(floors, np.ndarray) else floors
    sides: tuple[Side, ...] = ("all",) if neutral is None else ("above", "below")
    responses: dict[Side, Response] = {}
    for side in sides:
        sign = SIGNS[side]
        strengths, weakest = sign * x, -np.inf if neutral is None else sign * neutral
        if not (strengths > weakest).any():
            continue
        kept = strengths > weakest if control_is_neutral else strengths >= weakest
        order = np.flatnonzero(kept)[::sign]
        series = DoseSeries(strengths[order], table[order], base, floors, counts, confidence, yes_or_no, seed)
        start = weakest if control_is_neutral and np.isfinite(weakest) else None
        # Before the weakest tested dose, the breaking point may be anywhere from the neutral dose on.
        limit = weakest if start is None and series.strengths[0] > weakest else None
        effective, resampled = first_effective(series, sustained)
        breaking = breaking_point(series, start, limit)
        dose_estimates = (
            *_as_dose(effective, resampled, resampled, sign, confidence),
            *_as_dose(*breaking, sign, confidence),
        )
        if len(base) < 2:
            dose_estimates = (dose_estimates[0], *NONE, dose_estimates[3], *NONE)
        responses[side] = Response(neutral, *_trend(series), *dose_estimates, floor=mean_floor)
    return responses


def _checked(
    doses: ArrayLike, values: ArrayLike, control: ArrayLike, floor: float | ArrayLike
) -> tuple[Floats, Floats, Floats, float | Floats]:
    x, table, base, floors = (np.asarray(array, dtype=float) for array in (doses, values, control, floor))
    if x.ndim != 1 or base.ndim != 1 or table.shape != (len(x), len(base)) or floors.shape not in ((), base.shape):
        shapes = ", ".join(str(list(array.shape)) for array in (x, table, base, floors))
        raise ValueError(f"the shapes of doses, values, control and floor do not match: {shapes}")
    if not np.isfinite(x).all() or (floors < 0).any():
        raise ValueError("doses must be finite, and floors must not be negative")
    return x, table, base, floors if floors.ndim else float(floors)


def pool(x: Floats, table: Floats) -> tuple[Floats, Floats]:
    """Average points of the same dose, prompt by prompt.

    Args:
        x: doses, (points,).
        table: (points, prompts); NaN marks missing values.

    Returns:
        The unique doses, ascending, and their values, (doses, prompts).
    """
    unique = np.unique(x)
    pooled = np.full((len(unique), table.shape[1]), np.nan)
    for row, dose in enumerate(unique):
        same = table[x == dose]
        counts = (~np.isnan(same)).sum(axis=0)
        pooled[row, counts > 0] = np.nansum(same, axis=0)[counts > 0] / counts[counts > 0]
    return unique, pooled


def _trend(series: DoseSeries) -> tuple[float, float, float]:
    means = observed_means(series.values)
    kept = ~np.isnan(means)
    if kept.sum() < 3 or np.ptp(means[kept]) == 0:
        return float("nan"), *NONE
    x = series.strengths[kept]
    rho = float(_spearman(x, means[kept, None])[0])
    resampled = _spearman(x, means_of(series.values[kept], series.counts))
    if len(series.control) < 2:  # one prompt does not tell the spread over prompts
        return rho, *NONE
    low, high = np.nanquantile(resampled, _tails(series.confidence))
    return rho, float(low), float(high)


def _spearman(x: Floats, y: Floats) -> Floats:
    """Return the rank correlations of x, (points,), with the columns of y, (points, columns); 0 for a constant one."""
    a = stats.rankdata(x)
    # Rounded, so that rounding errors do not rank equal values.
    b = stats.rankdata(np.round(y / (np.nanmax(np.abs(y)) or 1.0), 12), axis=0, nan_policy="propagate")
    a, b = a - a.mean(), b - b.mean(axis=0)
    size = np.sqrt((a @ a) * (b * b).sum(axis=0))
    rho: Floats = (a @ b) / np.where(size == 0, 1.0, size)
    return rho


def _as_dose(
    strength: float, weakest: Floats, strongest: Floats, sign: int, confidence: float
) -> tuple[float, float, float]:
    """Return the dose of a strength, and the bounds of its interval, from the range of strengths of each resample."""
    if np.isnan(strength):
        return float("nan"), *NONE
    # Quantiles are not interpolated, since some resamples are infinite.
    bounds = [
        sign * float(np.quantile(values, tail, method="inverted_cdf"))
        for values, tail in zip((weakest, strongest), _tails(confidence), strict=True)
    ]
    return sign * strength, min(bounds), max(bounds)


def _tails(confidence: float) -> Floats:
    return np.array([(1 - confidence) / 2, (1 + confidence) / 2])
