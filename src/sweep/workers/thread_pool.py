"""Worker pool of threads in this process: for a single core, or to save memory."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property

from sweep.config.schema import SweepConfig
from sweep.inputs.prompt_set import PromptSet
from sweep.planning.results import Finished
from sweep.processes.cpu import default_pool_size
from sweep.storage.archive import Archive
from sweep.workers import tasks
from sweep.workers.base import Built, Scored, Unbuilt

SWITCH_SECONDS = 1e-4


class ThreadPool:
    """Several threads that build requests and one that scores points; see `WorkerPool`.

    Owned by the main thread, or by a `ProcessPool`, which calls it from several threads, one at a time.
    """

    def prepare(self) -> None:
        """Remember the number of PyTorch threads before an engine in another process reduces it."""
        _ = self._torch_threads

    def build(
        self,
        corpus: PromptSet,
        config: SweepConfig,
        prompts: Sequence[int],
        measure_only: frozenset[int],
        max_rows: int,
    ) -> Future[list[Built | Unbuilt]]:
        """Build requests of one point; see `WorkerPool.build`."""
        return self._builders.submit(tasks.build_requests, corpus, config, prompts, measure_only, max_rows)

    def score(self, corpus: PromptSet, finished: Finished, archive: Archive) -> Future[Scored]:
        """Score a point and archive it; see `WorkerPool.score`."""
        return self._scorer.submit(tasks.score, corpus, finished, archive)

    def close(self) -> None:
        """Cancel waiting tasks. Running tasks continue, because Python cannot stop threads."""
        for pool in (self.__dict__.pop(name, None) for name in ("_builders", "_scorer")):
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)

    @cached_property
    def _torch_threads(self) -> int:
        import torch

        return torch.get_num_threads()

    @cached_property
    def _scorer(self) -> ThreadPoolExecutor:
        import torch

        return ThreadPoolExecutor(1, "scorer", torch.set_num_threads, (self._torch_threads,))

    @cached_property
    def _builders(self) -> ThreadPoolExecutor:
        import torch

        # A thread that returns from PyTorch or NumPy waits one switch interval for a thread that runs Python, about
        # thirty times per request. With Python's default of 5 ms, building took a hundred times as long next to a busy
        # thread as alone.
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_SECONDS))
        count = default_pool_size()
        pool = ThreadPoolExecutor(count, "builder")
        # One OpenMP thread per builder: matrices of this size gain nothing from more. If other processes use the cores,
        # threads that wait for each other take ten times as long. PyTorch sets the number for the calling thread and
        # for future threads, so the latter is restored afterwards.
        before, all_limited = torch.get_num_threads(), threading.Barrier(count + 1)
        for _ in range(count):
            pool.submit(_limit_torch_threads, all_limited)
        try:
            all_limited.wait()
        except BaseException:  # on an interrupt, the builders would otherwise wait forever and block the exit
            all_limited.abort()
            raise
        torch.set_num_threads(before)
        return pool


def _limit_torch_threads(all_limited: threading.Barrier) -> None:
    import torch

    torch.set_num_threads(1)
    with suppress(threading.BrokenBarrierError):
        all_limited.wait()
