"""Mixtures with other rows: of another prompt, a text or a baseline."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sweep.errors import ConfigError, TransformError
from sweep.transforms._math import angles, resampled
from sweep.transforms.base import Transform, register
from sweep.transforms.context import Context, Corpus
from sweep.util.counts import counted
from sweep.util.validators import require, require_choice, require_finite

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Mixture(Transform):
    """Base class: mixes the prompt's rows with as many other rows. See `Lerp` for the fields."""

    dose: ClassVar[str] = "t"
    neutral: ClassVar[float] = 0.0
    examples: ClassVar = (
        {"t": 0.25, "align": "resample"},
        {"t": 0.5, "align": "truncate"},
        {"t": 0.75, "text": "Never mind", "align": "resample"},
    )

    t: float = 0.0
    other: str | None = None
    text: str | None = None
    align: str = "error"

    def __post_init__(self) -> None:
        require_finite("transform.t", self.t)
        require(self.other is None or self.text is None, "transform", "takes other or text, not both", self.other)
        require_choice("transform.align", self.align, ("error", "pad", "truncate", "resample"))

    def check(self, corpus: Corpus) -> None:
        """Check that the other prompt, the text's tokens and the pad token exist."""
        key = "transform.other"
        try:
            if self.other is not None:
                corpus.layout(self.other)
            if self.text is not None:
                key = "transform.text"
                require(bool(corpus.tokenize(self.text)), key, "has no tokens", self.text)
            if self.align == "pad":
                key = "transform.align"
                corpus.special("pad")
        except TransformError as error:
            raise ConfigError(f"{key}: {error}") from error

    def apply(self, rows: Tensor, context: Context) -> Tensor:
        """Return the mixture."""
        import torch

        other = self._aligned(rows, context)
        mixed = self._mix(rows[: len(other)], other)
        return mixed if len(mixed) == len(rows) else torch.cat([mixed, rows[len(other) :]])

    @abstractmethod
    def _mix(self, rows: Tensor, other: Tensor) -> Tensor:
        """Return the mixture of equally many rows."""

    def _aligned(self, rows: Tensor, context: Context) -> Tensor:
        import torch

        other = self._other(context)
        available, required = len(other), len(rows)
        if available == required:
            return other
        if self.align == "truncate":
            return other[:required]
        if self.align == "resample":
            return resampled(other, required)
        if self.align == "pad" and available < required:
            return torch.cat([other, context.special("pad").expand(required - available, -1)])
        options = "truncate or resample" if self.align == "pad" else "truncate, pad or resample"
        raise TransformError(
            f"the prompt has {counted(required, 'row')} in the span, the other one {available}. "
            f"Set transform.align to {options}"
        )

    def _other(self, context: Context) -> Tensor:
        if self.text is not None:
            return context.embed(self.text)
        if self.other is None and context.corpus.next_id(context.prompt_id) == context.prompt_id:
            raise TransformError(
                "there is no other prompt to mix with. Set transform.other or transform.text, or add prompts"
            )
        return context.other(self.other)


@register("lerp")
@dataclass(frozen=True, slots=True)
class Lerp(Mixture):
    """(1 - t)·E + t·E', row by row, E' of another prompt or text; t = 1 is E' exactly.

    Interpolation between prompts; language models also respond to points in between (Marro et al. 2025,
    arXiv:2504.03933). Rows outside the span keep the prompt's values.

    Attributes:
        t: weight of the other prompt; any number: values below 0 and above 1 extrapolate.
        other: id of the prompt whose untransformed rows in the same span are mixed in; null for the next prompt of the
            sweep (the first one follows the last).
        text: a text whose tokens' rows, without template, are mixed in instead of a prompt's.
        align: what to do if the other has a different number of rows: `error`; `truncate` mixes as many rows as both
            have and keeps the prompt's remaining rows; `pad` extends a shorter one with the pad token and rejects a
            longer one; `resample` spreads the other evenly over the prompt's rows by linear interpolation.
    """

    proportional: ClassVar[bool] = True

    def _mix(self, rows: Tensor, other: Tensor) -> Tensor:
        import torch

        return torch.lerp(rows, other, self.t)


@register("slerp")
@dataclass(frozen=True, slots=True)
class Slerp(Mixture):
    """ν·(sin((1-t)Ω)·ê + sin(tΩ)·ê') / sin(Ω), Ω the angle of e and e', ν = (1-t)·‖e‖ + t·‖e'‖.

    Spherical interpolation (Shoemake 1985), row by row: directions ê = e/‖e‖ on the great circle, norms linearly; t = 1
    is e' exactly. It is linear where a row is zero or Ω is tiny. Rows in opposite directions are rejected.

    Attributes:
        t: weight of the other prompt, 0 to 1.
        other: id of the prompt whose untransformed rows in the same span are mixed in; null for the next prompt of the
            sweep (the first one follows the last).
        text: a text whose tokens' rows, without template, are mixed in instead of a prompt's.
        align: what to do if the other has a different number of rows: `error`; `truncate` mixes as many rows as both
            have and keeps the prompt's remaining rows; `pad` extends a shorter one with the pad token and rejects a
            longer one; `resample` spreads the other evenly over the prompt's rows by linear interpolation.
    """

    def __post_init__(self) -> None:
        Mixture.__post_init__(self)
        require(0 <= self.t <= 1, "transform.t", "must be in [0, 1]", self.t)

    def achieved(self, before: Tensor, after: Tensor, context: Context) -> float | None:
        """Return the fraction of the arc that was covered, over all rows together."""
        other = self._aligned(before, context)
        before, after = before[: len(other)], after[: len(other)]
        whole = float(angles(before, other).sum())
        return float(angles(before, after).sum()) / whole if whole else None

    def _mix(self, rows: Tensor, other: Tensor) -> Tensor:
        import torch

        angle = angles(rows, other)
        if (angle > math.pi - 1e-3).any():
            number = int(angle.argmax())
            raise TransformError(
                f"row {number} of the span has the opposite direction of the other row, so there is no shortest arc"
            )
        norms: Tensor = rows.double().norm(dim=-1, keepdim=True)
        other_norms: Tensor = other.double().norm(dim=-1, keepdim=True)
        norm = torch.lerp(norms, other_norms, self.t)
        # In this form the weights are exactly (1, 0) and (0, 1) at the ends.
        weights = norm * torch.sin((1 - self.t) * angle) / (torch.sin(angle) * norms)
        other_weights = norm * torch.sin(self.t * angle) / (torch.sin(angle) * other_norms)
        linear = angle < 1e-4
        weights, other_weights = weights.where(~linear, 1 - self.t), other_weights.where(~linear, self.t)
        return weights.float() * rows + other_weights.float() * other


@register("baseline")
@dataclass(frozen=True, slots=True)
class Baseline(Transform):
    """E + t·(b - E), b the same row everywhere; t = 1 is b exactly.

    The path of Integrated Gradients (Sundararajan et al. 2017, arXiv:1703.01365), whose α is 1 - t.

    Attributes:
        t: weight of the baseline; 0 is the prompt itself, 1 the baseline.
        to: b: `zero`; `mean`, the table's mean row; `pad`, the row of the pad token.
    """

    dose: ClassVar[str] = "t"
    neutral: ClassVar[float] = 0.0
    proportional: ClassVar[bool] = True
    examples: ClassVar = ({"t": 0.5}, {"t": 0.25, "to": "mean"})

    t: float = 0.0
    to: str = "zero"

    def __post_init__(self) -> None:
        require_finite("transform.t", self.t)
        require_choice("transform.to", self.to, ("zero", "mean", "pad"))

    def check(self, corpus: Corpus) -> None:
        """Check that the pad token exists, if it is needed."""
        try:
            if self.to == "pad":
                corpus.special("pad")
        except TransformError as error:
            raise ConfigError(f"transform.to: {error}") from error

    def apply(self, rows: Tensor, context: Context) -> Tensor:
        """Return the mixture."""
        import torch

        return torch.lerp(rows, self._row(rows, context), self.t)

    def _row(self, rows: Tensor, context: Context) -> Tensor:
        if self.to == "mean":
            return context.table.mean
        return context.special("pad") if self.to == "pad" else rows.new_zeros(rows.shape[1])
