"""Input-embedding table of a model, read only for the rows that are needed.

Rows equal those of the engine's embedding layer. They are cast to the engine's dtype and multiplied where the family
multiplies inside its embedding layer (Gemma, MiniCPM). They are then widened to fp32, in which all transforms compute.
Granite and Falcon-H1 multiply later, in every engine, and are therefore not in the list.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sweep.errors import TransformError
from sweep.inputs.gpu_search import GpuSearch, open_search

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sweep.inputs.lora import LoraAdapter

log = logging.getLogger(__name__)

PIECE_ENTRIES = 2**22  # table entries widened to fp32 at a time: 16 MiB, about the size of a CPU cache
COMPUTED = ("components", "std", "_moments", "_gaps")  # slow to compute and small to send
LARGE_ENTRIES = 2**26  # table entries from which starting a GPU pays off
KEPT_BYTES = 64 * 2**20  # tables up to this size in fp32 are widened once and kept


@dataclass(frozen=True)
class EmbeddingTable:
    """An input-embedding table, opened on first use.

    Owned by one thread of each process. A pickled copy opens the table again and keeps the computed statistics.

    Attributes:
        open: returns the table in the checkpoint's dtype, (size or more, hidden_size); memory-mapped where possible.
        size: number of rows that stand for tokens; rows beyond are padding.
        hidden_size: width of a row.
        engine_dtype: name of the engine's dtype, such as `bfloat16`.
        multiplier: factor that the family's embedding layer applies to rows; None for most.
        adapter: adapter with which engines run the model; its change of the table is part of all rows.
    """

    open: Callable[[], Tensor]
    size: int
    hidden_size: int
    engine_dtype: str
    multiplier: float | None = None
    adapter: LoraAdapter | None = None

    def __reduce__(self) -> tuple[type[EmbeddingTable], tuple[Any, ...], dict[str, Any]]:
        """Pickle without the table's data, but with statistics that were computed from all of it."""
        arguments = self.open, self.size, self.hidden_size, self.engine_dtype, self.multiplier, self.adapter
        return EmbeddingTable, arguments, {name: value for name, value in vars(self).items() if name in COMPUTED}

    @cached_property
    def weight(self) -> Tensor:
        """The opened table, (size or more, hidden_size), in the checkpoint's dtype.

        Raises:
            ConfigError: the table cannot be read.
        """
        return self.open()

    @property
    def adapter_folder(self) -> str | None:
        """Folder of the adapter, which requests with these rows name; None without one."""
        return None if self.adapter is None else str(self.adapter.folder)

    @cached_property
    def dtype(self) -> torch.dtype:
        """The engine's dtype."""
        import torch

        dtype: torch.dtype = getattr(torch, self.engine_dtype)
        return dtype

    def rows(self, token_ids: Sequence[int] | Tensor) -> Tensor:
        """Return the rows of tokens: (len(token_ids), hidden_size), float32.

        Raises:
            TransformError: the table has no row for one of the tokens.
        """
        import torch

        ids = torch.as_tensor(token_ids)
        if len(ids) and (int(ids.min()) < 0 or int(ids.max()) >= self.size):
            outside = next(token for token in ids.tolist() if not 0 <= token < self.size)
            raise TransformError(f"the token {outside} is beyond the model's embedding table of {self.size} rows")
        return self._as_engine(self.weight.index_select(0, ids), ids).float()

    @cached_property
    def std(self) -> float:
        """Standard deviation of all entries, in the engine's values."""
        return math.sqrt(max(self.rms**2 - float(self.mean.double().mean()) ** 2, 0.0))

    @property
    def rms(self) -> float:
        """Root mean square of all entries."""
        return math.sqrt(self._moments[1])

    @property
    def mean(self) -> Tensor:
        """Mean row: (hidden_size,), float32."""
        return self._moments[0]

    @cached_property
    def components(self) -> Tensor:
        """Principal components of the rows around their mean: (hidden_size, hidden_size), columns, largest first."""
        import torch

        covariance = torch.zeros(self.hidden_size, self.hidden_size, dtype=torch.float64)
        for _, piece in self._pieces():
            centred = piece - self.mean
            covariance += centred.T @ centred
        vectors: Tensor = torch.linalg.eigh(covariance).eigenvectors
        return vectors.flip(1).float()

    def nearest(self, rows: Tensor, k: int = 1, metric: str = "l2", *, on_gpu: bool = False) -> tuple[Tensor, Tensor]:
        """Return the k nearest tokens of each row, nearest first. The table is widened and compared piece by piece.

        Args:
            rows: (n, hidden_size), float32.
            k: number of tokens per row.
            metric: `l2`, `cosine` (1 - cosine) or `dot` (negative dot product).
            on_gpu: whether candidates may be searched on a GPU. This happens only for `l2`, for a large table, with
                enough GPU memory, and for rows that the engine's dtype represents exactly. Distances are always
                computed on the CPU.

        Returns:
            Distances (n, k), float32, and token ids (n, k), int64.
        """
        # Rounding can swap nearly equal l2 distances. They are recomputed exactly for a few extra candidates.
        count = min(k + 4 if metric == "l2" else k, self.size)
        ids = self._candidates_on_gpu(rows, count) if on_gpu and metric == "l2" else None
        if ids is None:
            scores, ids = self._candidates(rows, count, metric)
            if metric != "l2":
                return (1 - scores if metric == "cosine" else -scores), ids
        distances = (self.rows(ids.flatten()).view(*ids.shape, -1) - rows[:, None]).norm(dim=2)
        nearest = distances.topk(min(k, count), largest=False)
        return nearest.values, ids.gather(1, nearest.indices)

    def _candidates(self, rows: Tensor, count: int, metric: str) -> tuple[Tensor, Tensor]:
        import torch

        scores = torch.empty(len(rows), 0)
        ids = torch.empty(len(rows), 0, dtype=torch.long)
        queries = torch.nn.functional.normalize(rows) if metric == "cosine" else rows
        for start, piece in self._pieces():
            if metric == "cosine":
                piece = torch.nn.functional.normalize(piece)
            score = queries @ piece.T
            if metric == "l2":
                score -= self._half_squares[start : start + len(piece)]
            best = score.topk(min(count, len(piece)))
            scores, ids = torch.cat([scores, best.values], 1), torch.cat([ids, best.indices + start], 1)
            if scores.shape[1] > count:
                kept = scores.topk(count)
                scores, ids = kept.values, ids.gather(1, kept.indices)
        return scores, ids

    def _candidates_on_gpu(self, rows: Tensor, count: int) -> Tensor | None:
        """Return the ids of the nearest tokens up to rounding; None if the GPU is not to be used."""
        exact = rows.to(self.dtype)
        if self.size * self.hidden_size < LARGE_ENTRIES or not exact.float().equal(rows) or self._search is None:
            return None
        try:
            return self._search.candidates(exact, count)
        except RuntimeError as error:  # the engine has used the memory in the meantime
            log.info("Nearest tokens are searched on the CPU: %s", error)
            return None

    @cached_property
    def _search(self) -> GpuSearch | None:
        return open_search(self._slice(0, self.size))

    def gaps(self, token_ids: Sequence[int], *, on_gpu: bool = False) -> Tensor:
        """Return the L2 distance from each token's row to the nearest other token's row: (len(token_ids),), float32.

        Computed once per token. See `nearest` for `on_gpu`.
        """
        import torch

        if missing := sorted(set(token_ids) - self._gaps.keys()):
            # k=2, because the nearest token is the token itself or one with an equal row.
            distances, _ = self.nearest(self.rows(missing), k=2, on_gpu=on_gpu)
            self._gaps.update(zip(missing, distances[:, -1].tolist(), strict=True))
        return torch.tensor([self._gaps[token] for token in token_ids])

    @cached_property
    def _gaps(self) -> dict[int, float]:
        return {}

    @cached_property
    def _moments(self) -> tuple[Tensor, float]:
        import torch

        total = torch.zeros(self.hidden_size, dtype=torch.float64)
        squares = 0.0
        for _, piece in self._pieces():
            entries = piece.double()
            total += entries.sum(0)
            squares += float(entries.square().sum())
        return (total / self.size).float(), squares / (self.size * self.hidden_size)

    @cached_property
    def _half_squares(self) -> Tensor:
        import torch

        return torch.cat([piece.square().sum(1) / 2 for _, piece in self._pieces()])

    @cached_property
    def _wide(self) -> Tensor | None:
        """The table in fp32, if it is small enough to keep."""
        small = self.size * self.hidden_size * 4 <= KEPT_BYTES
        return self._slice(0, self.size).float() if small else None

    def _pieces(self) -> Iterator[tuple[int, Tensor]]:
        piece = max(PIECE_ENTRIES // self.hidden_size, 1)
        for start in range(0, self.size, piece):
            stop = min(start + piece, self.size)
            kept = self._wide
            yield start, self._slice(start, stop).float() if kept is None else kept[start:stop]

    def _slice(self, start: int, stop: int) -> Tensor:
        return self._as_engine(self.weight[start:stop], slice(start, stop))

    def _as_engine(self, rows: Tensor, token_ids: Tensor | slice) -> Tensor:
        """Return rows of the table, for the tokens, as the engine's embedding layer returns them."""
        import torch

        rows = rows.to(self.dtype)
        if self.adapter is not None and self.adapter.embedding is not None:
            rows = (rows.float() + self.adapter.embedding.rows(token_ids, self.dtype)).to(self.dtype)
        return rows if self.multiplier is None else rows * torch.tensor(self.multiplier, dtype=self.dtype)
