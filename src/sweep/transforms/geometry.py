"""Geometric transforms of the rows as a point cloud: its mean, principal components and orientation."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from sweep.transforms._math import blend, share
from sweep.transforms.base import Transform, register
from sweep.transforms.context import Context, Corpus
from sweep.util.linear_algebra import principal_components
from sweep.util.validators import require, require_choice, require_finite

if TYPE_CHECKING:
    from torch import Tensor

CLOUDS = ("prompt", "corpus", "table")


@register("center")
@dataclass(frozen=True, slots=True)
class Center(Transform):
    """e - λ·μ for each row e, with μ the mean row of the prompt, the corpus or the table.

    The first half of All-but-the-Top (Mu et al. 2017, arXiv:1702.01417).

    Attributes:
        mean: which mean: of the `prompt`'s rows in the span; of the `corpus`, all prompts' untransformed rows in the
            span; or of the `table`.
        strength: λ; 1 subtracts the whole mean.
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
        """Return rows with another mean."""
        return rows - self.strength * _mean(self.mean, rows, context)


@register("remove_components")
@dataclass(frozen=True, slots=True)
class RemoveComponents(Transform):
    """E - λ·E·V·Vᵀ, with V the first k principal components of the prompt, the corpus or the table.

    The second half of All-but-the-Top (Mu et al. 2017, arXiv:1702.01417), which centres first. For both halves, put
    `center` before this transform. If there are fewer than k components, all of them are removed.

    Attributes:
        k: number of components, largest first; 0 changes nothing.
        basis: source of the components: the `prompt`'s rows in the span, at most one fewer than the rows; the `corpus`,
            all prompts' untransformed rows in the span; or the `table`. Each around its own mean.
        strength: λ; 1 removes the components, 2 mirrors them.
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
        """Return the number of existing components, times the removed fraction of λ of them."""
        components = _components(self.basis, self.k, before, context)
        removed = share((before - after) @ components, before @ components)
        return None if removed is None or not self.strength else components.shape[1] * removed / self.strength


@register("truncate_rank")
@dataclass(frozen=True, slots=True)
class TruncateRank(Transform):
    """μ + (E - μ)·V·Vᵀ, with μ the mean of the prompt, the corpus or the table, V its first components.

    With the prompt's own components, this is the best approximation of that rank (Eckart & Young 1936).

    Attributes:
        rank: number of components to keep, largest first; 0 keeps only the mean.
        basis: source of mean and components: the `prompt`'s rows in the span; the `corpus`, all prompts' untransformed
            rows in the span; or the `table`.
        strength: 0 keeps the rows, 1 applies the whole change; other values scale it linearly.
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
        """Return rows moved towards their projections of that rank."""
        return blend(rows, self._truncated(rows, context), self.strength)

    def _truncated(self, rows: Tensor, context: Context) -> Tensor:
        mean = _mean(self.basis, rows, context)
        components = _components(self.basis, self.rank, rows, context)
        return mean + (rows - mean) @ components @ components.T


@register("rotate")
@dataclass(frozen=True, slots=True)
class Rotate(Transform):
    """E·Q, with Q a rotation by an angle in some planes, QᵀQ = I; E·Eᵀ is kept.

    All lengths of rows and angles between them stay the same. The planes are orthogonal to each other. They are random,
    or given by dimensions. Random planes depend on the point's seed and are the same for all prompts and angles. With
    more planes, the first ones stay the same.

    Attributes:
        angle: in degrees; 0 changes nothing.
        planes: number of random planes; null for the maximum, half of the width.
        dimensions: pairs of dimensions instead of random planes: [[0, 1], [4, 7]] turns 0 towards 1, and 4 towards 7.
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
            distinct = min(flat) >= 0 and len(set(flat)) == len(flat)
            require(
                distinct,
                "transform.dimensions",
                "must name each dimension at most once, counting from 0",
                self.dimensions,
            )

    def check(self, corpus: Corpus) -> None:
        """Check that the model has that many dimensions."""
        width = corpus.table.hidden_size
        if self.dimensions is not None:
            largest = max(max(pair) for pair in self.dimensions)
            require(largest < width, "transform.dimensions", f"must be below the model's width, {width}", largest)
        elif self.planes is not None:
            rule = f"must be at most {width // 2}, half of the model's width"
            require(self.planes <= width // 2, "transform.planes", rule, self.planes)

    def apply(self, rows: Tensor, context: Context) -> Tensor:
        """Return rotated rows."""
        import torch

        frame = self._frame(rows, context)
        x, y = (rows @ frame).view(len(rows), -1, 2).unbind(-1)
        cosine, sine = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        moved = torch.stack([(cosine - 1) * x - sine * y, sine * x + (cosine - 1) * y], dim=-1)
        return rows + moved.flatten(-2) @ frame.T

    def undo_rotation(self, rows: Tensor, context: Context) -> Tensor | None:
        """Return the rows turned back by the same angle in the same planes."""
        return replace(self, angle=-self.angle).apply(rows, context)

    def achieved(self, before: Tensor, after: Tensor, context: Context) -> float | None:
        """Return the best-fitting angle in degrees; of equivalent angles, the one closest to the requested angle."""
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
    """Return orthonormal columns, (width, 2 · planes); each pair of columns spans a plane."""
    import torch

    gaussian = torch.randn(2 * planes, width, generator=torch.Generator().manual_seed(seed))
    columns, triangle = torch.linalg.qr(gaussian.T)
    frame: Tensor = columns * triangle.diagonal().sign()  # unique, whichever signs the QR implementation chooses
    return frame


def _mean(cloud: str, rows: Tensor, context: Context) -> Tensor:
    if cloud == "prompt":
        return rows.mean(0)
    return context.table.mean if cloud == "table" else context.corpus.mean(context.span)


def _components(cloud: str, count: int, rows: Tensor, context: Context) -> Tensor:
    """Return the first principal components of a cloud: (d, at most count); only directions in which it varies."""
    if cloud == "prompt":
        return principal_components(rows)[:, :count]
    if cloud == "table":
        return context.table.components[:, :count]
    return context.corpus.components(context.span)[:, :count]
