"""Linear algebra shared by inputs and transforms."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def principal_components(points: Tensor) -> Tensor:
    """Return the principal components of points around their mean.

    Args:
        points: (n, d), float32.

    Returns:
        (d, r), float32: orthonormal columns, largest first. Only directions in which the points vary are returned; the
        others are arbitrary.
    """
    import torch

    centred = (points - points.mean(0)).double()
    use_gram = len(points) < points.shape[1]
    eigenvalues, vectors = torch.linalg.eigh(centred @ centred.T if use_gram else centred.T @ centred)
    varying = eigenvalues > 1e-10 * eigenvalues.sum()
    eigenvalues, vectors = eigenvalues[varying].flip(0), vectors[:, varying].flip(1)
    components: Tensor = centred.T @ vectors / eigenvalues.sqrt() if use_gram else vectors
    return components.float()
