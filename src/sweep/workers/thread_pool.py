"""Helpers in this process: for one that has a single core, or is to take no more memory than it must."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property

from sweep.config import SweepConfig
from sweep.cores import helping_hands
from sweep.disk.archive import Archive
from sweep.helpers import jobs
from sweep.helpers.base import Built, Scored, Unbuilt
from sweep.inputs.corpus import Corpus
from sweep.outcome import Finished

SWITCH_SECONDS = 1e-4


class Threads:
    """Some threads that build, and one that scores; see `Helpers`."""

    def prepare(self) -> None:
        """Note how many threads products of matrices may have, before an engine whose core is elsewhere takes them."""
        _ = self._products

    def build(
        self, corpus: Corpus, config: SweepConfig, prompts: Sequence[int], unsent: frozenset[int], most: int
    ) -> Future[list[Built | Unbuilt]]:
        """As of `Helpers`."""
        return self._builders.submit(jobs.build_some, corpus, config, prompts, unsent, most)

    def score(self, corpus: Corpus, finished: Finished, archive: Archive) -> Future[Scored]:
        """As of `Helpers`."""
        return self._scorer.submit(jobs.score, corpus, finished, archive)

    def close(self) -> None:
        """As of `Helpers`, but for what is being done, which Python's threads cannot be kept from."""
        for pool in (self.__dict__.pop(name, None) for name in ("_builders", "_scorer")):
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)

    @cached_property
    def _products(self) -> int:
        import torch

        return torch.get_num_threads()

    @cached_property
    def _scorer(self) -> ThreadPoolExecutor:
        import torch

        return ThreadPoolExecutor(1, "scorer", torch.set_num_threads, (self._products,))

    @cached_property
    def _builders(self) -> ThreadPoolExecutor:
        import torch

        # A thread that comes back from PyTorch or NumPy waits so long for one that is in Python, some thirty times a
        # request: with Python's own 5 ms, building took a hundred times as long beside a busy thread as alone.
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_SECONDS))
        count = helping_hands()
        pool = ThreadPoolExecutor(count, "builder")
        # One OpenMP thread for each: matrices of this size gain nothing from more, and where other processes want the
        # cores, threads that wait for each other take ten times as long.  PyTorch sets the number for the thread that
        # says so and for threads to come, for which it is set back.
        before, limited = torch.get_num_threads(), threading.Barrier(count + 1)
        for _ in range(count):
            pool.submit(_limit, limited)
        try:
            limited.wait()
        except BaseException:  # an interrupt; else they would wait for ever, and the process for them
            limited.abort()
            raise
        torch.set_num_threads(before)
        return pool


def _limit(limited: threading.Barrier) -> None:
    import torch

    torch.set_num_threads(1)
    with suppress(threading.BrokenBarrierError):
        limited.wait()
