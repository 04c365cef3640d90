"""Masking transforms: remove entries or rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sweep.errors import ConfigError, TransformError
from sweep.transforms.base import Rearranged, Rearrangement, Transform, register
from sweep.transforms.context import Context, Corpus
from sweep.util.validators import require, require_choice

if TYPE_CHECKING:
    from torch import Tensor

SPECIAL = ("pad", "mask", "unk")


@register("dropout")
@dataclass(frozen=True, slots=True)
class Dropout(Transform):
    """E ⊙ M / (1 - p) with M ~ Bernoulli(1 - p) for each entry; expected E' = E.

    Dropout (Srivastava et al. 2014, JMLR 15) on the entries of the embeddings. For a given seed, a larger p drops
    everything that a smaller one drops.

    Attributes:
        p: the probability that an entry becomes 0, in [0, 1).
        rescale: whether the other entries are divided by 1 - p.
    """

    dose: ClassVar[str] = "p"
    neutral: ClassVar[float] = 0.0
    examples: ClassVar = ({"p": 0.1}, {"p": 0.5, "rescale": False})

    p: float = 0.0
    rescale: bool = True

    def __post_init__(self) -> None:
        require(0 <= self.p < 1, "transform.p", "must be at least 0 and less than 1", self.p)

    def apply(self, rows: Tensor, context: Context) -> Tensor:
        """Return `rows` with some entries set to 0."""
        import torch

        kept = torch.rand(rows.shape, generator=context.generator()).ge_(self.p).mul_(rows)
        return kept.div_(1 - self.p) if self.rescale else kept

    def achieved(self, before: Tensor, after: Tensor, context: Context) -> float | None:
        """Return the fraction of nonzero entries that became 0."""
        nonzero = before != 0
        return float((nonzero & (after == 0)).sum() / nonzero.sum()) if nonzero.any() else None


@register("mask_rows")
@dataclass(frozen=True, slots=True)
class MaskRows(Transform):
    """e_i ← f with probability p, one fill f for all rows; rows that are not masked stay bit-identical.

    With fill zero, this is word dropout (Iyyer et al. 2015, Deep Averaging Networks; Gal & Ghahramani 2016,
    arXiv:1512.05287). With p = 1 on a span, it ablates the span's content; see Zhang & Nanda 2023 (arXiv:2309.16042) on
    the effect of the corruption method. Unlike with `drop_rows`, other rows keep their positions. For a given seed, a
    larger p masks everything that a smaller one masks.

    Attributes:
        p: the probability that a row is masked, in [0, 1]; 1 masks every row of the span.
        fill: `zero`; `mean`, the table's mean row; or the tokenizer's `pad`, `mask` or `unk` token.
    """

    dose: ClassVar[str] = "p"
    neutral: ClassVar[float] = 0.0
    examples: ClassVar = ({"p": 0.9}, {"p": 1.0, "fill": "mean"}, {"p": 1.0, "fill": "pad"})

    p: float = 0.0
    fill: str = "zero"

    def __post_init__(self) -> None:
        require(0 <= self.p <= 1, "transform.p", "must be in [0, 1]", self.p)
        require_choice("transform.fill", self.fill, ("zero", "mean", *SPECIAL))

    def check(self, corpus: Corpus) -> None:
        """Check that the tokenizer has the fill token."""
        if self.fill in SPECIAL:
            try:
                corpus.special(self.fill)
            except TransformError as error:
                raise ConfigError(f"transform.fill={self.fill}: {error}.") from error

    def apply(self, rows: Tensor, context: Context) -> Tensor:
        """Return `rows` with some of them replaced."""
        import torch

        kept = torch.rand(len(rows), 1, generator=context.generator()) >= self.p
        return rows.where(kept, self._row(rows, context))

    def achieved(self, before: Tensor, after: Tensor, context: Context) -> float:
        """Return the fraction of rows that are closer to the fill than to their old values; robust to the cast."""
        masked = (after - self._row(before, context)).norm(dim=-1) < (after - before).norm(dim=-1)
        return float(masked.float().mean())

    def _row(self, rows: Tensor, context: Context) -> Tensor:
        if self.fill in SPECIAL:
            return context.special(self.fill)
        return context.table.mean if self.fill == "mean" else rows.new_zeros(rows.shape[-1])


@register("drop_rows")
@dataclass(frozen=True, slots=True)
class DropRows(Rearrangement):
    """E without row i, with probability p for each; the others keep their order and move up.

    Random deletion, the baseline for prompt compression (LLMLingua, Jiang et al. 2023, arXiv:2310.05736), which selects
    rows by importance. For a given seed, a larger p drops everything that a smaller one drops.

    Attributes:
        p: the probability that a row is dropped, in [0, 1]; 1 drops every row of the span.
    """

    dose: ClassVar[str] = "p"
    neutral: ClassVar[float] = 0.0
    examples: ClassVar = ({"p": 0.5},)

    p: float = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.p <= 1, "transform.p", "must be in [0, 1]", self.p)

    def rearrange(self, rows: Tensor, context: Context) -> Rearranged:
        """Return the remaining rows."""
        import torch

        kept = torch.rand(len(rows), generator=context.generator()) >= self.p
        return Rearranged(rows[kept], [(i,) for i in kept.nonzero()[:, 0].tolist()])

    def achieved(self, before: Tensor, after: Tensor, context: Context) -> float:
        """Return the fraction of rows that were dropped."""
        return 1 - len(after) / len(before)
