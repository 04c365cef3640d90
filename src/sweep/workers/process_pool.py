"""Worker pool of processes, so that the engine does not share its Python interpreter with the pool.

Building and measuring a request takes about a millisecond. Scoring a point takes a millisecond per prompt, and the
search for nearest tokens in a large vocabulary takes a second.
"""

from __future__ import annotations

import logging
import pickle
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary, finalize

from sweep.config.schema import SweepConfig
from sweep.errors import SweepError
from sweep.inputs.prompt_set import PromptSet
from sweep.planning.results import Finished
from sweep.processes.child import CallLoss, ChildProcess
from sweep.storage.archive import Archive
from sweep.workers.base import Built, Scored, Unbuilt, WorkerLost
from sweep.workers.thread_pool import ThreadPool
from sweep.workers.worker_main import PoolWorker

log = logging.getLogger(__name__)

END_SECONDS = 0.5  # for a process to end
# Keeps glibc's allocator from returning memory to the system. By default, each matrix of a megabyte gets new pages,
# which cost more than the computation.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(2**25),  # the maximum
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "MALLOC_TOP_PAD_": str(2**26),
}
QUEUED = 4  # points that the first process has to score before idle ones take some
MAX_CRASHES = 2  # processes that may die during a task before the task fails


class ProcessPool:
    """Pool processes that each execute one task at a time; see `WorkerPool`.

    If a process dies, its current task is retried once, and so are the tasks in its queue. Tasks that cannot be
    pickled are executed in this process, and so are all tasks if the processes do not start.

    Points go to the first process. While it has 4 or more queued, idle processes other than the last take them. So
    requests never wait for a point.

    Methods may be called from any thread. Results arrive on the threads that read the answers of the processes.
    """

    def __init__(self, size: int, plugins: Sequence[str], threads: int, nice: int = 0, *, on_gpu: bool = False) -> None:
        """Configure the pool without starting processes.

        Args:
            size: number of processes.
            plugins: modules to import in each process.
            threads: PyTorch threads of each process for large matrix products.
            nice: see `ChildProcess`.
            on_gpu: whether the first process may use a GPU for scoring. More processes would need more GPU memory.
        """
        self._size, self._plugins, self._threads, self._nice = size, tuple(plugins), threads, nice
        self._on_gpu = on_gpu
        self._local_pool = ThreadPool()
        self._processes: list[ChildProcess] = []
        self._points = [0] * size  # number of points that each process has to score
        self._lock = threading.Lock()
        self._closed = self._start_failed = False
        self._new_numbers = count()
        self._corpora: WeakValueDictionary[int, PromptSet] = WeakValueDictionary()
        self._numbers: WeakKeyDictionary[PromptSet, int] = WeakKeyDictionary()
        self._unused_numbers: deque[int] = deque()
        self._last_config: tuple[SweepConfig, bytes] | None = None

    def prepare(self) -> None:
        """Start the processes; see `WorkerPool.prepare`."""
        self._local_pool.prepare()
        with self._lock:
            while len(self._processes) < self._size and not self._closed:
                arguments = partial(self._worker_arguments, self._on_gpu and not self._processes)
                self._processes.append(
                    ChildProcess(PoolWorker, arguments, WorkerLost, nice=self._nice, variables=ALLOCATOR)
                )

    def build(
        self,
        corpus: PromptSet,
        config: SweepConfig,
        prompts: Sequence[int],
        measure_only: frozenset[int],
        max_rows: int,
    ) -> Future[list[Built | Unbuilt]]:
        """Build requests of one point; see `WorkerPool.build`."""
        run_locally = partial(self._local_pool.build, corpus, config, prompts, measure_only, max_rows)
        try:
            if self._last_config is None or self._last_config[0] is not config:
                self._last_config = config, pickle.dumps(config, pickle.HIGHEST_PROTOCOL)
        except Exception as error:  # a user's transform that cannot be pickled
            log.info("%s cannot be sent to a pool process: %s", config.transform.name, error)
            with self._lock:
                return run_locally()
        arguments = self._number_of(corpus), self._last_config[1], prompts, measure_only, max_rows
        dtype = corpus.table.dtype
        return self._submit(_Task("build", arguments, run_locally, lambda packed: packed.unpack(dtype)))

    def score(self, corpus: PromptSet, finished: Finished, archive: Archive) -> Future[Scored]:
        """Score a point and archive it; see `WorkerPool.score`."""
        run_locally = partial(self._local_pool.score, corpus, finished, archive)
        return self._submit(_Task("score", (self._number_of(corpus), finished, archive), run_locally))

    def close(self) -> None:
        """End the processes without waiting for their tasks; see `WorkerPool.close`."""
        with self._lock:
            self._closed = True
        for process in self._processes:
            process.close(END_SECONDS)
        self._local_pool.close()

    def _worker_arguments(self, on_gpu: bool) -> tuple[Any, ...]:
        """Return the arguments of `PoolWorker`, with the prompt sets in use when the process starts."""
        return (
            self._plugins,
            self._threads,
            on_gpu,
            {n: pickle.dumps(corpus) for n, corpus in list(self._corpora.items())},
        )

    def _number_of(self, corpus: PromptSet) -> int:
        """Return the number by which all processes identify a prompt set; send them a new one."""
        self.prepare()
        while self._unused_numbers:
            self._call_all("remove_corpus", self._unused_numbers.popleft())
        number = self._numbers.get(corpus)
        if number is None:
            number = self._numbers[corpus] = next(self._new_numbers)
            self._corpora[number] = corpus
            self._call_all("add_corpus", number, pickle.dumps(corpus, pickle.HIGHEST_PROTOCOL))
            # The finalizer only records the number, because it may run during a call to a process.
            finalize(corpus, self._unused_numbers.append, number).atexit = False
        return number

    def _call_all(self, method: str, *arguments: Any) -> None:
        for process in () if self._start_failed else self._processes:
            with suppress(WorkerLost):  # a new process gets the prompt sets when it starts
                process.call(method, *arguments)

    def _submit(self, task: _Task) -> Future[Any]:
        self._send(task)
        return task.future

    def _send(self, task: _Task) -> None:
        if self._start_failed:
            return self._run_locally(task)
        with self._lock:
            index = self._choose(task)
            self._points[index] += task.is_point
        try:
            answer = self._processes[index].call(task.method, *task.arguments)
        except WorkerLost as error:
            self._release(index, task)
            self._handle_loss(task, error)
        else:
            answer.add_done_callback(partial(self._handle_answer, index, task))

    def _choose(self, task: _Task) -> int:
        """Return the index of the process for a task."""
        indices = range(len(self._processes))
        if task.is_point:
            # Processes after the first score only when they have nothing to build, or the engine would wait.
            free = [index for index in indices[:-1] or indices if not index or not self._processes[index].pending]
            return min(free, key=lambda index: self._points[index] // QUEUED)
        return min(indices[::-1], key=lambda index: (self._points[index] > 0, self._processes[index].pending))

    def _release(self, index: int, task: _Task) -> None:
        with self._lock:
            self._points[index] -= task.is_point

    def _handle_answer(self, index: int, task: _Task, answer: Future[Any]) -> None:
        self._release(index, task)
        try:
            task.future.set_result(task.decode(answer.result()))
        except WorkerLost as error:
            self._handle_loss(task, error)
        except SweepError as error:
            task.future.set_exception(error)
        except Exception:
            log.info("A task failed in a pool process and is repeated in the main process.", exc_info=True)
            self._run_locally(task)

    def _handle_loss(self, task: _Task, error: WorkerLost) -> None:
        if self._closed:
            task.future.cancel()
            return
        if error.loss is CallLoss.START_FAILED and not self._start_failed:
            self._start_failed = True
            log.warning("%s The main process does its work instead; see sweep.log.", error)
        task.crashes += error.loss is CallLoss.RUNNING
        if error.loss in (CallLoss.RUNNING, CallLoss.QUEUED) and task.crashes < MAX_CRASHES:
            self._send(task)
        elif task.crashes:  # it could crash the main process, too
            task.future.set_exception(error)
        else:
            self._run_locally(task)

    def _run_locally(self, task: _Task) -> None:
        with self._lock:
            local = task.run_locally()
        local.add_done_callback(partial(_copy_result, task.future))


def _copy_result(target: Future[Any], source: Future[Any]) -> None:
    if source.cancelled():
        target.cancel()
    elif (error := source.exception()) is not None:
        target.set_exception(error)
    else:
        target.set_result(source.result())


@dataclass(slots=True)
class _Task:
    """A call of a `PoolWorker` method.

    Attributes:
        run_locally: executes the task in this process.
        decode: converts the answer of the process to the result.
        crashes: number of processes that died during the task.
    """

    method: str
    arguments: tuple[Any, ...]
    run_locally: Callable[[], Future[Any]]
    decode: Callable[[Any], Any] = lambda value: value
    future: Future[Any] = field(default_factory=Future)
    crashes: int = 0

    @property
    def is_point(self) -> bool:
        """Whether the task scores a point; if not, it builds requests."""
        return self.method == "score"
