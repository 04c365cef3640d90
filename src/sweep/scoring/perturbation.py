"""Perturbation measures: what the transforms achieved, after the cast to the engine's dtype.

They are computed for each request while the engine waits for the next one. They use NumPy, whose calls cost a fifth of
PyTorch's on matrices of this size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sweep.core.values import Scores
from sweep.scoring.registry import MeasureSpec, Shown
from sweep.util.compact import compact

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from sweep.transforms import Table


PART_ENTRIES = 2**18  # entries that are processed at once: half a megabyte in fp32
NEAR = 0.4999  # share of the distance to another token: a half, less a margin for rounding


@dataclass(frozen=True, slots=True)
class Comparison:
    """Sent rows of one prompt, matched with its untransformed rows.

    If there are as many rows as prompt tokens, they are matched by position, moved or not. Otherwise each row is
    matched with the first token of its origins that is not matched yet. Rows without a match are inserted, tokens
    without a match are removed.

    Attributes:
        sent: all rows, rounded to the engine's dtype: (m, hidden_size), float32.
        matched: the sent rows that have a match: (n, hidden_size), float32.
        clean: the untransformed rows that they are matched with: (n, hidden_size), float32.
        differs: where the two differ after the cast: (n, hidden_size), bool.
        tokens: position in the prompt of each matched token, n in all.
        inserted: sent rows without a match: (·, hidden_size), float32.
        removed: untransformed rows without a match: (·, hidden_size), float32.
    """

    sent: NDArray[np.float32]
    matched: NDArray[np.float32]
    clean: NDArray[np.float32]
    differs: NDArray[np.bool_]
    tokens: Sequence[int]
    inserted: NDArray[np.float32]
    removed: NDArray[np.float32]

    @classmethod
    def of(cls, sent: Tensor, rows: Tensor, origins: Sequence[tuple[int, ...]] | None = None) -> Comparison:
        """Match sent rows with untransformed rows.

        Args:
            sent: (m, hidden_size), in the engine's dtype.
            rows: the untransformed rows: (n, hidden_size), float32.
            origins: for each row of `sent`, the positions in `rows` that it stems from; None: the same positions.
        """
        wide, clean = sent.float().numpy(), rows.numpy()
        if origins is None or len(origins) == len(rows):
            return cls(wide, wide, clean, _differ(wide, clean, sent.dtype), range(len(rows)), wide[:0], clean[:0])
        matches: dict[int, int] = {}  # token: row
        inserted = []
        for row, origin in enumerate(origins):
            token = next((token for token in origin if token not in matches), None)
            if token is None:
                inserted.append(row)
            else:
                matches[token] = row
        removed = [token for token in range(len(rows)) if token not in matches]
        matched, tokens = wide[list(matches.values())], list(matches)
        differs = _differ(matched, clean[tokens], sent.dtype)
        return cls(wide, matched, clean[tokens], differs, tokens, wide[inserted], clean[removed])

    @property
    def row_count(self) -> int:
        """Number of matched, inserted and removed rows."""
        return len(self.matched) + len(self.inserted) + len(self.removed)


def _differ(matched: NDArray[np.float32], clean: NDArray[np.float32], dtype: torch.dtype) -> NDArray[np.bool_]:
    import torch

    if dtype == torch.float32:
        return np.not_equal(matched, clean)
    differs = np.empty(matched.shape, np.bool_)
    for part in _parts(matched):
        rounded = torch.from_numpy(clean[part]).to(dtype).float().numpy()
        np.not_equal(matched[part], rounded, out=differs[part])
    return differs


def _parts(matrix: NDArray[np.float32]) -> Iterator[slice]:
    """Yield slices of rows that fit in a core's cache; long prompts take half the time."""
    rows = max(PART_ENTRIES // matrix.shape[1], 1)
    for start in range(0, len(matrix), rows):
        yield slice(start, start + rows)


def perturbation(compared: Comparison) -> Scores:
    """Return all measures of this module, of the sent rows against the untransformed ones.

    For a change Δ of the rows E, as `perturbation/…`:

    - `relative_l2`: ‖Δ‖/‖E‖ (Frobenius).
    - `cosine`: mean of the rows' cosines.
    - `norm_ratio`: ‖E + Δ‖/‖E‖.
    - `snr_db`: 20·log10(‖E‖/‖Δ‖); omitted if nothing changed.
    - `changed`: share of entries that differ after the cast.
    - `rows_kept`: share of matched rows in all matched, inserted and removed rows.
    - `largest_entry`: largest absolute entry of all sent rows.
    - `rows`: number of sent rows.

    Inserted and removed rows count as changed from or to zero. They have no cosine.
    """
    sent, matched, clean = compared.sent, compared.matched, compared.clean
    unmatched = len(compared.inserted) + len(compared.removed)
    counts, cosines, sizes, changes = 0, 0.0, [_norm(compared.removed)], [_norm(compared.inserted)]
    changes.append(sizes[0])
    for part in _parts(matched):
        sizes.append(_norm(clean[part]))
        changes.append(_norm(matched[part] - clean[part]))
        counts += int(np.count_nonzero(compared.differs[part]))
        cosines += _sum_of_cosines(matched[part], clean[part])
    norms, largest = [], 0.0
    for part in _parts(sent):
        norms.append(_norm(sent[part]))
        largest = max(largest, float(sent[part].max()), -float(sent[part].min()))
    size, change = math.hypot(*sizes), math.hypot(*changes)
    scores = {
        "perturbation/relative_l2": change / max(size, 1e-30),
        "perturbation/norm_ratio": math.hypot(*norms) / max(size, 1e-30),
        "perturbation/changed": (counts + unmatched * sent.shape[1]) / (compared.row_count * sent.shape[1]),
        "perturbation/largest_entry": largest,
        "perturbation/rows": float(len(sent)),
        "perturbation/rows_kept": len(matched) / compared.row_count,
    }
    if change > 0 and size > 0:
        scores["perturbation/snr_db"] = 20 * math.log10(size / change)
    if len(matched):
        scores["perturbation/cosine"] = min(max(cosines / len(matched), -1.0), 1.0)
    return scores


def _sum_of_cosines(matched: NDArray[np.float32], clean: NDArray[np.float32]) -> float:
    lengths = [np.maximum(np.abs(m).max(axis=1, keepdims=True), np.float32(1e-30)) for m in (matched, clean)]
    u, v = matched / lengths[0], clean / lengths[1]  # directions do not change, and squares stay within fp32
    squares = np.einsum("ij,ij->i", u, u) * np.einsum("ij,ij->i", v, v)
    cosines = np.einsum("ij,ij->i", u, v) / np.sqrt(np.maximum(squares, np.float32(1e-30)))
    return float(cosines.sum(dtype=np.float64))


def _norm(matrix: NDArray[np.float32]) -> float:
    flat = matrix.ravel()
    with np.errstate(over="ignore"):
        squares = float(np.einsum("i,i->", flat, flat))  # not BLAS, whose threads would compete
    if not math.isfinite(squares):  # entries are finite, their squares overflow fp32
        wide = flat.astype(np.float64)
        squares = float(np.einsum("i,i->", wide, wide))
    return math.sqrt(squares)


@compact
@dataclass(frozen=True, slots=True)
class Neighbours:
    """Sampled changed rows of one prompt, for nearest-token look-ups. Sent between processes.

    Attributes:
        rows: sent rows, evenly spaced among the changed ones: (k, hidden_size), float32.
        token_ids: token originally at each row's position, k in all.
        changed_share: share of changed rows in all matched, inserted and removed rows.
        unmatched_share: share of inserted and removed rows in the same.
    """

    rows: NDArray[np.float32]
    token_ids: list[int]
    changed_share: float
    unmatched_share: float

    @classmethod
    def sample(cls, compared: Comparison, token_ids: Sequence[int], max_rows: int) -> Neighbours:
        """Take up to `max_rows` of the changed rows; `token_ids` are the prompt's."""
        changed = np.flatnonzero(compared.differs.any(axis=1))
        unmatched_share = 1 - len(compared.matched) / compared.row_count
        if not max_rows or not len(changed):
            # A copy, since a view would keep all rows in memory.
            return cls(compared.matched[:0].copy(), [], 0.0, unmatched_share)
        step = -(-len(changed) // max_rows)
        taken = changed[step // 2 :: step]
        ids = [token_ids[compared.tokens[i]] for i in taken]
        return cls(compared.matched[taken], ids, len(changed) / compared.row_count, unmatched_share)


def nearest_token_flips(prompts: Sequence[Neighbours], table: Table, *, on_gpu: bool = False) -> list[float]:
    """Return for each prompt the share of rows whose nearest token (L2) is no longer the original one.

    Unchanged rows are not looked up. The sampled changed rows stand for all changed ones. Inserted and removed rows
    count as flipped.

    Args:
        prompts: the sampled rows of each prompt.
        table: the model's embedding table.
        on_gpu: see `EmbeddingTable.nearest`.
    """
    import torch

    rows = torch.from_numpy(np.concatenate([p.rows for p in prompts]))
    if not len(rows):
        return [p.unmatched_share for p in prompts]
    ids = torch.tensor([token for p in prompts for token in p.token_ids])
    flipped = ~is_own_token_nearest(rows, ids, table, on_gpu=on_gpu)
    sizes = np.array([len(p.token_ids) for p in prompts])
    ends = np.cumsum(sizes)
    counts = np.concatenate([[0], np.cumsum(flipped.numpy())])
    shares = (counts[ends] - counts[ends - sizes]) / np.maximum(sizes, 1)
    return [p.unmatched_share + p.changed_share * share for p, share in zip(prompts, shares, strict=True)]


def is_own_token_nearest(rows: Tensor, ids: Tensor, table: Table, *, on_gpu: bool = False) -> Tensor:
    """Return whether no token of the table is nearer (L2) to a row than the row's own token: (n,), bool.

    Args:
        rows: (n, hidden_size), float32.
        ids: the rows' own tokens: (n,), int64.
        table: the model's embedding table.
        on_gpu: see `EmbeddingTable.nearest`.
    """
    import torch

    moved = (table.rows(ids) - rows).norm(dim=1)
    nearest_own = torch.ones(len(rows), dtype=torch.bool)
    # A row that moved less than half the distance to the nearest other token is still nearest to its own. Searching a
    # large vocabulary takes a second per point.
    (far,) = torch.nonzero(moved >= table.gaps(ids.tolist(), on_gpu=on_gpu) * NEAR, as_tuple=True)
    if len(far):
        distances, nearest = table.nearest(rows[far], on_gpu=on_gpu)
        # If several tokens have the same row, each of them is equally near.
        nearest_own[far] = (nearest[:, 0] == ids[far]) | (moved[far] <= distances[:, 0])
    return nearest_own


def _perturbation(name: str, about: str, low: float = 0.0, high: float = math.inf, **more: Any) -> MeasureSpec:
    return MeasureSpec(f"perturbation/{name}", about, "prompt", (low, high), **more)


FLIPS = "perturbation/nearest_token_flips"
MEASURES = (
    _perturbation(
        "relative_l2",
        "‖ΔE‖/‖E‖ (Frobenius) over the whole prompt",
        title="relative L2",
        shown=Shown(terminal=60, report=10, description=40, live=20),
    ),
    _perturbation("snr_db", "20·log10(‖E‖/‖ΔE‖); left out where nothing changed", -math.inf, unit="dB"),
    _perturbation("cosine", "mean cosine of a row with what it was", -1.0, 1.0),
    _perturbation("norm_ratio", "‖E+ΔE‖/‖E‖"),
    _perturbation("changed", "share of entries that differ after the cast", high=1.0),
    _perturbation(
        "nearest_token_flips",
        "share of rows whose nearest token (L2) changed, of `scoring.nearest_rows`",
        high=1.0,
        title="token flips",
        shown=Shown(terminal=70),
    ),
    _perturbation("dose_requested", "dose that was asked for, in the unit of its parameter", -math.inf),
    _perturbation(
        "dose_achieved",
        "dose after the cast; in a composition each step has its own, `perturbation/0/dose_…`",
        -math.inf,
        title="achieved dose",
        shown=Shown(terminal=80),
    ),
    _perturbation(
        "alignment_error",
        "`transform.align` on held-out texts: ‖aligned - rows‖/‖rows‖",
        title="alignment error",
        shown=Shown(terminal=85),
    ),
    _perturbation("alignment_error_of_mean", "the same error if each token gets the mean row"),
    _perturbation("largest_entry", "largest absolute entry that was sent"),
    _perturbation("rows", "rows that were sent"),
    _perturbation("rows_kept", "share of rows, before and after, that have a counterpart", high=1.0),
)
