"""Gaussian noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sweep.checks import require, require_choice, require_finite
from sweep.transforms.base import Context, Transform, register

if TYPE_CHECKING:
    from torch import Tensor


@register("noise")
@dataclass(frozen=True, slots=True)
class Noise(Transform):
    """E + σ·Z with Z ~ N(0, 1) for each entry; expected ‖ΔE‖² = σ²·L·d.

    After the embedding corruption of ROME (Meng et al. 2022, arXiv:2202.05262), which gives σ as a multiple of the
    table's standard deviation.  Z depends on the point's seed and the prompt alone: at one seed, a stronger noise is
    the same noise, longer.

    Attributes:
        sigma: the standard deviation, in `unit`.
        unit: `table_std`, a multiple of the standard deviation of the table's entries; or `absolute`.
    """

    sigma: float = 0.0
    unit: str = "table_std"

    def __post_init__(self) -> None:
        require_finite("transform.sigma", self.sigma)
        require(self.sigma >= 0, "transform.sigma", "must be 0 or more", self.sigma)
        require_choice("transform.unit", self.unit, ("absolute", "table_std"))

    def apply(self, rows: Tensor, context: Context) -> Tensor:
        """Return `rows` with noise added; sigma 0 is bit-equal."""
        if self.sigma == 0:
            return rows
        import torch

        sigma = self.sigma * context.table.std if self.unit == "table_std" else self.sigma
        return rows + sigma * torch.randn(rows.shape, generator=context.generator())
