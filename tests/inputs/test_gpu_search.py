"""What a GPU finds are the rows that the CPU finds; here the CPU stands in for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from sweep.inputs import embedding_table
from sweep.inputs.embedding_table import EmbeddingTable
from sweep.inputs.gpu_search import LEAST_BYTES, GpuSearch, open_search

CPU = torch.device("cpu")


def search_of(table: EmbeddingTable, budget: int) -> GpuSearch:
    return GpuSearch(table._slice(0, table.size), CPU, budget)


def rows_of(table: EmbeddingTable, count: int = 300) -> torch.Tensor:
    """Return rows near tokens and far from them, as the engine's dtype has them."""
    noise = torch.randn(count, table.hidden_size, generator=torch.Generator().manual_seed(1))
    rows = table.rows([i % table.size for i in range(count)]) * 2 + noise * table.std
    return rows.to(table.dtype).float()


@pytest.fixture(params=["float32", "bfloat16", "float16"])
def large(table: EmbeddingTable, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> EmbeddingTable:
    """The tiny Llama's table in some dtype, taken for a large one."""
    monkeypatch.setattr(embedding_table, "LARGE_ENTRIES", 0)
    return replace(table, engine_dtype=request.param)


@pytest.mark.parametrize("budget", [2**30, 40_000, 1])
def test_candidates_equal_the_cpus(large: EmbeddingTable, budget: int) -> None:
    search, rows = search_of(large, budget), rows_of(large, 1100)
    assert search.resident is (budget == 2**30) and (budget != 1 or search.slice_rows == 1)
    found = search.candidates(rows.to(large.dtype), 6)
    assert found.shape == (1100, 6)
    distances = torch.cdist(rows, large.rows(range(large.size)), compute_mode="donot_use_mm_for_euclid_dist")
    expected = distances.topk(6, largest=False)
    assert torch.allclose(distances.gather(1, found), expected.values, atol=1e-5)


def test_nearest_tokens_equal_the_cpus(large: EmbeddingTable, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(large)
    expected = large.nearest(rows, k=2), large.gaps([3, 5])
    calls: list[int] = []
    search = search_of(large, 2**30)

    def candidates(rows: torch.Tensor, count: int) -> torch.Tensor:
        calls.append(len(rows))
        return GpuSearch.candidates(search, rows, count)

    monkeypatch.setattr(search, "candidates", candidates)
    large.__dict__["_search"] = search
    large._gaps.clear()
    found = large.nearest(rows, k=2, on_gpu=True), large.gaps([3, 5], on_gpu=True)
    assert calls == [300, 2]
    assert torch.equal(found[0][1], expected[0][1]) and torch.equal(found[0][0], expected[0][0])
    assert torch.equal(found[1], expected[1])
    large.nearest(rows, metric="cosine", on_gpu=True)
    if large.engine_dtype != "float32":
        large.nearest(rows + 1e-6, on_gpu=True)  # the dtype would round them
    assert calls == [300, 2]


def test_full_gpu_falls_back_to_the_cpu(large: EmbeddingTable, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, search = rows_of(large), search_of(large, 2**30)
    monkeypatch.setattr(
        search, "candidates", lambda *_: (_ for _ in ()).throw(torch.cuda.OutOfMemoryError("out of memory"))
    )
    large.__dict__["_search"] = search
    assert torch.equal(large.nearest(rows, on_gpu=True)[1], large.nearest(rows)[1])


def test_small_tables_do_not_use_the_gpu(table: EmbeddingTable) -> None:
    table.nearest(rows_of(table), on_gpu=True)
    assert "_search" not in vars(table)


@pytest.mark.parametrize(
    ("memory", "opened"),
    [
        ((10 * 2**30, 80 * 2**30), True),
        ((LEAST_BYTES, 80 * 2**30), False),
        (RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable"), False),
    ],
)
def test_gpu_search_opens_if_memory_suffices(monkeypatch: pytest.MonkeyPatch, memory: Any, opened: bool) -> None:
    def mem_get_info(device: torch.device) -> tuple[int, int]:
        if isinstance(memory, Exception):
            raise memory
        return tuple(memory)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", mem_get_info)
    made: list[int] = []
    monkeypatch.setattr("sweep.inputs.gpu_search.GpuSearch", lambda *arguments: made.append(arguments[-1]) or "search")
    found = open_search(torch.zeros(4, 2))
    assert (found is not None) is opened and made == ([int(0.03 * memory[1])] if opened else [])


def test_no_gpu_search_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert open_search(torch.zeros(4, 2)) is None
