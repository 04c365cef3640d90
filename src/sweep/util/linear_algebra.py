"""Linear algebra shared by inputs and transforms."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def thin_svd(points: Tensor, smallest: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the singular value decomposition of points, by the smaller one of their two Gram matrices.

    Args:
        points: (n, d), float64.
        smallest: squared singular values up to this share of the largest are left out.

    Returns:
        Left vectors (n, r), squared singular values (r,), ascending, and right vectors (d, r).
    """
    import torch

    use_gram = len(points) < points.shape[1]
    eigenvalues, vectors = torch.linalg.eigh(points @ points.T if use_gram else points.T @ points)
    kept = eigenvalues > smallest * eigenvalues[-1]
    eigenvalues, vectors = eigenvalues[kept], vectors[:, kept]
    left = vectors if use_gram else points @ vectors / eigenvalues.sqrt()
    right = points.T @ vectors / eigenvalues.sqrt() if use_gram else vectors
    return left, eigenvalues, right


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
