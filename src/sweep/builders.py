"""Requests built on threads of their own, some ahead of whoever takes them.

Rows, transforms and what is measured of them take about a millisecond a request, which the engine would wait for.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import torch

from sweep.config import SweepConfig
from sweep.engines.base import Request
from sweep.inputs.corpus import Corpus
from sweep.inputs.encoding import EncodedPrompt
from sweep.request import Measured, build

T = TypeVar("T")

AHEAD = 32  # requests that are built before they are asked for
CORES = 4  # for each builder, of which there are up to MOST
MOST = 4
SWITCH_SECONDS = 1e-4


@dataclass(frozen=True, slots=True)
class Built:
    """A request that has been built.

    Attributes:
        seconds: that it took, of which transform_seconds in transforms.
        measuring: what is being measured of it, on the same threads.
    """

    request: Request
    seconds: float
    transform_seconds: float
    measuring: Future[Measured]


class Builders:
    """Threads that build requests."""

    def __init__(self) -> None:
        # A thread that comes back from PyTorch or NumPy waits so long for one that is in Python, some thirty times a
        # request: with Python's own 5 ms, building took a hundred times as long beside a busy thread as alone.
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_SECONDS))
        count = max(1, min(MOST, (os.cpu_count() or 1) // CORES))
        self._pool = ThreadPoolExecutor(count, "builder")
        # One OpenMP thread for each: matrices of this size gain nothing from more, and where other processes want the
        # cores, threads that wait for each other take ten times as long.  PyTorch sets the number for the thread that
        # says so and for threads to come, for which it is set back.
        before, limited = torch.get_num_threads(), threading.Barrier(count + 1)
        for _ in range(count):
            self._pool.submit(_limit, limited)
        try:
            limited.wait()
        except BaseException:  # an interrupt; else they would wait for ever, and the process for them
            limited.abort()
            raise
        torch.set_num_threads(before)

    def build(
        self, key: Hashable, config: SweepConfig, encoded: EncodedPrompt, corpus: Corpus, max_length: int
    ) -> Future[Built]:
        """Have a request built, as of `request.build`, and then measured."""
        return self._pool.submit(self._build, key, config, encoded, corpus, max_length)

    def close(self) -> None:
        """End the threads, once what they have been given is done."""
        self._pool.shutdown(wait=False)

    def _build(
        self, key: Hashable, config: SweepConfig, encoded: EncodedPrompt, corpus: Corpus, max_length: int
    ) -> Built:
        began = time.perf_counter()
        built = build(key, config, encoded, corpus, max_length)
        measuring = self._pool.submit(built.measure)
        return Built(built.request, time.perf_counter() - began, built.transform_seconds, measuring)


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
    with suppress(threading.BrokenBarrierError):
        limited.wait()
