"""Nearest rows of an embedding table, searched on a GPU that an engine mostly occupies.

With a large vocabulary, 256 rows take a second on a CPU and milliseconds on a GPU. Only a small part of the GPU's
memory is used, because the engine has planned with the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

log = logging.getLogger(__name__)

SHARE = 0.03  # fraction of the GPU's memory; vLLM leaves a tenth free by default
SPARE_BYTES = 2**29  # free memory left for an engine whose needs vary
LEAST_BYTES = 2**26  # with less, the CPU is faster
SQUARED_ROWS = 4096  # rows widened to fp32 at a time
MAX_ROWS = 1024  # rows searched at a time


class GpuSearch:
    """Search in one table on the GPU, resident or copied slice by slice for each search.

    Owned by one thread. GPU memory is freed with the object.

    Attributes:
        slice_rows: number of table rows compared at a time.
        resident: whether the whole table stays on the GPU.
    """

    def __init__(self, weight: Tensor, device: torch.device, budget: int) -> None:
        """Allocate memory and compute the norms of all rows.

        Args:
            weight: the table in the engine's dtype, (size, hidden_size).
            device: the GPU.
            budget: number of bytes that may be used.

        Raises:
            RuntimeError: the GPU has too little memory, or does not work.
        """
        import torch

        self._weight, self._device = weight, device
        row_bytes = weight.shape[1] * weight.element_size()
        # Scores are fp32 and counted twice, because the best of them are copied.
        row_and_score_bytes = row_bytes + 2 * 4 * MAX_ROWS
        self.resident = len(weight) * row_bytes + LEAST_BYTES <= budget
        room = budget - len(weight) * row_bytes if self.resident else budget
        self.slice_rows = max(room // (row_and_score_bytes - row_bytes * self.resident), 1)
        self._resident = weight.to(device) if self.resident else None
        self._half_squares = torch.cat([_half_squares(piece) for _, piece in self._pieces()])

    def candidates(self, rows: Tensor, count: int) -> Tensor:
        """Return the ids of the nearest tokens of each row by fp32 scores, nearest first.

        Scores have the rounding of an fp32 sum in the GPU's order, so nearly equal distances may be swapped.

        Args:
            rows: (n, hidden_size), in the table's dtype; products of entries are then exact.
            count: number of tokens per row.

        Returns:
            (n, count), int64, on the CPU.

        Raises:
            RuntimeError: the GPU has run out of memory, or does not work.
        """
        import torch

        ids = [self._candidates(part.to(self._device), count).cpu() for part in torch.split(rows, MAX_ROWS)]
        return torch.cat(ids)

    def _candidates(self, rows: Tensor, count: int) -> Tensor:
        import torch

        scores = torch.empty(len(rows), 0, device=self._device)
        ids = torch.empty(len(rows), 0, dtype=torch.long, device=self._device)
        for start, piece in self._pieces():
            score = _product(rows, piece) - self._half_squares[start : start + len(piece)]
            best = score.topk(min(count, len(piece)))
            scores, ids = torch.cat([scores, best.values], 1), torch.cat([ids, best.indices + start], 1)
            kept = scores.topk(min(count, scores.shape[1]))
            scores, ids = kept.values, ids.gather(1, kept.indices)
        return ids

    def _pieces(self) -> Iterator[tuple[int, Tensor]]:
        for start in range(0, len(self._weight), self.slice_rows):
            stop, kept = start + self.slice_rows, self._resident
            yield start, self._weight[start:stop].to(self._device) if kept is None else kept[start:stop]


def open_search(weight: Tensor) -> GpuSearch | None:
    """Return a search in a table on the first visible GPU; None without a GPU or enough free memory.

    Args:
        weight: the table in the engine's dtype, (size, hidden_size).
    """
    import torch

    if not torch.cuda.is_available():
        return None
    try:
        device = torch.device("cuda", 0)
        free, total = torch.cuda.mem_get_info(device)
        budget = min(int(SHARE * total), free - SPARE_BYTES)
        if budget < LEAST_BYTES:
            log.info("Nearest tokens are searched on the CPU: the GPU has only %d MiB free.", free // 2**20)
            return None
        return GpuSearch(weight, device, budget)
    except RuntimeError as error:  # out of memory, or another process uses the GPU exclusively
        log.info("Nearest tokens are searched on the CPU: %s", error)
        return None


def _half_squares(piece: Tensor) -> Tensor:
    """Return half the squared norm of each row, (rows,), float32, computed a few thousand rows at a time."""
    import torch

    return torch.cat([part.float().square().sum(1) / 2 for part in torch.split(piece, SQUARED_ROWS)])


def _product(rows: Tensor, piece: Tensor) -> Tensor:
    """Return rows @ piece.T in fp32, without rounding half-precision factors or the result."""
    import torch

    if rows.dtype == torch.float32:
        return rows @ piece.T
    if rows.is_cuda:
        return torch.mm(rows, piece.T, out_dtype=torch.float32)
    return rows.float() @ piece.float().T  # on the CPU, for tests
