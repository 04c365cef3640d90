"""The perturbation that transforms achieved, after the cast to the engine's dtype.

It is measured for each request while the engine waits for the next one, so in NumPy, whose calls cost a fifth of
PyTorch's on matrices of this size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sweep.transforms import Table

Scores = dict[str, float]


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is sent of a prompt, beside the untransformed rows.

    Rows that are as many as the prompt's tokens are compared place by place, moved or not.  Otherwise each is compared
    with the mean of the rows that it stems from, and those that stem from none are left out.

    Attributes:
        sent: [m, hidden_size] in fp32, all rows, rounded to the engine's dtype.
        own: [n, hidden_size], those of them that are compared.
        clean: [n, hidden_size], what they are compared with.
        differs: [n, hidden_size], where they differ after the cast.
        tokens: the prompt's token, by number, that stands for each of the n.
    """

    sent: NDArray[np.float32]
    own: NDArray[np.float32]
    clean: NDArray[np.float32]
    differs: NDArray[np.bool_]
    tokens: Sequence[int]

    @classmethod
    def of(cls, sent: Tensor, rows: Tensor, origins: Sequence[tuple[int, ...]] | None = None) -> Comparison:
        """Compare.

        Args:
            sent: [m, hidden_size] in the engine's dtype.
            rows: the untransformed rows, [n, hidden_size] in fp32.
            origins: for each row of `sent` those of `rows` that it stems from; None: the same ones in order.
        """
        wide = own = sent.float().numpy()
        clean = rows.numpy()
        tokens: Sequence[int] = range(len(rows))
        if origins is not None and len(origins) != len(rows):
            compared = [i for i, stem in enumerate(origins) if stem]
            own, clean = wide[compared], _means(clean, [origins[i] for i in compared])
            tokens = [origins[i][0] for i in compared]
        rounded = clean if sent.dtype == torch.float32 else torch.from_numpy(clean).to(sent.dtype).float().numpy()
        return cls(wide, own, clean, own != rounded, tokens)


def perturbation(compared: Comparison) -> Scores:
    """Measure what is sent against the untransformed rows.

    Returns:
        Of the change Δ of the rows E: `relative_l2`, ‖Δ‖/‖E‖ (Frobenius); `cosine`, the mean of the rows' cosines;
        `norm_ratio`, the mean of the rows' ratios of norms; `snr_db`, 20·log10(‖E‖/‖Δ‖), left out where nothing
        changed; `changed`, the share of entries that differ after the cast.  Of all that is sent: `largest_entry`, the
        largest absolute entry; `rows`, how many there are.
    """
    sent, own, clean = compared.sent, compared.own, compared.clean
    scores = {
        "perturbation/largest_entry": float(max(sent.max(), -sent.min())),
        "perturbation/rows": float(len(sent)),
    }
    if not len(clean):
        return scores
    size, change = _norm(clean), _norm(own - clean)
    tiny = np.float32(1e-30)
    norms, clean_norms = (np.sqrt(np.einsum("ij,ij->i", m, m)) for m in (own, clean))
    cosines = np.einsum("ij,ij->i", own, clean) / np.maximum(norms * clean_norms, tiny)
    scores |= {
        "perturbation/relative_l2": change / max(size, 1e-30),
        "perturbation/cosine": min(max(float(cosines.mean()), -1.0), 1.0),
        "perturbation/norm_ratio": float((norms / np.maximum(clean_norms, tiny)).mean()),
        "perturbation/changed": np.count_nonzero(compared.differs) / compared.differs.size,
    }
    if change > 0 and size > 0:
        scores["perturbation/snr_db"] = 20 * math.log10(size / change)
    return scores


def _means(rows: NDArray[np.float32], groups: Sequence[tuple[int, ...]]) -> NDArray[np.float32]:
    """Return the mean of the rows of each group, [len(groups), hidden_size]."""
    if not groups:
        return rows[:0]
    places = {group: place for place, group in enumerate(dict.fromkeys(groups))}
    if len(places) < len(groups):  # rows that stem from the same ones are common
        return _means(rows, list(places))[[places[group] for group in groups]]
    counts = np.array([len(group) for group in groups])
    starts = np.concatenate([[0], counts.cumsum()[:-1]])
    sums = np.add.reduceat(rows[[row for group in groups for row in group]], starts, axis=0)
    return np.asarray(sums / counts[:, None], dtype=np.float32)


def _norm(matrix: NDArray[np.float32]) -> float:
    flat = matrix.ravel()
    return math.sqrt(float(flat @ flat))


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Rows of one prompt whose nearest tokens are to be looked up.

    Attributes:
        rows: [k, hidden_size] as they are sent: changed ones, at equal distances.
        token_ids: the token that stood in each one's place.
        share: the changed rows' share of all that have a counterpart.
    """

    rows: NDArray[np.float32]
    token_ids: list[int]
    share: float

    @classmethod
    def sample(cls, compared: Comparison, token_ids: Sequence[int], most: int) -> Neighbours:
        """Take up to `most` of the rows that were changed; `token_ids` are the prompt's."""
        changed = np.flatnonzero(compared.differs.any(axis=1))
        if not most or not len(changed):
            return cls(compared.own[:0], [], 0.0)
        step = -(-len(changed) // most)
        taken = changed[step // 2 :: step]
        ids = [token_ids[compared.tokens[i]] for i in taken]
        return cls(compared.own[taken], ids, len(changed) / len(compared.own))


def nearest_token_flips(prompts: Sequence[Neighbours], table: Table) -> list[float]:
    """Return for each prompt the share of its rows whose nearest token (L2) is no longer the one in their place.

    Unchanged rows are not looked up.  Of the changed ones those taken stand for all.
    """
    rows = torch.from_numpy(np.concatenate([p.rows for p in prompts]))
    if not len(rows):
        return [0.0] * len(prompts)
    ids = [token for p in prompts for token in p.token_ids]
    distances, nearest = table.nearest(rows)
    own = (table.rows(ids) - rows).norm(dim=1)
    # Where other tokens have the same row, any of them is as near.
    flipped = (nearest[:, 0] != torch.tensor(ids)) & (own > distances[:, 0])
    pieces = torch.split(flipped.float(), [len(p.token_ids) for p in prompts])
    return [p.share * float(piece.mean()) if len(piece) else 0.0 for p, piece in zip(prompts, pieces, strict=True)]
