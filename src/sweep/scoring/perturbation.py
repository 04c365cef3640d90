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

from sweep.scoring.values import Scores

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from sweep.transforms import Table


NEAR = 0.4999  # of the way to another token: half of it, but for rounding


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is sent of a prompt, beside the untransformed rows.

    Rows that are as many as the prompt's tokens are compared place by place, moved or not.  Otherwise each is compared
    with the first of the tokens it stems from that no row before it has been compared with; rows for which there is
    none left have been put in, tokens for which there is no row have been left out.

    Attributes:
        sent: [m, hidden_size] in fp32, all rows, rounded to the engine's dtype.
        own: [n, hidden_size], those of them that are compared.
        clean: [n, hidden_size], what they are compared with.
        differs: [n, hidden_size], where they differ after the cast.
        tokens: the prompt's token, by number, that each of the n is compared with.
        put_in, left_out: [·, hidden_size], the rows that have no counterpart.
    """

    sent: NDArray[np.float32]
    own: NDArray[np.float32]
    clean: NDArray[np.float32]
    differs: NDArray[np.bool_]
    tokens: Sequence[int]
    put_in: NDArray[np.float32]
    left_out: NDArray[np.float32]

    @classmethod
    def of(cls, sent: Tensor, rows: Tensor, origins: Sequence[tuple[int, ...]] | None = None) -> Comparison:
        """Compare.

        Args:
            sent: [m, hidden_size] in the engine's dtype.
            rows: the untransformed rows, [n, hidden_size] in fp32.
            origins: for each row of `sent` those of `rows` that it stems from; None: the same ones in order.
        """
        wide, clean = sent.float().numpy(), rows.numpy()
        if origins is None or len(origins) == len(rows):
            return cls(wide, wide, clean, _differ(wide, clean, sent.dtype), range(len(rows)), wide[:0], clean[:0])
        compared: dict[int, int] = {}  # token: row
        put_in = []
        for row, stem in enumerate(origins):
            token = next((token for token in stem if token not in compared), None)
            if token is None:
                put_in.append(row)
            else:
                compared[token] = row
        left_out = [token for token in range(len(rows)) if token not in compared]
        own, tokens = wide[list(compared.values())], list(compared)
        differs = _differ(own, clean[tokens], sent.dtype)
        return cls(wide, own, clean[tokens], differs, tokens, wide[put_in], clean[left_out])

    @property
    def counted(self) -> int:
        """How many rows there are on either side."""
        return len(self.own) + len(self.put_in) + len(self.left_out)


def _differ(own: NDArray[np.float32], clean: NDArray[np.float32], dtype: torch.dtype) -> NDArray[np.bool_]:
    import torch

    rounded = clean if dtype == torch.float32 else torch.from_numpy(clean).to(dtype).float().numpy()
    return np.not_equal(own, rounded)


def perturbation(compared: Comparison) -> Scores:
    """Measure what is sent against the untransformed rows.

    Returns:
        Of the change Δ of the rows E: `relative_l2`, ‖Δ‖/‖E‖ (Frobenius); `cosine`, the mean of the rows' cosines;
        `norm_ratio`, ‖E + Δ‖/‖E‖; `snr_db`, 20·log10(‖E‖/‖Δ‖), left out where nothing changed; `changed`, the share of
        entries that differ after the cast.  Rows that were put in or left out count as changed from or to nothing, and
        have no cosine.  `rows_kept`, the share of rows on either side that have a counterpart.  Of all that is sent:
        `largest_entry`, the largest absolute entry; `rows`, how many there are.
    """
    sent, own, clean = compared.sent, compared.own, compared.clean
    alone = len(compared.put_in) + len(compared.left_out)
    size = math.hypot(_norm(clean), _norm(compared.left_out))
    change = math.hypot(_norm(own - clean), _norm(compared.put_in), _norm(compared.left_out))
    changed = int(np.count_nonzero(compared.differs)) + alone * sent.shape[1]
    scores = {
        "perturbation/relative_l2": change / max(size, 1e-30),
        "perturbation/norm_ratio": _norm(sent) / max(size, 1e-30),
        "perturbation/changed": changed / (compared.counted * sent.shape[1]),
        "perturbation/largest_entry": float(max(sent.max(), -sent.min())),
        "perturbation/rows": float(len(sent)),
        "perturbation/rows_kept": len(own) / compared.counted,
    }
    if change > 0 and size > 0:
        scores["perturbation/snr_db"] = 20 * math.log10(size / change)
    if len(own):
        lengths = [np.maximum(np.abs(m).max(axis=1, keepdims=True), np.float32(1e-30)) for m in (own, clean)]
        u, v = own / lengths[0], clean / lengths[1]  # directions do not change, and squares stay within fp32
        squares = np.einsum("ij,ij->i", u, u) * np.einsum("ij,ij->i", v, v)
        cosines = np.einsum("ij,ij->i", u, v) / np.sqrt(np.maximum(squares, np.float32(1e-30)))
        scores["perturbation/cosine"] = min(max(float(cosines.mean()), -1.0), 1.0)
    return scores


def _norm(matrix: NDArray[np.float32]) -> float:
    flat = matrix.ravel()
    with np.errstate(over="ignore"):
        squares = float(np.einsum("i,i->", flat, flat))  # not by BLAS, whose threads would get into each other's way
    if not math.isfinite(squares):  # finite entries whose squares are not, in fp32
        wide = flat.astype(np.float64)
        squares = float(np.einsum("i,i->", wide, wide))
    return math.sqrt(squares)


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Rows of one prompt whose nearest tokens are to be looked up.

    Attributes:
        rows: [k, hidden_size] as they are sent: changed ones, at equal distances.
        token_ids: the token that stood in each one's place.
        share: the changed rows' share of all rows on either side.
        alone: the share of those that have no counterpart.
    """

    rows: NDArray[np.float32]
    token_ids: list[int]
    share: float
    alone: float

    @classmethod
    def sample(cls, compared: Comparison, token_ids: Sequence[int], most: int) -> Neighbours:
        """Take up to `most` of the rows that were changed; `token_ids` are the prompt's."""
        changed = np.flatnonzero(compared.differs.any(axis=1))
        alone = 1 - len(compared.own) / compared.counted
        if not most or not len(changed):
            return cls(compared.own[:0].copy(), [], 0.0, alone)  # no view, which would keep the rows
        step = -(-len(changed) // most)
        taken = changed[step // 2 :: step]
        ids = [token_ids[compared.tokens[i]] for i in taken]
        return cls(compared.own[taken], ids, len(changed) / compared.counted, alone)


def nearest_token_flips(prompts: Sequence[Neighbours], table: Table) -> list[float]:
    """Return for each prompt the share of its rows whose nearest token (L2) is no longer the one in their place.

    Unchanged rows are not looked up.  Of the changed ones those taken stand for all.  Rows that were put in or left out
    have flipped.
    """
    import torch

    rows = torch.from_numpy(np.concatenate([p.rows for p in prompts]))
    if not len(rows):
        return [p.alone for p in prompts]
    ids = torch.tensor([token for p in prompts for token in p.token_ids])
    own = (table.rows(ids) - rows).norm(dim=1)
    flipped = torch.zeros(len(rows), dtype=torch.bool)
    # Whoever has moved less than half the way to the nearest other token is still nearest to its own, and going through
    # a large vocabulary takes a second for a point.
    (far,) = torch.nonzero(own >= table.gaps(ids.tolist()) * NEAR, as_tuple=True)
    if len(far):
        distances, nearest = table.nearest(rows[far])
        # Where other tokens have the same row, any of them is as near.
        flipped[far] = (nearest[:, 0] != ids[far]) & (own[far] > distances[:, 0])
    pieces = torch.split(flipped.float(), [len(p.token_ids) for p in prompts])
    shares = [float(piece.mean()) if len(piece) else 0.0 for piece in pieces]
    return [p.alone + p.share * share for p, share in zip(prompts, shares, strict=True)]
