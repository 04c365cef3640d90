"""Summaries over prompts, with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

Limits = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Summary:
    """A mean over prompts and its confidence interval, whose bounds are NaN where one prompt says nothing of spread."""

    mean: float
    ci_low: float
    ci_high: float
    n: int


def summarise(values: Sequence[float], confidence: float, limits: Limits, yes_or_no: bool = False) -> Summary:
    """Return the mean of one value per prompt, with its interval.

    The interval is Student's t, cut at the limits of what the measure can be; for yes-or-no measures with one answer
    per prompt, Wilson's (1927), which does not shrink to nothing when all prompts agree.
    """
    sample = np.asarray(values, dtype=float)
    mean, n = float(sample.mean()), len(sample)
    if yes_or_no and np.isin(sample, (0.0, 1.0)).all():
        interval = stats.binomtest(int(sample.sum()), n).proportion_ci(confidence, method="wilson")
        return Summary(mean, float(interval.low), float(interval.high), n)
    if n == 1:
        return Summary(mean, math.nan, math.nan, n)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1) * stats.sem(sample))
    low, high = limits
    return Summary(mean, max(mean - half, low), min(mean + half, high), n)
