"""Norm transforms: change the rows' lengths and keep their directions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sweep.transforms._math import blend, resized, row_rms, share
from sweep.transforms.base import Transform, register
from sweep.transforms.context import Context
from sweep.util.validators import require, require_choice, require_finite

if TYPE_CHECKING:
    from torch import Tensor


@register("scale")
@dataclass(frozen=True, slots=True)
class Scale(Transform):
    """c · E.

    An RMSNorm directly after the embedding cancels c up to its eps (Zhang & Sennrich 2019, arXiv:1910.07467, for the
    norm's invariance). Then c only changes the weight of the embeddings in the residual stream relative to what the
    layers add.

    Attributes:
        factor: c; 1 changes nothing.
    """

    dose: ClassVar[str] = "factor"
    neutral: ClassVar[float] = 1.0
    default_span: ClassVar[str] = "all"
    examples: ClassVar = ({"factor": 1.5}, {"factor": 0.0}, {"factor": -1.0})

    factor: float = 1.0

    def __post_init__(self) -> None:
        require_finite("transform.factor", self.factor)

    def apply(self, rows: Tensor, context: Context) -> Tensor:
        """Return `factor * rows`."""
        return rows * self.factor

    def achieved(self, before: Tensor, after: Tensor, context: Context) -> float | None:
        """Return the best-fitting factor."""
        return share(after, before)


@register("rms_match")
@dataclass(frozen=True, slots=True)
class RMSMatch(Transform):
    """ρ · e / rms(e) for each row e, with ρ the RMS to match.

    As `rms_matching` in LatentWire (github.com/SujeethJinesh/LatentWire): brings rows from another source, or from
    another transform, to the size that the model expects. Directions are kept, zero rows stay zero.

    Attributes:
        to: `table`, the RMS of all entries of the table; `prompt`, of all entries of these rows; `original`, of the
            row's own tokens before any transform; or `value`.
        value: the RMS if `to` is `value`, absolute.
        strength: 0 keeps the rows, 1 applies the whole change; other values scale it linearly.
    """

    dose: ClassVar[str] = "strength"
    neutral: ClassVar[float] = 0.0
    proportional: ClassVar[bool] = True
    examples: ClassVar = (
        {"to": "table"},
        {"to": "prompt"},
        {"to": "value", "value": 0.5, "strength": 0.5},
    )

    to: str = "table"
    value: float = 1.0
    strength: float = 1.0

    def __post_init__(self) -> None:
        require_choice("transform.to", self.to, ("table", "prompt", "original", "value"))
        require(0 < self.value < math.inf, "transform.value", "must be above 0", self.value)
        require_finite("transform.strength", self.strength)

    def apply(self, rows: Tensor, context: Context) -> Tensor:
        """Return rows moved towards the RMS."""
        return blend(rows, resized(rows, self._rms(rows, context) * rows.shape[-1] ** 0.5), self.strength)

    def _rms(self, rows: Tensor, context: Context) -> Tensor | float:
        if self.to == "original":
            return row_rms(context.original(rows))
        if self.to == "prompt":
            return float(row_rms(rows.reshape(1, -1)))
        return context.table.rms if self.to == "table" else self.value


@register("clip_norm")
@dataclass(frozen=True, slots=True)
class ClipNorm(Transform):
    """e · min(1, C / ‖e‖) for each row e; rows no longer than C are bit-identical.

    The clipping that Split-and-Denoise applies before its noise (Mai et al. 2023, arXiv:2310.09130).

    Attributes:
        max_norm: C, in `unit`; infinity changes nothing.
        unit: `absolute`; or `table_rms`, a multiple of the norm of a row whose entries have the table's RMS.
    """

    dose: ClassVar[str] = "max_norm"
    neutral: ClassVar[float] = math.inf
    examples: ClassVar = ({"max_norm": 0.1}, {"max_norm": 0.5, "unit": "table_rms"})

    max_norm: float = math.inf
    unit: str = "absolute"

    def __post_init__(self) -> None:
        require(self.max_norm > 0, "transform.max_norm", "must be above 0", self.max_norm)
        require_choice("transform.unit", self.unit, ("absolute", "table_rms"))

    def apply(self, rows: Tensor, context: Context) -> Tensor:
        """Return rows with at most the maximum norm."""
        norms: Tensor = rows.norm(dim=-1, keepdim=True)
        return rows * (self.max_norm * self._size(rows, context) / norms).clamp(max=1.0)

    def achieved(self, before: Tensor, after: Tensor, context: Context) -> float:
        """Return the largest norm."""
        return float(after.norm(dim=-1).max()) / self._size(after, context)

    def _size(self, rows: Tensor, context: Context) -> float:
        return context.table.rms * rows.shape[-1] ** 0.5 if self.unit == "table_rms" else 1.0


@register("normalize")
@dataclass(frozen=True, slots=True)
class Normalize(Transform):
    """r · e / ‖e‖ for each row e.

    Keeps only the rows' directions. Zero rows stay zero.

    Attributes:
        norm: r, absolute.
        strength: 0 keeps the rows, 1 applies the whole change; other values scale it linearly.
    """

    dose: ClassVar[str] = "strength"
    neutral: ClassVar[float] = 0.0
    proportional: ClassVar[bool] = True
    examples: ClassVar = ({}, {"norm": 2.0, "strength": 0.5})

    norm: float = 1.0
    strength: float = 1.0

    def __post_init__(self) -> None:
        require(0 < self.norm < math.inf, "transform.norm", "must be above 0", self.norm)
        require_finite("transform.strength", self.strength)

    def apply(self, rows: Tensor, context: Context) -> Tensor:
        """Return rows moved towards the norm."""
        return blend(rows, resized(rows, self.norm), self.strength)
