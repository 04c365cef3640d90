"""Length transforms: fewer or more rows for the same content."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sweep.transforms._math import even_steps
from sweep.transforms.base import Rearranged, Rearrangement, register
from sweep.transforms.context import Context
from sweep.util.validators import require, require_choice, require_finite

if TYPE_CHECKING:
    from torch import Tensor


@register("repeat")
@dataclass(frozen=True, slots=True)
class Repeat(Rearrangement):
    """E, `times` times: ab becomes abab (block) or aabb (each); n rows become times · n.

    In mode block, the second copy can attend to all of the first, as in re-reading (Xu et al. 2023, arXiv:2309.06275)
    and echo embeddings (Springer et al. 2024, arXiv:2402.15449), but without words in between.

    Attributes:
        times: total number of copies; 1 changes nothing.
        mode: `block` repeats the range, `each` repeats every row.
    """

    dose: ClassVar[str] = "times"
    neutral: ClassVar[float] = 1
    examples: ClassVar = ({"times": 2}, {"times": 3, "mode": "each"})

    times: int = 1
    mode: str = "block"

    def __post_init__(self) -> None:
        require(self.times >= 1, "transform.times", "must be 1 or more", self.times)
        require_choice("transform.mode", self.mode, ("block", "each"))

    def rearrange(self, rows: Tensor, context: Context) -> Rearranged:
        """Return the copies."""
        import torch

        numbers = torch.arange(len(rows))
        order = numbers.repeat(self.times) if self.mode == "block" else numbers.repeat_interleave(self.times)
        return Rearranged(rows[order], [(i,) for i in order.tolist()])

    def max_rows(self, count: int) -> int:
        """Return `times * count`."""
        return self.times * count

    def achieved(self, before: Tensor, after: Tensor, context: Context) -> float:
        """Return the number of new rows per row."""
        return len(after) / len(before)


@register("merge")
@dataclass(frozen=True, slots=True)
class Merge(Rearrangement):
    """Σ w_i e_i / Σ w_i over each window of neighbours, w_i = 1 or ‖e_i‖; n rows become ⌈n / window⌉.

    Pooling of neighbours, inspired by token merging (Bolya et al. 2022, arXiv:2210.09461), which instead merges the
    most similar tokens between layers. The last window of a range may be shorter.

    Attributes:
        window: rows per window; 1 changes nothing.
        method: `mean` weights all rows of a window equally; `norm_weighted` weights them by their norms.
    """

    dose: ClassVar[str] = "window"
    neutral: ClassVar[float] = 1
    examples: ClassVar = ({"window": 2}, {"window": 3, "method": "norm_weighted"})

    window: int = 1
    method: str = "mean"

    def __post_init__(self) -> None:
        require(self.window >= 1, "transform.window", "must be 1 or more", self.window)
        require_choice("transform.method", self.method, ("mean", "norm_weighted"))

    def rearrange(self, rows: Tensor, context: Context) -> Rearranged:
        """Return the weighted means."""
        from torch.nn.functional import pad

        count = len(rows)
        width = min(self.window, count)
        weights = rows.norm(dim=-1) if self.method == "norm_weighted" else rows.new_ones(count)
        missing = -count % width
        windows = pad(rows, (0, 0, 0, missing)).view(-1, width, rows.shape[1])
        weights = pad(weights, (0, missing)).view(-1, width)
        total = weights.sum(1, keepdim=True)
        shares = weights / total.where(total > 0, 1.0)
        merged = (shares[:, None] @ windows)[:, 0]
        return Rearranged(merged, [tuple(range(i, min(i + width, count))) for i in range(0, count, width)])

    def achieved(self, before: Tensor, after: Tensor, context: Context) -> float:
        """Return the number of original rows per new row."""
        return len(before) / len(after)


@register("stretch")
@dataclass(frozen=True, slots=True)
class Stretch(Rearrangement):
    """E(t) at round(rate · n) even steps from first to last row, linear between rows.

    Motivated by the token durations in "Language Models Are Implicitly Continuous" (Marro et al., ICLR 2025,
    arXiv:2504.03933). First and last row are kept; a single remaining row is the middle of the range. At a low rate,
    rows are skipped, not averaged as by `merge`.

    Attributes:
        rate: new rows per row, above 0; 1 changes nothing. At least one row remains of each range.
    """

    dose: ClassVar[str] = "rate"
    neutral: ClassVar[float] = 1.0
    examples: ClassVar = ({"rate": 1.5}, {"rate": 0.5})

    rate: float = 1.0

    def __post_init__(self) -> None:
        require_finite("transform.rate", self.rate)
        require(self.rate > 0, "transform.rate", "must be more than 0", self.rate)

    def rearrange(self, rows: Tensor, context: Context) -> Rearranged:
        """Return the interpolated rows."""
        lower, upper, between = even_steps(len(rows), self._rows(len(rows)))
        interpolated = rows[lower].lerp(rows[upper], between[:, None])
        places = zip(lower.tolist(), upper.tolist(), between.tolist(), strict=True)
        return Rearranged(interpolated, [(a, b) if fraction else (a,) for a, b, fraction in places])

    def max_rows(self, count: int) -> int:
        """Return the maximum for any span: each of its ranges, at least one row apart, may be rounded up."""
        gains = ((count + 1) * (self._rows(n) - n) // (n + 1) for n in range(1, count + 1))
        return count + max(0, *gains)

    def achieved(self, before: Tensor, after: Tensor, context: Context) -> float:
        """Return the number of new rows per row."""
        return len(after) / len(before)

    def _rows(self, count: int) -> int:
        return max(1, math.floor(self.rate * count + 0.5))
