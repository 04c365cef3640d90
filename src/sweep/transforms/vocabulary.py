"""Vocabulary transforms: move rows towards token rows, or towards mixtures of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from sweep.errors import ConfigError, TransformError
from sweep.transforms._math import blend
from sweep.transforms.base import Transform, register
from sweep.transforms.context import Context, Corpus
from sweep.util.validators import require, require_choice, require_finite

if TYPE_CHECKING:
    from torch import Tensor

METRICS = ("l2", "cosine", "dot")


@register("nearest_token")
@dataclass(frozen=True, slots=True)
class NearestToken(Transform):
    """(1-s) · e_i + s · W_v with v = argmin_v d(e_i, W_v).

    The projection of PEZ (Wen et al. 2023, arXiv:2302.03668). With l2, a prompt's own rows stay the same, so this is
    for rows that another transform has moved.

    Attributes:
        strength: s in [0, 1]; 1 gives rows of the table, bit-identical.
        metric: d: `l2`, the distance; `cosine`, 1 - cosine; `dot`, the negative dot product, which favours long rows.
    """

    dose: ClassVar[str] = "strength"
    neutral: ClassVar[float] = 0.0
    proportional: ClassVar[bool] = True
    examples: ClassVar = ({}, {"strength": 0.5, "metric": "cosine"})

    strength: float = 1.0
    metric: str = "l2"

    def __post_init__(self) -> None:
        _require_share("transform.strength", self.strength)
        require_choice("transform.metric", self.metric, METRICS)

    def apply(self, rows: Tensor, context: Context) -> Tensor:
        """Return `rows`, moved towards their nearest tokens."""
        return blend(rows, _nearest(rows, context, self.metric), self.strength)


@register("knn_blend")
@dataclass(frozen=True, slots=True)
class KnnBlend(Transform):
    """(1-α) · e_i + α · Σ_v p_v W_v over the k nearest tokens, p = softmax(-d(e_i, W_v) / τ).

    After the projector of LatentWire (github.com/SujeethJinesh/LatentWire), with metric cosine, temperature 0.1, and α
    as the weight of e_i instead. The mixture is in the convex hull of the k tokens; with k = 1 it is one of them.

    Attributes:
        alpha: α in [0, 1].
        k: number of tokens; all tokens if there are fewer.
        temperature: τ, above 0. In `unit` for l2 and dot; without a unit for cosine.
        metric: d: `l2`, the distance, not squared; `cosine`, 1 - cosine; `dot`, the negative dot product.
        unit: unit of the temperature: `absolute`; or `table_std`, comparable between models. For l2 it is std · √d,
            about the length of a token's row; for dot it is the square of that.
    """

    dose: ClassVar[str] = "alpha"
    neutral: ClassVar[float] = 0.0
    proportional: ClassVar[bool] = True
    examples: ClassVar = ({"alpha": 0.5}, {"alpha": 1.0, "k": 3, "metric": "cosine", "temperature": 0.1})

    alpha: float = 0.0
    k: int = 8
    temperature: float = 1.0
    metric: str = "l2"
    unit: str = "table_std"

    def __post_init__(self) -> None:
        _require_share("transform.alpha", self.alpha)
        require(self.k >= 1, "transform.k", "must be 1 or more", self.k)
        require_finite("transform.temperature", self.temperature)
        require(self.temperature > 0, "transform.temperature", "must be more than 0", self.temperature)
        require_choice("transform.metric", self.metric, METRICS)
        require_choice("transform.unit", self.unit, ("absolute", "table_std"))

    def apply(self, rows: Tensor, context: Context) -> Tensor:
        """Return `rows`, moved towards the mixtures of their nearest tokens."""
        distances, ids = context.table.nearest(rows, self.k, self.metric)
        tokens = context.table.rows(ids.flatten()).view(*ids.shape, rows.shape[1])
        shares = (-distances / (self.temperature * self._scale(context))).softmax(1)
        return blend(rows, (shares[:, None] @ tokens)[:, 0], self.alpha)

    def _scale(self, context: Context) -> float:
        length = _length(self.unit, context)
        return {"l2": length, "cosine": 1.0, "dot": length**2}[self.metric]


@register("anchor")
@dataclass(frozen=True, slots=True)
class Anchor(Transform):
    """W_v + ε · (e_i - W_v) / ‖e_i - W_v‖ with v the nearest token by l2: at distance ε from it.

    After the anchors of LatentWire (github.com/SujeethJinesh/LatentWire), which only shorten the distance to the token.
    No ε is neutral. A row equal to its token has no direction to move in and stays the same, as all rows of an
    untransformed prompt do. This is for rows that another transform has moved.

    Attributes:
        epsilon: ε, 0 or more, in `unit`; 0 is `nearest_token`.
        unit: `table_std`, multiples of std · √d of the table, about the length of a token's row; or `absolute`.
    """

    examples: ClassVar = ({"epsilon": 0.5}, {"epsilon": 1.0, "unit": "absolute"})

    epsilon: float = 0.1
    unit: str = "table_std"

    def __post_init__(self) -> None:
        require_finite("transform.epsilon", self.epsilon)
        require(self.epsilon >= 0, "transform.epsilon", "must be 0 or more", self.epsilon)
        require_choice("transform.unit", self.unit, ("absolute", "table_std"))

    def apply(self, rows: Tensor, context: Context) -> Tensor:
        """Return the rows at distance epsilon from their nearest tokens."""
        tokens = _nearest(rows, context, "l2")
        offsets = rows - tokens
        norms = offsets.norm(dim=-1, keepdim=True)
        directions = offsets / norms.where(norms > 0, 1.0)
        return tokens.add(directions, alpha=self.epsilon * _length(self.unit, context))


@register("token_mixture")
@dataclass(frozen=True, slots=True)
class TokenMixture(Transform):
    """(1-s) · e_i + s · Σ_v p_v W_v, p the normalised weights of given tokens, the same for all rows.

    The soft tokens of Soft Thinking (Zhang et al. 2025, arXiv:2505.15778), with given weights. With a single token and
    s = 1, its row is used bit-identically.

    Attributes:
        tokens: text → weight, 0 or more; each text must be one token of the model. ` good` and `good` often differ.
        strength: s in [0, 1].
    """

    dose: ClassVar[str] = "strength"
    neutral: ClassVar[float] = 0.0
    proportional: ClassVar[bool] = True
    examples: ClassVar = ({"tokens": {"a": 1.0}}, {"tokens": {"a": 1.0, "b": 3.0}, "strength": 0.5})

    tokens: dict[str, float] | None = None  # with {}, Hydra would require +transform.tokens to add entries
    strength: float = 1.0

    def __post_init__(self) -> None:
        require(bool(self.tokens), "transform.tokens", "must name at least one token: {good: 0.5, bad: 0.5}", None)
        for text, weight in self._weights.items():
            require_finite(f"transform.tokens.{text}", weight)
            require(weight >= 0, f"transform.tokens.{text}", "must be 0 or more", weight)
        total = sum(self._weights.values())
        require(0 < total < math.inf, "transform.tokens", "must have a positive sum of weights", total)
        _require_share("transform.strength", self.strength)

    def check(self, corpus: Corpus) -> None:
        """Check that each text is one token of the model."""
        try:
            _mixture(corpus, tuple(self._weights.items()))
        except TransformError as error:
            raise ConfigError(f"transform.tokens: {error}.") from error

    def apply(self, rows: Tensor, context: Context) -> Tensor:
        """Return `rows`, moved towards the mixture."""
        return blend(rows, self._mixture(rows, context), self.strength)

    @property
    def _weights(self) -> dict[str, float]:
        return self.tokens or {}

    def _mixture(self, rows: Tensor, context: Context) -> Tensor:
        return _mixture(context.corpus, tuple(self._weights.items())).expand_as(rows)


@lru_cache(maxsize=64)  # computed once per point, not once per prompt
def _mixture(corpus: Corpus, weights: tuple[tuple[str, float], ...]) -> Tensor:
    """Return the weighted mean of tokens' rows: (hidden_size,)."""
    tokenized = {text: corpus.tokenize(text) for text, _ in weights}
    for text, ids in tokenized.items():
        if len(ids) != 1:
            raise TransformError(f"the text {text!r} must be one token of the model, but is {len(ids)}: {ids}")
    tokens = corpus.table.rows([ids[0] for ids in tokenized.values()])
    total = sum(weight for _, weight in weights)
    mixed: Tensor = tokens.new_tensor([weight / total for _, weight in weights]) @ tokens
    return mixed


def _nearest(rows: Tensor, context: Context, metric: str) -> Tensor:
    """Return the row of each row's nearest token: (n, hidden_size)."""
    _, ids = context.table.nearest(rows, 1, metric)
    return context.table.rows(ids[:, 0])


def _length(unit: str, context: Context) -> float:
    """Return the norm of a row with one unit in each entry; 1 for absolute units."""
    return context.table.std * context.table.hidden_size**0.5 if unit == "table_std" else 1.0


def _require_share(key: str, value: float) -> None:
    require(0 <= value <= 1, key, "must be in [0, 1]", value)
