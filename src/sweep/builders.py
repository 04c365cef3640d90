"""Requests built on threads of their own, some ahead of whoever takes them.

Rows, transforms and what is measured of them take about a millisecond a request, which the engine would wait for.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from sweep.config import SweepConfig
from sweep.inputs.corpus import Corpus
from sweep.inputs.encoding import EncodedPrompt
from sweep.request import BuiltRequest, build

T = TypeVar("T")

AHEAD = 32  # requests that are built before they are asked for
CORES = 4  # for each builder, of which there are up to MOST
MOST = 4

Built = tuple[BuiltRequest, float]  # and the seconds that it took


class Builders:
    """Threads that build requests."""

    def __init__(self) -> None:
        count = max(1, min(MOST, (os.cpu_count() or 1) // CORES))
        self._pool = ThreadPoolExecutor(count, "builder")
        # One OpenMP thread for each: matrices of this size gain nothing from more, and where other processes want the
        # cores, threads that wait for each other take ten times as long.  PyTorch sets the number for the thread that
        # says so and for threads to come, for which it is set back.
        before, limited = torch.get_num_threads(), threading.Barrier(count + 1)
        for _ in range(count):
            self._pool.submit(_limit, limited)
        limited.wait()
        torch.set_num_threads(before)

    def build(
        self, key: Hashable, config: SweepConfig, encoded: EncodedPrompt, corpus: Corpus, max_length: int
    ) -> Future[Built]:
        """Have a request built; as of `request.build`."""
        return self._pool.submit(_build, key, config, encoded, corpus, max_length)

    def close(self) -> None:
        """End the threads; what waits is not built."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield items as they come, but take some more of them first."""
    taken: deque[T] = deque()
    for item in items:
        taken.append(item)
        if len(taken) > AHEAD:
            yield taken.popleft()
    yield from taken


def _limit(limited: threading.Barrier) -> None:
    torch.set_num_threads(1)
    limited.wait()


def _build(key: Hashable, config: SweepConfig, encoded: EncodedPrompt, corpus: Corpus, max_length: int) -> Built:
    began = time.perf_counter()
    return build(key, config, encoded, corpus, max_length), time.perf_counter() - began
