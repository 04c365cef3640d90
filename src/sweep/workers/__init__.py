"""Worker pool: CPU processes or threads that prepare requests and score finished points while the engine runs."""

from __future__ import annotations

from collections.abc import Sequence

from sweep.processes.cpu import default_pool_size, usable_cores
from sweep.workers.base import WorkerPool
from sweep.workers.process_pool import ProcessPool
from sweep.workers.thread_pool import ThreadPool

FEW_CORES, NICE = 4, 10


def open_worker_pool(count: int | None, plugins: Sequence[str] = (), *, on_gpu: bool = False) -> WorkerPool:
    """Return a worker pool. It starts processes or threads when it is first used.

    Args:
        count: number of processes; 0: threads of this process; None: depends on the cores that this process may use.
        plugins: modules that register transforms; they are imported in each process.
        on_gpu: whether processes may use a GPU for scoring.
    """
    cores = usable_cores()
    if count is None:
        count = default_pool_size() if cores > 1 else 0
    if count == 0:
        return ThreadPool()
    # With few cores, the engine shares them with the pool and has priority.
    nice = NICE if cores < FEW_CORES else 0
    return ProcessPool(count, plugins, threads=max(cores - count - 1, 1), nice=nice, on_gpu=on_gpu)
