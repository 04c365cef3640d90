"""Multiplication by a number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sweep.checks import require_finite
from sweep.transforms.base import Context, Transform, register

if TYPE_CHECKING:
    from torch import Tensor


@register("scale")
@dataclass(frozen=True, slots=True)
class Scale(Transform):
    """c · E.

    An RMSNorm right after the embedding cancels c up to its eps; what c changes is the weight of the embeddings in the
    residual stream against what the layers add (Zhang & Sennrich 2019, arXiv:1910.07467, for the norm's invariance).
    """

    factor: float = 1.0

    def __post_init__(self) -> None:
        require_finite("transform.factor", self.factor)

    def apply(self, rows: Tensor, context: Context) -> Tensor:
        """Return `factor * rows`; factor 1 is bit-equal."""
        return rows * self.factor
