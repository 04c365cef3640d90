"""Directions: a vector added to rows, or taken out of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sweep.checks import require_choice, require_finite
from sweep.transforms._math import UNITS, blend, resized, share, unit_size
from sweep.transforms.base import Transform, register
from sweep.transforms.context import Context, Corpus
from sweep.transforms.vectors import VectorSource

if TYPE_CHECKING:
    from torch import Tensor

MOOD: dict[str, Any] = {"positive": ["happy", "glad"], "negative": ["sad", "angry"]}


@register("add_vector")
@dataclass(frozen=True, slots=True)
class AddVector(Transform):
    """E + c·s; with another unit than absolute E + c·u·√d·ŝ, where ŝ = s/‖s‖ and u is the unit's size.

    ActAdd (Turner et al. 2023, arXiv:2308.10248) and contrastive activation addition (Rimsky et al. 2023,
    arXiv:2312.06681) do so to a layer's activations; here it is the input embeddings.  What is added in a relative unit
    has an RMS of |c| units in each row.

    Attributes:
        coefficient: c; negative ones push the other way.
        vector: s.
        normalize: add c·ŝ in place of c·s; the relative units always do.
        unit: `absolute`; `table_std`, the standard deviation of the table's entries; or `row_rms`, each row's own RMS.
        renormalize: give each row its former norm back.
    """

    dose: ClassVar[str | None] = "coefficient"
    neutral: ClassVar[float | None] = 0.0
    examples: ClassVar = (
        {"coefficient": 2.0, "vector": MOOD},
        {"coefficient": -0.5, "vector": MOOD, "unit": "row_rms", "renormalize": True},
    )
    paths: ClassVar = ("vector.path",)

    coefficient: float = 0.0
    vector: VectorSource = field(default_factory=VectorSource)
    normalize: bool = False
    unit: str = "absolute"
    renormalize: bool = False

    def __post_init__(self) -> None:
        require_finite("transform.coefficient", self.coefficient)
        require_choice("transform.unit", self.unit, UNITS)
        self.vector.require_given()

    def apply(self, rows: Tensor, context: Context) -> Tensor:
        """Return `rows` with the vector added."""
        changed = rows + self.coefficient * self._step(rows, context)
        return resized(changed, rows.norm(dim=-1, keepdim=True)) if self.renormalize else changed

    def achieved(self, before: Tensor, after: Tensor, context: Context) -> float | None:
        """Return the coefficient whose addition comes nearest to the change."""
        if self.renormalize:  # then the change is no multiple of the vector
            return None
        return share(after - before, self._step(before, context).expand_as(before))

    def _step(self, rows: Tensor, context: Context) -> Tensor:
        """Return what a coefficient of 1 adds, [n or 1, hidden_size]."""
        if self.unit == "absolute" and not self.normalize:
            return self.vector.vector(context.corpus)[None]
        return _length(self.unit, rows, context) * _unit(self.vector, context.corpus)

    def files(self) -> Sequence[Path]:
        """Return the vector's file, if it is from one."""
        return self.vector.files()

    def check(self, corpus: Corpus) -> None:
        """Read or make the vector."""
        self.vector.vector(corpus)


@dataclass(frozen=True, slots=True)
class Projection(Transform):
    """What removes or sets the rows' projections: some way from the rows to what `target` says."""

    dose: ClassVar[str | None] = "strength"
    neutral: ClassVar[float | None] = 0.0
    proportional: ClassVar[bool] = True

    strength: float = 1.0
    vector: VectorSource = field(default_factory=VectorSource)

    def __post_init__(self) -> None:
        require_finite("transform.strength", self.strength)
        self.vector.require_given()

    @abstractmethod
    def target(self, rows: Tensor, context: Context) -> Tensor:
        """Return what the rows are at strength 1."""

    def apply(self, rows: Tensor, context: Context) -> Tensor:
        """Return `rows`, moved towards `target`."""
        return blend(rows, self.target(rows, context), self.strength)

    def files(self) -> Sequence[Path]:
        """Return the file of the vectors, if they are from one."""
        return self.vector.files()

    def check(self, corpus: Corpus) -> None:
        """Read or make the vector."""
        self.vector.vector(corpus)


@register("ablate")
@dataclass(frozen=True, slots=True)
class Ablate(Projection):
    """E - λ·(E·ŝ)ŝ: at λ = 1 nothing of the direction ŝ = s/‖s‖ is left in any row.

    Directional ablation (Arditi et al. 2024, arXiv:2406.11717), of the input embeddings.

    Attributes:
        strength: λ; 2 mirrors the rows at the plane across s.
        vector: s, at any length.
    """

    examples: ClassVar = ({"vector": MOOD}, {"strength": 0.5, "vector": MOOD})
    paths: ClassVar = ("vector.path",)

    def target(self, rows: Tensor, context: Context) -> Tensor:
        """Return `rows` less their projections."""
        return _without(rows, _unit(self.vector, context.corpus))


@register("clamp")
@dataclass(frozen=True, slots=True)
class Clamp(Projection):
    """E + λ·(v·u·√d - E·ŝ)ŝ: at λ = 1 each row's projection on ŝ = s/‖s‖ is v·u·√d; in absolute units v.

    Directional ablation (Arditi et al. 2024, arXiv:2406.11717), then the same amount of the direction for each row.

    Attributes:
        strength: λ.
        vector: s, at any length.
        value: v, in `unit`.
        unit: as of add_vector; in `row_rms`, v = 1 is a projection as long as the row was.
    """

    examples: ClassVar = ({"vector": MOOD}, {"value": 1.0, "unit": "table_std", "vector": MOOD})
    paths: ClassVar = ("vector.path",)

    value: float = 0.0
    unit: str = "absolute"

    def __post_init__(self) -> None:
        Projection.__post_init__(self)
        require_finite("transform.value", self.value)
        require_choice("transform.unit", self.unit, UNITS)

    def target(self, rows: Tensor, context: Context) -> Tensor:
        """Return `rows` with the value in the place of their projections."""
        unit = _unit(self.vector, context.corpus)
        return _without(rows, unit) + self.value * _length(self.unit, rows, context) * unit


@register("erase")
@dataclass(frozen=True, slots=True)
class Erase(Projection):
    """E - λ·E·QᵀQ, where the rows of Q are an orthonormal basis of the space that the vectors span.

    The orthogonal projection, as of INLP (Ravfogel et al. 2020, arXiv:2004.07667).  LEACE (Belrose et al. 2023,
    arXiv:2306.03819) has the same aim, but an oblique projection, fitted to labelled data so that it changes rows as
    little as can be: this is not that one.

    Attributes:
        strength: λ.
        vector: the vectors; `vector.rank` says how many.
    """

    examples: ClassVar = ({"vector": {**MOOD, "method": "pca", "rank": 2}}, {"strength": 0.5, "vector": MOOD})
    paths: ClassVar = ("vector.path",)

    def target(self, rows: Tensor, context: Context) -> Tensor:
        """Return `rows` less their projections into the subspace."""
        return _without(rows, self.vector.basis(context.corpus))

    def check(self, corpus: Corpus) -> None:
        """Read or make the vectors, which must be independent."""
        self.vector.basis(corpus)


def _unit(source: VectorSource, corpus: Corpus) -> Tensor:
    """Return the direction of a source's one vector, [1, hidden_size]."""
    source.vector(corpus)
    return source.basis(corpus)


def _length(unit: str, rows: Tensor, context: Context) -> Tensor | float:
    """Return the norm of a row whose RMS is one of a unit; in absolute units 1."""
    return 1.0 if unit == "absolute" else unit_size(unit, rows, context.table) * rows.shape[-1] ** 0.5


def _without(rows: Tensor, basis: Tensor) -> Tensor:
    return rows - (rows @ basis.T) @ basis
