"""Ridge regression towards the identity: a linear attack on transformed rows.

The map is x ↦ x + (x - x̄)·B + b, with a penalty λ·‖B‖² (Hoerl & Kennard 1970). Without evidence it is the identity,
which makes the attack the search for the nearest token. λ recovers the most rows when each row is left out in turn, and
has the smallest leave-one-out error (Allen 1974) of those that recover as many.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from sweep.util.linear_algebra import thin_svd

if TYPE_CHECKING:
    from torch import Tensor

PENALTIES = tuple(
    10.0**-power for power in range(-1, 9)
)  # multiples of the largest eigenvalue of the rows' Gram matrix
SMALLEST = 1e-10  # eigenvalues below this share of the largest count as zero


def cross_fitted(rows: Tensor, clean: Tensor, folds: Tensor) -> Tensor:
    """Return estimates of the clean rows, each by a map that was fitted on the other folds.

    Args:
        rows: the transformed rows: (n, d), float32.
        clean: the untransformed rows: (n, d), float32.
        folds: number of each row's fold: (n,). At least two different ones.

    Returns:
        (n, d), float32.
    """
    estimates = rows.clone()
    for fold in sorted(set(folds.tolist())):
        held_out = folds == fold
        estimates[held_out] = fit_and_apply(rows[~held_out], clean[~held_out], rows[held_out])
    return estimates


def fit_and_apply(rows: Tensor, clean: Tensor, new: Tensor) -> Tensor:
    """Return estimates of the clean rows of `new` by a map that is fitted on `rows` and `clean`.

    Args:
        rows: (n, d), float32.
        clean: (n, d), float32.
        new: (m, d), float32.

    Returns:
        (m, d), float32. `new` itself if no map recovers more of the left-out rows than the identity.
    """
    x, targets = rows.double(), clean.double() - rows.double()
    count = len(x)
    if count < 3:
        return new
    mean, shift = x.mean(0), targets.mean(0)
    centred, residuals = x - mean, targets - shift
    left, eigenvalues, right = thin_svd(centred, SMALLEST)
    if not len(eigenvalues):
        return new
    projected = left.T @ residuals
    # All products with rows of length d, which do not depend on the penalty.
    norms = clean.double().square().sum(1) / 2
    candidates = clean.double().T
    own, cross, fitted_cross = clean.double() @ candidates - norms, residuals @ candidates, projected @ candidates
    squares, along, gram = residuals.square().sum(1), residuals @ projected.T, projected @ projected.T
    chosen, best = None, (_hits(x @ candidates - norms), math.inf)
    for penalty in [float(eigenvalues[-1]) * factor for factor in PENALTIES]:
        shares = left * (eigenvalues / (eigenvalues + penalty))
        remaining = (1 - 1 / count - (left * shares).sum(1)).clamp(min=1e-9)  # 1 - leverage
        squared_errors = squares - 2 * (along * shares).sum(1) + ((shares @ gram) * shares).sum(1)
        loss = float((squared_errors.clamp(min=0) / remaining.square()).sum())
        hits = _hits(own - (cross - shares @ fitted_cross) / remaining[:, None])
        if hits > best[0] or (hits == best[0] and chosen is not None and loss < best[1]):
            chosen, best = penalty, (hits, loss)
    if chosen is None:
        return new
    weights = (eigenvalues.sqrt() / (eigenvalues + chosen))[:, None] * projected
    estimate: Tensor = new.double() + (new.double() - mean) @ right @ weights + shift
    return estimate.float()


def _hits(scores: Tensor) -> int:
    """Return the number of rows whose own clean row is nearest: x·c - ‖c‖²/2 is largest for it, (n, n)."""
    largest = scores.max(1).values
    return int((scores.diagonal() >= largest - 1e-9 * largest.abs()).sum())
