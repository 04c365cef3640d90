"""Transforms of the rows as a cloud of points: its mean, its principal components, its orientation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from sweep.checks import require, require_choice, require_finite
from sweep.transforms._math import blend, principal_components, share
from sweep.transforms.base import Transform, register
from sweep.transforms.context import Context, Corpus

if TYPE_CHECKING:
    from torch import Tensor

CLOUDS = ("prompt", "corpus", "table")


@register("center")
@dataclass(frozen=True, slots=True)
class Center(Transform):
    """e - λ·μ for each row e, with μ the mean row of the prompt, the corpus or the table.

    The first half of All-but-the-Top (Mu et al. 2017, arXiv:1702.01417).

    Attributes:
        mean: of what: the `prompt`'s rows in the span; the `corpus`, all prompts' untransformed rows in the span; the
            `table`.
        strength: λ; 1 takes the whole mean away.
    """

    dose: ClassVar[str] = "strength"
    neutral: ClassVar[float] = 0.0
    proportional: ClassVar[bool] = True
    examples: ClassVar = (
        {"mean": "prompt"},
        {"mean": "corpus"},
        {"mean": "table", "strength": 0.5},
    )

    mean: str = "prompt"
    strength: float = 1.0

    def __post_init__(self) -> None:
        require_choice("transform.mean", self.mean, CLOUDS)
        require_finite("transform.strength", self.strength)

    def apply(self, rows: Tensor, context: Context) -> Tensor:
        """Return rows around another mean."""
        return rows - self.strength * _mean(self.mean, rows, context)


@register("remove_components")
@dataclass(frozen=True, slots=True)
class RemoveComponents(Transform):
    """E - λ·E·V·Vᵀ, with V the first k principal components of the prompt, the corpus or the table.

    The second half of All-but-the-Top (Mu et al. 2017, arXiv:1702.01417), which centres first: put `center` before
    this for both.  Where there are fewer than k components, all there are.

    Attributes:
        k: how many components, largest first; 0 changes nothing.
        basis: whose: of the `prompt`'s rows in the span, at most one fewer than the rows; of the `corpus`, all prompts'
            untransformed rows in the span; of the `table`.  Each around its own mean.
        strength: λ; 1 takes the components away, 2 mirrors them.
    """

    dose: ClassVar[str] = "k"
    neutral: ClassVar[float] = 0
    examples: ClassVar = (
        {"k": 2},
        {"k": 1, "basis": "prompt"},
        {"k": 3, "basis": "table", "strength": 0.5},
    )

    k: int = 0
    basis: str = "corpus"
    strength: float = 1.0

    def __post_init__(self) -> None:
        require(self.k >= 0, "transform.k", "must be 0 or more", self.k)
        require_choice("transform.basis", self.basis, CLOUDS)
        require_finite("transform.strength", self.strength)

    def apply(self, rows: Tensor, context: Context) -> Tensor:
        """Return rows without those components."""
        components = _components(self.basis, self.k, rows, context)
        return rows - self.strength * (rows @ components @ components.T)

    def achieved(self, before: Tensor, after: Tensor, context: Context) -> float | None:
        """Return how many components there were to take, times how much of λ of them is gone."""
        components = _components(self.basis, self.k, before, context)
        gone = share((before - after) @ components, before @ components)
        return None if gone is None or not self.strength else components.shape[1] * gone / self.strength


@register("truncate_rank")
@dataclass(frozen=True, slots=True)
class TruncateRank(Transform):
    """μ + (E - μ)·V·Vᵀ, with μ the mean of the prompt, the corpus or the table, V its first components.

    The best approximation of that rank if they are the prompt's own (Eckart & Young 1936).

    Attributes:
        rank: how many components are kept, largest first; 0 leaves the mean alone.
        basis: whose mean and components: the `prompt`'s rows in the span; the `corpus`, all prompts' untransformed
            rows in the span; the `table`.
        strength: 0 keeps the rows, 1 gives them the whole change; in between, and beyond, in proportion.
    """

    dose: ClassVar[str] = "strength"
    neutral: ClassVar[float] = 0.0
    proportional: ClassVar[bool] = True
    examples: ClassVar = (
        {"rank": 1},
        {"rank": 2, "basis": "corpus"},
        {"rank": 8, "basis": "table", "strength": 0.5},
    )

    rank: int = 1
    basis: str = "prompt"
    strength: float = 1.0

    def __post_init__(self) -> None:
        require(self.rank >= 0, "transform.rank", "must be 0 or more", self.rank)
        require_choice("transform.basis", self.basis, CLOUDS)
        require_finite("transform.strength", self.strength)

    def apply(self, rows: Tensor, context: Context) -> Tensor:
        """Return rows within that many dimensions, or rows on their way there."""
        return blend(rows, self._truncated(rows, context), self.strength)

    def _truncated(self, rows: Tensor, context: Context) -> Tensor:
        mean = _mean(self.basis, rows, context)
        components = _components(self.basis, self.rank, rows, context)
        return mean + (rows - mean) @ components @ components.T


@register("rotate")
@dataclass(frozen=True, slots=True)
class Rotate(Transform):
    """E·Q, with Q a rotation by an angle in some planes, QᵀQ = I; E·Eᵀ is kept.

    All lengths of rows and angles between them stay as they are.  The planes are at right angles to each other, random
    or given by dimensions.  Random ones depend on the point's seed and are the same for all prompts and angles; with
    more planes, the first of them stay.

    Attributes:
        angle: in degrees; 0 changes nothing.
        planes: how many random planes; null is as many as there are, half of the width.
        dimensions: pairs of dimensions in place of random planes: [[0, 1], [4, 7]] turns 0 towards 1, and 4 towards 7.
    """

    dose: ClassVar[str] = "angle"
    neutral: ClassVar[float] = 0.0
    examples: ClassVar = (
        {"angle": 45.0, "planes": 4},
        {"angle": 10.0, "planes": None},
        {"angle": 90.0, "dimensions": [[0, 1], [4, 7]]},
    )

    angle: float = 0.0
    planes: int | None = 1
    dimensions: list[list[int]] | None = None

    def __post_init__(self) -> None:
        require_finite("transform.angle", self.angle)
        require(self.planes is None or self.planes >= 1, "transform.planes", "must be at least 1, or null", self.planes)
        if self.dimensions is not None:
            flat = [dimension for pair in self.dimensions for dimension in pair]
            pairs = bool(flat) and all(len(pair) == 2 for pair in self.dimensions)
            require(pairs, "transform.dimensions", "must be pairs of dimensions", self.dimensions)
            once = min(flat) >= 0 and len(set(flat)) == len(flat)
            require(once, "transform.dimensions", "must name each from 0 up once at most", self.dimensions)

    def check(self, corpus: Corpus) -> None:
        """Check that there are so many dimensions."""
        width = corpus.table.hidden_size
        if self.dimensions is not None:
            largest = max(max(pair) for pair in self.dimensions)
            require(largest < width, "transform.dimensions", f"must be below the model's width, {width}", largest)
        elif self.planes is not None:
            rule = f"must be at most {width // 2}, half of the model's width"
            require(self.planes <= width // 2, "transform.planes", rule, self.planes)

    def apply(self, rows: Tensor, context: Context) -> Tensor:
        """Return turned rows."""
        import torch

        frame = self._frame(rows, context)
        x, y = (rows @ frame).view(len(rows), -1, 2).unbind(-1)
        cosine, sine = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        moved = torch.stack([(cosine - 1) * x - sine * y, sine * x + (cosine - 1) * y], dim=-1)
        return rows + moved.flatten(-2) @ frame.T

    def achieved(self, before: Tensor, after: Tensor, context: Context) -> float | None:
        """Return the angle that comes nearest, of all that are the same rotation the nearest to the one asked for."""
        frame = self._frame(before, context)
        x, y = (before @ frame).view(len(before), -1, 2).unbind(-1)
        u, v = (after @ frame).view(len(after), -1, 2).unbind(-1)
        along, across = float((x * u + y * v).sum()), float((x * v - y * u).sum())
        if not along and not across:
            return None
        angle = math.degrees(math.atan2(across, along))
        return angle + 360 * round((self.angle - angle) / 360)

    def _frame(self, rows: Tensor, context: Context) -> Tensor:
        width = rows.shape[1]
        if self.dimensions is None:
            return _random_frame(context.shared_seed, width, width // 2 if self.planes is None else self.planes)
        flat = [dimension for pair in self.dimensions for dimension in pair]
        frame = rows.new_zeros(width, len(flat))
        frame[flat, range(len(flat))] = 1.0
        return frame


@lru_cache(maxsize=4)
def _random_frame(seed: int, width: int, planes: int) -> Tensor:
    """Return orthonormal columns, [width, 2 · planes], of which two and two span a plane."""
    import torch

    gaussian = torch.randn(2 * planes, width, generator=torch.Generator().manual_seed(seed))
    columns, triangle = torch.linalg.qr(gaussian.T)
    frame: Tensor = columns * triangle.diagonal().sign()  # unique, whatever signs a library gives the columns
    return frame


def _mean(cloud: str, rows: Tensor, context: Context) -> Tensor:
    if cloud == "prompt":
        return rows.mean(0)
    return context.table.mean if cloud == "table" else context.corpus.mean(context.span)


def _components(cloud: str, count: int, rows: Tensor, context: Context) -> Tensor:
    """Return the first principal components of a cloud, [d, at most count]: those along which it has an extent."""
    if cloud == "prompt":
        return principal_components(rows)[:, :count]
    if cloud == "table":
        return context.table.components[:, :count]
    return context.corpus.components(context.span)[:, :count]
