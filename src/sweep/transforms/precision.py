"""Precision transforms: round to number formats with fewer bits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sweep.transforms._math import blend
from sweep.transforms.base import Transform, register
from sweep.transforms.context import Context
from sweep.util.validators import require, require_choice, require_finite

if TYPE_CHECKING:
    from torch import Tensor

LEVELS = {"int8": 127, "int4": 7}
FLOATS = {"fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"}
CASTS = {"bf16": "bfloat16", "fp16": "float16"}


@register("quantize")
@dataclass(frozen=True, slots=True)
class Quantize(Transform):
    """s · round(e / s) for each entry e, s = the largest |e| of a group / the format's largest number.

    Symmetric scaling by the largest magnitude. For int8 and int4 the error is at most s / 2. fp8 rounds to the numbers
    of its format (Micikevicius et al. 2022, arXiv:2209.05433). bf16 and fp16 are plain casts, s = 1.

    Attributes:
        format: `int8` (-127 … 127), `int4` (-7 … 7), `fp8_e4m3` (to 448), `fp8_e5m2` (to 57344), `bf16` or `fp16`.
        granularity: entries that share a scale: a `row`; the `tensor`, all rows; or a `group` of neighbours in a row.
        group_size: entries per group; the last group of a row is shorter if this does not divide the width.
        strength: 0 keeps the rows, 1 applies the whole change; other values scale it linearly.
    """

    dose: ClassVar[str] = "strength"
    neutral: ClassVar[float] = 0.0
    proportional: ClassVar[bool] = True
    examples: ClassVar = (
        {"format": "int4"},
        {"format": "int8", "granularity": "tensor"},
        {"format": "int4", "granularity": "group", "group_size": 24},
        {"format": "fp8_e4m3"},
        {"format": "fp8_e5m2", "granularity": "group"},
        {"format": "int4", "strength": 0.5},
    )

    format: str = "int8"
    granularity: str = "row"
    group_size: int = 64
    strength: float = 1.0

    def __post_init__(self) -> None:
        require_choice("transform.format", self.format, (*LEVELS, *FLOATS, *CASTS))
        require_choice("transform.granularity", self.granularity, ("row", "tensor", "group"))
        require(self.group_size >= 1, "transform.group_size", "must be at least 1", self.group_size)
        require_finite("transform.strength", self.strength)

    def apply(self, rows: Tensor, context: Context) -> Tensor:
        """Return rows moved towards their rounded values."""
        return blend(rows, self._rounded(rows), self.strength)

    def _rounded(self, rows: Tensor) -> Tensor:
        import torch

        if self.format in CASTS:
            return rows.to(getattr(torch, CASTS[self.format])).float()
        count, width = rows.shape
        if self.granularity == "row":
            return self._scaled(rows)
        if self.granularity == "tensor":
            return self._scaled(rows.reshape(1, -1)).view(count, width)
        filled = torch.nn.functional.pad(rows, (0, -width % self.group_size))
        return self._scaled(filled.view(-1, self.group_size)).view(count, -1)[:, :width].contiguous()

    def _scaled(self, groups: Tensor) -> Tensor:
        import torch

        integer = self.format in LEVELS
        dtype = torch.float32 if integer else getattr(torch, FLOATS[self.format])
        largest = LEVELS[self.format] if integer else torch.finfo(dtype).max
        scale: Tensor = torch.linalg.vector_norm(groups, math.inf, dim=-1, keepdim=True) / largest
        scale = scale.where(scale >= torch.finfo(torch.float32).tiny, 1.0)  # zero groups stay zero
        scaled = groups / scale
        return (scaled.round_() if integer else scaled.to(dtype).float()).mul_(scale)
