"""Direction transforms: add a vector to rows, or remove it from them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sweep.transforms._math import UNITS, blend, resized, share, unit_size
from sweep.transforms.base import Transform, register
from sweep.transforms.context import Context, Corpus
from sweep.transforms.vectors import ADDED, VectorSource
from sweep.util.validators import require_choice, require_finite

if TYPE_CHECKING:
    from torch import Tensor

MOOD: dict[str, Any] = {"positive": ["happy", "glad"], "negative": ["sad", "angry"]}


@register("add_vector")
@dataclass(frozen=True, slots=True)
class AddVector(Transform):
    """E + c·s; with another unit than absolute E + c·u·√d·ŝ, where ŝ = s/‖s‖ and u is the unit's size.

    ActAdd (Turner et al. 2023, arXiv:2308.10248) and contrastive activation addition (Rimsky et al. 2023,
    arXiv:2312.06681) add a vector to a layer's activations; here it is added to the input embeddings. In a relative
    unit, the added vector has an RMS of |c| units in each row.

    Attributes:
        coefficient: c; negative values push in the opposite direction.
        vector: s.
        normalize: add c·ŝ instead of c·s; relative units always do.
        unit: `absolute`; `table_std`, the standard deviation of the table's entries; or `row_rms`, the RMS of each row.
        renormalize: restore each row's norm afterwards.
    """

    dose: ClassVar[str | None] = "coefficient"
    neutral: ClassVar[float | None] = 0.0
    examples: ClassVar = (
        {"coefficient": 2.0, "vector": MOOD},
        {"coefficient": -0.5, "vector": MOOD, "unit": "row_rms", "renormalize": True},
    )
    paths: ClassVar = ("vector.path",)
    added: ClassVar = ADDED

    coefficient: float = 0.0
    vector: VectorSource = field(default_factory=VectorSource)
    normalize: bool = False
    unit: str = "absolute"
    renormalize: bool = False

    def __post_init__(self) -> None:
        require_finite("transform.coefficient", self.coefficient)
        require_choice("transform.unit", self.unit, UNITS)
        self.vector.validate()

    def apply(self, rows: Tensor, context: Context) -> Tensor:
        """Return `rows` with the vector added."""
        changed = rows + self.coefficient * self._step(rows, context)
        return resized(changed, rows.norm(dim=-1, keepdim=True)) if self.renormalize else changed

    def achieved(self, before: Tensor, after: Tensor, context: Context) -> float | None:
        """Return the coefficient that fits the change best."""
        if self.renormalize:  # the change is not a multiple of the vector
            return None
        return share(after - before, self._step(before, context).expand_as(before))

    def _step(self, rows: Tensor, context: Context) -> Tensor:
        """Return what a coefficient of 1 adds: (n or 1, hidden_size)."""
        if self.unit == "absolute" and not self.normalize:
            return self.vector.vector(context.corpus)[None]
        return _length(self.unit, rows, context) * _unit(self.vector, context.corpus)

    def files(self) -> Sequence[Path]:
        """Return the vector's file, if it has one."""
        return self.vector.files()

    def check(self, corpus: Corpus) -> None:
        """Read or compute the vector."""
        self.vector.vector(corpus)


@dataclass(frozen=True, slots=True)
class Projection(Transform):
    """Base class: moves rows by `strength` of the way to `target`, where their projections are removed or set."""

    dose: ClassVar[str | None] = "strength"
    neutral: ClassVar[float | None] = 0.0
    proportional: ClassVar[bool] = True

    strength: float = 1.0
    vector: VectorSource = field(default_factory=VectorSource)

    def __post_init__(self) -> None:
        require_finite("transform.strength", self.strength)
        self.vector.validate()

    @abstractmethod
    def target(self, rows: Tensor, context: Context) -> Tensor:
        """Return the rows at strength 1."""

    def apply(self, rows: Tensor, context: Context) -> Tensor:
        """Return `rows`, moved towards `target`."""
        return blend(rows, self.target(rows, context), self.strength)

    def files(self) -> Sequence[Path]:
        """Return the vector's file, if it has one."""
        return self.vector.files()

    def check(self, corpus: Corpus) -> None:
        """Read or compute the vector."""
        self.vector.vector(corpus)


@register("ablate")
@dataclass(frozen=True, slots=True)
class Ablate(Projection):
    """E - λ·(E·ŝ)ŝ: at λ = 1 nothing of the direction ŝ = s/‖s‖ is left in any row.

    Directional ablation (Arditi et al. 2024, arXiv:2406.11717), applied to the input embeddings.

    Attributes:
        strength: λ; 2 mirrors the rows at the hyperplane orthogonal to s.
        vector: s, of any length.
    """

    examples: ClassVar = ({"vector": MOOD}, {"strength": 0.5, "vector": MOOD})
    paths: ClassVar = ("vector.path",)
    added: ClassVar = ADDED

    def target(self, rows: Tensor, context: Context) -> Tensor:
        """Return `rows` minus their projections."""
        return _without(rows, _unit(self.vector, context.corpus))


@register("clamp")
@dataclass(frozen=True, slots=True)
class Clamp(Projection):
    """E + λ·(v·u·√d - E·ŝ)ŝ: at λ = 1 each row's projection on ŝ = s/‖s‖ is v·u·√d; in absolute units v.

    Directional ablation (Arditi et al. 2024, arXiv:2406.11717), followed by the same amount of the direction for each
    row.

    Attributes:
        strength: λ.
        vector: s, of any length.
        value: v, in `unit`.
        unit: see add_vector; in `row_rms`, v = 1 is a projection as long as the row was.
    """

    examples: ClassVar = ({"vector": MOOD}, {"value": 1.0, "unit": "table_std", "vector": MOOD})
    paths: ClassVar = ("vector.path",)
    added: ClassVar = ADDED

    value: float = 0.0
    unit: str = "absolute"

    def __post_init__(self) -> None:
        Projection.__post_init__(self)
        require_finite("transform.value", self.value)
        require_choice("transform.unit", self.unit, UNITS)

    def target(self, rows: Tensor, context: Context) -> Tensor:
        """Return `rows` with their projections set to the value."""
        unit = _unit(self.vector, context.corpus)
        return _without(rows, unit) + self.value * _length(self.unit, rows, context) * unit


@register("erase")
@dataclass(frozen=True, slots=True)
class Erase(Projection):
    """E - λ·E·QᵀQ, where the rows of Q are an orthonormal basis of the space that the vectors span.

    The orthogonal projection of INLP (Ravfogel et al. 2020, arXiv:2004.07667). LEACE (Belrose et al. 2023,
    arXiv:2306.03819) has the same aim but is not implemented here. It fits an oblique projection to labelled data,
    which changes rows as little as possible.

    Attributes:
        strength: λ.
        vector: the vectors; `vector.rank` sets their number.
    """

    examples: ClassVar = ({"vector": {**MOOD, "method": "pca", "rank": 2}}, {"strength": 0.5, "vector": MOOD})
    paths: ClassVar = ("vector.path",)
    added: ClassVar = ADDED

    def target(self, rows: Tensor, context: Context) -> Tensor:
        """Return `rows` minus their projections onto the subspace."""
        return _without(rows, self.vector.basis(context.corpus))

    def check(self, corpus: Corpus) -> None:
        """Read or compute the vectors, which must be linearly independent."""
        self.vector.basis(corpus)


def _unit(source: VectorSource, corpus: Corpus) -> Tensor:
    """Return the direction of a source's only vector: (1, hidden_size)."""
    source.vector(corpus)
    return source.basis(corpus)


def _length(unit: str, rows: Tensor, context: Context) -> Tensor | float:
    """Return the norm of a row whose RMS is one unit; 1 for absolute units."""
    return 1.0 if unit == "absolute" else unit_size(unit, rows, context.table) * rows.shape[-1] ** 0.5


def _without(rows: Tensor, basis: Tensor) -> Tensor:
    return rows - (rows @ basis.T) @ basis
