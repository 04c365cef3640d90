"""Whether a point differs from its control at all, for all points of a sweep at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from sweep.scoring.statistics import BLOCK, is_yes_or_no
from sweep.scoring.values import Floats

# Up to as many prompts that differ, all their signs are tried.
EXACT = 12


def p_values(
    values: ArrayLike, control: ArrayLike, *, yes_or_no: bool = False, permutations: int = 9999, seed: int = 0
) -> Floats:
    """Return for each point the two-sided p-value of no difference to the control, [points].

    By exact McNemar for yes-or-no measures with one answer per prompt, else by permutation.

    Args:
        values: [points, prompts], NaN where there is none.
        control: [prompts] or [points, prompts].
        yes_or_no: whether the measure is 0 or 1.
        permutations, seed: as of `permutation_p`.
    """
    table = np.asarray(values, dtype=float)
    other = np.broadcast_to(np.asarray(control, dtype=float), table.shape)
    found = permutation_p(table - other, permutations=permutations, seed=seed)
    if not yes_or_no:
        return found
    exact = is_yes_or_no(table) & is_yes_or_no(other)
    found[exact] = mcnemar_p(table[exact], other[exact])
    return found


def permutation_p(differences: ArrayLike, *, permutations: int = 9999, seed: int = 0) -> Floats:
    """Return the two-sided p-value of the sign-flip permutation test of the mean difference, [points].

    If a point does nothing, each prompt's difference is as likely to have the other sign (Fisher 1935, §21).  All signs
    are tried where up to `EXACT` prompts differ.  Elsewhere random ones, the same for all points, and the observed ones
    count as one of them (Phipson and Smyth 2010, doi:10.2202/1544-6115.1585), so p is never 0.  Where none of them is
    as far out as the observed, the tail comes from the saddlepoint approximation (Robinson 1982,
    doi:10.1111/j.2517-6161.1982.tb01191.x).

    Args:
        differences: [points, prompts], NaN where there is none.  Rows without any give NaN, rows of zeros 1.
        permutations: how many random signs.
        seed: of these.
    """
    table = np.asarray(differences, dtype=float)
    moved = np.nan_to_num(table, nan=0.0)
    changed = np.count_nonzero(moved, axis=1)
    p = np.where(np.isnan(table).all(axis=1), np.nan, 1.0)
    for count in np.unique(changed[(changed > 0) & (changed <= EXACT)]):
        rows = np.flatnonzero(changed == count)
        own = moved[rows]
        p[rows] = _share_as_far(own[own != 0].reshape(len(rows), count), _all_signs(count))
    many = np.flatnonzero(changed > EXACT)
    if len(many):
        drawn = np.random.default_rng(seed).integers(0, 2, size=(permutations, table.shape[1]))
        signs = (2 * drawn - 1).astype(np.float64)
        for start in range(0, len(many), BLOCK):
            rows = many[start : start + BLOCK]
            p[rows] = (_share_as_far(moved[rows], signs) * permutations + 1) / (permutations + 1)
        # What no random signs have reached is far out, where many points could not be told apart.
        beyond = many[p[many] <= 1 / (permutations + 1)]
        p[beyond] = np.minimum(p[beyond], _tail(moved[beyond]))
    return p


def mcnemar_p(values: ArrayLike, control: ArrayLike) -> Floats:
    """Return the two-sided p-value of the exact test of McNemar (1947, doi:10.1007/BF02295996), [points].

    Of the prompts that changed, as many should have gained as lost: a binomial test.

    Args:
        values: [points, prompts] of 0 and 1, NaN where there is none.
        control: [prompts] or [points, prompts] of the same.

    Raises:
        ValueError: a value is neither 0 nor 1.
    """
    table = np.asarray(values, dtype=float)
    other = np.broadcast_to(np.asarray(control, dtype=float), table.shape)
    if not (is_yes_or_no(table).all() and is_yes_or_no(other).all()):
        raise ValueError("McNemar's test is for values of 0 and 1")
    gained, lost = (table > other).sum(axis=1), (table < other).sum(axis=1)
    p: Floats = np.minimum(2 * stats.binom.cdf(np.minimum(gained, lost), gained + lost, 0.5), 1.0)
    return np.where(np.isnan(table - other).all(axis=1), np.nan, p)


def benjamini_hochberg(p: ArrayLike) -> Floats:
    """Return p-values adjusted for how many there are.

    Benjamini and Hochberg (1995, doi:10.1111/j.2517-6161.1995.tb02031.x), as scipy has it.
    Calling those below q significant, no more than a share q of such calls is expected to be wrong.

    Args:
        p: any shape; NaN are left out, and stay NaN.
    """
    given = np.asarray(p, dtype=float)
    adjusted = np.full(given.shape, np.nan)
    known = ~np.isnan(given)
    if known.any():
        adjusted[known] = stats.false_discovery_control(given[known])
    return adjusted


def _share_as_far(differences: Floats, signs: Floats) -> Floats:
    """Return the share of sign patterns, [patterns, prompts], whose sum is at least as far from 0 as the observed."""
    # Rounding must not part what is equal.
    least = np.abs(differences.sum(axis=1)) - 1e-12 * np.abs(differences).sum(axis=1)
    share: Floats = (np.abs(differences @ signs.T) >= least[:, None]).mean(axis=1)
    return share


def _tail(differences: Floats) -> Floats:
    """Return the two-sided p-value of rows whose sum is far out, [rows], by Lugannani and Rice's formula.

    With K(t) = Σ log cosh(t·d_i), the saddlepoint is where K'(t) is the observed sum.  The most extreme sum has the
    probability of its one pattern of signs.
    """
    size = np.abs(differences).sum(axis=1)
    d = differences / size[:, None]
    observed = np.abs(d.sum(axis=1))
    count = np.count_nonzero(d, axis=1)
    inner = observed < 1 - 1e-9
    p: Floats = np.exp2(1.0 - count)
    if inner.any():
        d, target = d[inner], observed[inner]
        low, high = np.zeros(len(d)), np.ones(len(d))
        while (short := (d * np.tanh(high[:, None] * d)).sum(axis=1) < target).any():
            high = np.where(short, 2 * high, high)
        for _ in range(80):  # K' rises, so halving finds it
            t = (low + high) / 2
            short = (d * np.tanh(t[:, None] * d)).sum(axis=1) < target
            low, high = np.where(short, t, low), np.where(short, high, t)
        x = np.abs(t[:, None] * d)
        cumulant = (x + np.log1p(np.exp(-2 * x)) - np.log(2)).sum(axis=1)
        curvature = (d**2 * (1 - np.tanh(x) ** 2)).sum(axis=1)
        r, u = np.sqrt(2 * np.maximum(t * target - cumulant, 1e-300)), t * np.sqrt(curvature)
        tail = stats.norm.sf(r) + stats.norm.pdf(r) * (1 / np.maximum(u, 1e-300) - 1 / r)
        p[inner] = np.clip(2 * tail, p[inner], 1.0)
    return p


def _all_signs(count: int) -> Floats:
    bits = np.arange(2**count)[:, None] >> np.arange(count) & 1
    signs: Floats = (2 * bits - 1).astype(np.float64)
    return signs
