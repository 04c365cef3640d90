"""The control's transform."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sweep.transforms.base import Transform, register
from sweep.transforms.context import Context

if TYPE_CHECKING:
    from torch import Tensor


@register("identity")
@dataclass(frozen=True, slots=True)
class Identity(Transform):
    """E: the rows as returned by the model's embedding layer."""

    default_span: ClassVar[str] = "all"
    examples: ClassVar = ()

    def apply(self, rows: Tensor, context: Context) -> Tensor:
        """Return `rows` itself."""
        return rows
