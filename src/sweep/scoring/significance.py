"""Significance tests of differences from the control, vectorised over all points of a sweep."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from sweep.core.values import Floats
from sweep.scoring.statistics import BLOCK, differences_of, is_yes_or_no

# Up to this many differing prompts, all sign patterns are enumerated.
EXACT = 16


def p_values(
    values: ArrayLike, control: ArrayLike, *, yes_or_no: bool = False, permutations: int = 9999, seed: int = 0
) -> Floats:
    """Return each point's two-sided p-value for no difference from its control, (points,). It is never 0.

    Uses the exact McNemar test for yes-or-no measures with one answer per prompt, else a permutation test.

    Args:
        values: (points, prompts); NaN marks missing values.
        control: (prompts,) or (points, prompts).
        yes_or_no: whether the measure is 0 or 1.
        permutations: see `permutation_p`.
        seed: see `permutation_p`.
    """
    table = np.asarray(values, dtype=float)
    other = np.broadcast_to(np.asarray(control, dtype=float), table.shape)
    p = permutation_p(differences_of(table, other), permutations=permutations, seed=seed)
    if yes_or_no:
        exact = is_yes_or_no(table) & is_yes_or_no(other)
        p[exact] = mcnemar_p(table[exact], other[exact])
    return np.maximum(p, np.finfo(float).tiny)  # 1,100 prompts that all change give less than a float can hold


def permutation_p(differences: ArrayLike, *, permutations: int = 9999, seed: int = 0) -> Floats:
    """Return the two-sided p-value of the sign-flip permutation test of the mean difference, (points,).

    If a point has no effect, each prompt's difference is equally likely to have either sign (Fisher 1935, §21). If at
    most `EXACT` prompts differ, all sign patterns are enumerated. Otherwise random ones are drawn, the same for all
    points. The observed pattern counts as one of them (Phipson and Smyth 2010, doi:10.2202/1544-6115.1585), so p is
    never 0. If no random pattern is as extreme as the observed one, the tail comes from the saddlepoint approximation
    (Robinson 1982, doi:10.1111/j.2517-6161.1982.tb01191.x).

    Args:
        differences: (points, prompts); NaN marks missing values. Rows of NaN give NaN, rows of zeros 1.
        permutations: number of random sign patterns.
        seed: of the random sign patterns.
    """
    table = np.asarray(differences, dtype=float)
    moved = np.nan_to_num(table, nan=0.0)
    changed = np.count_nonzero(moved, axis=1)
    p = np.where(np.isnan(table).all(axis=1), np.nan, 1.0)
    for count in np.unique(changed[(changed > 0) & (changed <= EXACT)]):
        rows = np.flatnonzero(changed == count)
        differing = moved[rows]
        differing, signs = differing[differing != 0].reshape(len(rows), count), _all_signs(count)
        block = max(1, BLOCK * 4096 // len(signs))  # as much memory at a time as for a block of random patterns
        shares = [_share_as_far(differing[i : i + block], signs) for i in range(0, len(rows), block)]
        p[rows] = np.concatenate(shares)
    many = np.flatnonzero(changed > EXACT)
    if len(many):
        drawn = np.random.default_rng(seed).integers(0, 2, size=(permutations, table.shape[1]))
        signs = (2 * drawn - 1).astype(np.float64)
        for start in range(0, len(many), BLOCK):
            rows = many[start : start + BLOCK]
            p[rows] = (_share_as_far(moved[rows], signs) * permutations + 1) / (permutations + 1)
        # Random patterns give all of these points the same p-value; the approximation tells them apart.
        beyond = many[p[many] <= 1 / (permutations + 1)]
        p[beyond] = np.minimum(p[beyond], _tail(moved[beyond]))
    return p


def mcnemar_p(values: ArrayLike, control: ArrayLike) -> Floats:
    """Return the two-sided p-value of McNemar's exact test (1947, doi:10.1007/BF02295996), (points,).

    A binomial test: of the prompts that changed, as many should have gained as lost.

    Args:
        values: (points, prompts) of 0 and 1; NaN marks missing values.
        control: (prompts,) or (points, prompts), likewise.

    Raises:
        ValueError: a value is neither 0 nor 1.
    """
    table = np.asarray(values, dtype=float)
    other = np.broadcast_to(np.asarray(control, dtype=float), table.shape)
    if not (is_yes_or_no(table).all() and is_yes_or_no(other).all()):
        raise ValueError("McNemar's test needs values of 0 and 1")
    gained, lost = (table > other).sum(axis=1), (table < other).sum(axis=1)
    p: Floats = np.minimum(2 * stats.binom.cdf(np.minimum(gained, lost), gained + lost, 0.5), 1.0)
    return np.where(np.isnan(table - other).all(axis=1), np.nan, p)


def smallest_p(prompts: int) -> float:
    """Return the smallest p-value that either test can give: all prompts change in the same direction.

    Exact for up to `EXACT` prompts. For slightly more, the estimate from random signs may lie on either side of it.
    """
    return float(2.0 ** (1 - prompts)) if prompts > 0 else 1.0


def benjamini_hochberg(p: ArrayLike) -> Floats:
    """Return p-values adjusted for multiple testing, in the same shape.

    Benjamini and Hochberg (1995, doi:10.1111/j.2517-6161.1995.tb02031.x), as implemented in SciPy. If all adjusted
    values below q are called significant, the expected share of false calls is at most q.

    Args:
        p: p-values of any shape. NaN values are ignored and stay NaN.
    """
    raw = np.asarray(p, dtype=float)
    adjusted = np.full(raw.shape, np.nan)
    present = ~np.isnan(raw)
    if present.any():
        adjusted[present] = stats.false_discovery_control(raw[present])
    return adjusted


def _share_as_far(differences: Floats, signs: Floats) -> Floats:
    """Return the share of sign patterns, (patterns, prompts), whose sum is at least as far from 0 as observed."""
    # With a tolerance, so that rounding does not separate equal sums.
    threshold = np.abs(differences.sum(axis=1)) - 1e-12 * np.abs(differences).sum(axis=1)
    share: Floats = (np.abs(differences @ signs.T) >= threshold[:, None]).mean(axis=1)
    return share


def _tail(differences: Floats) -> Floats:
    """Return two-sided p-values of rows with an extreme sum, (rows,), by Lugannani and Rice's formula."""
    # With K(t) = Σ log cosh(t·d_i), the saddlepoint is where K'(t) equals the observed sum. The most extreme sum has
    # the probability of its only pattern of signs.
    size = np.abs(differences).sum(axis=1)
    d = differences / size[:, None]
    observed = np.abs(d.sum(axis=1))
    count = np.count_nonzero(d, axis=1)
    inner = observed < 1 - 1e-9
    p: Floats = np.exp2(1.0 - count)
    if inner.any():
        d, target = d[inner], observed[inner]
        t = _saddlepoints(d, target)
        x = np.abs(t[:, None] * d)
        cumulant = (x + np.log1p(np.exp(-2 * x)) - np.log(2)).sum(axis=1)
        curvature = (d**2 * (1 - np.tanh(x) ** 2)).sum(axis=1)
        r, u = np.sqrt(2 * np.maximum(t * target - cumulant, 1e-300)), t * np.sqrt(curvature)
        tail = stats.norm.sf(r) + stats.norm.pdf(r) * (1 / np.maximum(u, 1e-300) - 1 / r)
        p[inner] = np.clip(2 * tail, p[inner], 1.0)
    return p


def _saddlepoints(d: Floats, target: Floats) -> Floats:
    """Return t of each row with Σ d·tanh(t·d) = target, by Newton's method within a bracket that bisection narrows."""
    low, high = np.zeros(len(d)), np.ones(len(d))
    while (too_low := (d * np.tanh(high[:, None] * d)).sum(axis=1) < target).any():
        high = np.where(too_low, 2 * high, high)
    t = (low + high) / 2
    for _ in range(80):
        tanh = np.tanh(t[:, None] * d)
        excess = (d * tanh).sum(axis=1) - target  # rises with t
        low, high = np.where(excess < 0, t, low), np.where(excess < 0, high, t)
        slope = np.maximum((d**2 * (1 - tanh**2)).sum(axis=1), 1e-300)
        step = t - excess / slope
        step = np.where((low < step) & (step < high), step, (low + high) / 2)
        if (np.abs(step - t) <= 1e-13 * step).all():
            break
        t = step
    return t


def _all_signs(count: int) -> Floats:
    """Return all sign patterns whose last sign is negative; the others have the same sums with the other sign."""
    bits = np.arange(2 ** (count - 1))[:, None] >> np.arange(count) & 1
    signs: Floats = (2 * bits - 1).astype(np.float64)
    return signs
