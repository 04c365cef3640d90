"""Maths that several transforms share."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from sweep.transforms.context import Table

UNITS = ("absolute", "table_std", "row_rms")


def blend(rows: Tensor, changed: Tensor, strength: float) -> Tensor:
    """Return rows + strength · (changed - rows): exactly `rows` at strength 0, exactly `changed` at strength 1."""
    import torch

    if strength == 1:
        return changed
    return torch.lerp(rows, changed, strength)  # one pass


def share(part: Tensor, whole: Tensor) -> float | None:
    """Return the number c for which c · whole is nearest to `part`; None if `whole` is zero."""
    part, whole = part.flatten(), whole.flatten()
    length = float(whole.dot(whole))
    return float(part.dot(whole)) / length if length else None


def row_rms(rows: Tensor) -> Tensor:
    """Return the root mean square of each row, [n, 1]."""
    rms: Tensor = rows.norm(dim=-1, keepdim=True) / rows.shape[-1] ** 0.5
    return rms


def unit_size(unit: str, rows: Tensor, table: Table) -> Tensor | float:
    """Return how large one of `UNITS` is: 1, the table's standard deviation, or the rows' own RMS, [n, 1]."""
    if unit == "row_rms":
        return row_rms(rows)
    return table.std if unit == "table_std" else 1.0


def resized(rows: Tensor, norm: Tensor | float) -> Tensor:
    """Return the rows at another norm, a number or [n, 1]; zero rows stay zero, having no direction."""
    length: Tensor = rows.norm(dim=-1, keepdim=True)
    return rows * (norm / length.where(length > 0, 1.0))


def resampled(rows: Tensor, count: int) -> Tensor:
    """Return `count` rows spread evenly over the polygon through `rows`, ends kept; one row is its middle."""
    import torch

    lower, upper, between = even_steps(len(rows), count)
    return torch.lerp(rows[lower], rows[upper], between[:, None])


@lru_cache(maxsize=1024)
def even_steps(length: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return `count` even steps from 0 to `length` - 1: the whole numbers below and above each, and how far between."""
    import torch

    last = length - 1
    steps, parts = (torch.arange(count) * last, count - 1) if count > 1 else (torch.tensor([last]), 2)
    lower = steps // parts  # in whole numbers, so that a place on a row is that row
    return lower, (lower + 1).clamp(max=last), steps % parts / parts


def angles(a: Tensor, b: Tensor) -> Tensor:
    """Return the angles between the rows of `a` and `b` in radians, [n, 1] in fp64; 0 where one of them is zero."""
    import torch

    a, b = a.double(), b.double()
    dot = (a * b).sum(-1, keepdim=True)
    squares = a.square().sum(-1, keepdim=True) * b.square().sum(-1, keepdim=True)
    # In fp64 the cross product's length is good to 1e-8 of the whole, more than rows in fp32 can tell.
    return torch.atan2((squares - dot.square()).clamp(min=0).sqrt(), dot)


def principal_components(points: Tensor) -> Tensor:
    """Return the principal components of points around their mean: columns [d, r], largest first.

    Only those along which the points have an extent: the others are arbitrary.
    """
    import torch

    centred = (points - points.mean(0)).double()
    wide = len(points) < points.shape[1]
    squares, vectors = torch.linalg.eigh(centred @ centred.T if wide else centred.T @ centred)
    real = squares > 1e-10 * squares.sum()
    squares, vectors = squares[real].flip(0), vectors[:, real].flip(1)
    components: Tensor = centred.T @ vectors / squares.sqrt() if wide else vectors
    return components.float()
