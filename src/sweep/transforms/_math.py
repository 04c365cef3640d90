"""Mathematical functions shared by transforms."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from sweep.transforms.context import Table

UNITS = ("absolute", "table_std", "row_rms")


def blend(rows: Tensor, changed: Tensor, strength: float) -> Tensor:
    """Return rows + strength · (changed - rows): exactly `rows` at strength 0, exactly `changed` at strength 1.

    Args:
        rows: (tokens, hidden), float32.
        changed: of the same shape.
        strength: any number.
    """
    import torch

    if strength == 1:
        return changed
    return torch.lerp(rows, changed, strength)  # one pass over memory


def share(part: Tensor, whole: Tensor) -> float | None:
    """Return the least-squares coefficient c of part ≈ c · whole; None if `whole` is zero."""
    part, whole = part.flatten(), whole.flatten()
    length = float(whole.dot(whole))
    return float(part.dot(whole)) / length if length else None


def row_rms(rows: Tensor) -> Tensor:
    """Return the root mean square of each row: (n, 1)."""
    rms: Tensor = rows.norm(dim=-1, keepdim=True) / rows.shape[-1] ** 0.5
    return rms


def unit_size(unit: str, rows: Tensor, table: Table) -> Tensor | float:
    """Return the size of one of `UNITS`: 1, the table's standard deviation, or each row's RMS, (n, 1)."""
    if unit == "row_rms":
        return row_rms(rows)
    return table.std if unit == "table_std" else 1.0


def resized(rows: Tensor, norm: Tensor | float) -> Tensor:
    """Return rows scaled to a norm, a number or (n, 1). Zero rows stay zero."""
    length: Tensor = rows.norm(dim=-1, keepdim=True)
    return rows * (norm / length.where(length > 0, 1.0))


def resampled(rows: Tensor, count: int) -> Tensor:
    """Return `count` rows spaced evenly on the polygonal line through `rows`.

    First and last row are kept. A `count` of 1 gives the middle of the line.
    """
    import torch

    lower, upper, between = even_steps(len(rows), count)
    return torch.lerp(rows[lower], rows[upper], between[:, None])


@lru_cache(maxsize=1024)
def even_steps(length: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return `count` evenly spaced positions from 0 to `length` - 1.

    Returns:
        The integers below and above each position, int64, and the fraction in between, float32; (count,) each.
    """
    import torch

    last = length - 1
    steps, parts = (torch.arange(count) * last, count - 1) if count > 1 else (torch.tensor([last]), 2)
    lower = steps // parts  # integer arithmetic, so that a position on a row gives exactly that row
    return lower, (lower + 1).clamp(max=last), steps % parts / parts


def angles(a: Tensor, b: Tensor) -> Tensor:
    """Return the angles between the rows of `a` and `b` in radians: (n, 1), float64; 0 where a row is zero."""
    import torch

    a, b = a.double(), b.double()
    dot = (a * b).sum(-1, keepdim=True)
    squares = a.square().sum(-1, keepdim=True) * b.square().sum(-1, keepdim=True)
    # In fp64 the length of the cross product has a relative error of 1e-8, below the resolution of fp32 rows.
    return torch.atan2((squares - dot.square()).clamp(min=0).sqrt(), dot)
