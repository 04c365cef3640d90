"""Shard worker: runs shards of a plan one after the other, with an engine that stays open between them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack
from datetime import datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import TracebackType

from sweep.console import signals
from sweep.console.terminal import Terminal
from sweep.core.timing import SharedCosts
from sweep.errors import SweepHeld
from sweep.execution.group_executor import GroupExecutor
from sweep.execution.resume import ResumeIndex
from sweep.inputs.clock import SweepClock
from sweep.inputs.input_store import InputStore
from sweep.inputs.packaged_model import Packages
from sweep.launch.manifest import Manifest, ShardPoint, read_shard
from sweep.launch.shard_run import POLL_SECONDS, Resources, ShardRun
from sweep.launch.shard_state import DONE, FAILED, WORKING, StateFile
from sweep.storage.archive import Archive
from sweep.storage.journal import Journal
from sweep.storage.lock import SweepLock
from sweep.util.redaction import redact
from sweep.workers import open_worker_pool
from sweep.workers.base import WorkerPool

log = logging.getLogger(__name__)

SETTLE_SECONDS = 0.05  # how often the worker looks whether a control that it generates is finished


class ShardWorker:
    """Runs shards of one sweep. Owned by the worker's main thread. Use it in a `with` block, which ends the engine.

    `generate` returns once the engine has received the shard's requests. The next call, or `drain`, receives the rest
    of its answers. The result of `generate` is called on another thread, so that a shard is scored meanwhile.
    """

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._costs = SharedCosts()
        self._executor: GroupExecutor | None = None
        self._pool: WorkerPool | None = None
        self._inputs: dict[datetime | None, InputStore] = {}
        self._recording = threading.Lock()  # of costs, which the thread that finishes a shard records
        self._recorded: dict[str, float] = {}
        self._unfinished: dict[tuple[Path, int], threading.Event] = {}

    def work(self, manifest: Manifest, index: int, patience: float = 0.0) -> None:
        """Generate, score and archive the unfinished points of a shard, and publish them if the plan has a parent run.

        Arguments and errors are those of `generate` and of its result.
        """
        with ExitStack() as cleanup:
            self._generate(manifest, index, patience, cleanup)
            self.drain()

    def drain(self, until: Callable[[], bool] = lambda: False) -> None:
        """Receive the answers of all shards that have begun.

        Args:
            until: called before each answer. Stop early once it returns True.
        """
        if self._executor is not None:
            self._executor.drain(until)

    def generate(self, manifest: Manifest, index: int, patience: float = 0.0) -> Callable[[], None]:
        """Generate the unfinished points of a shard; they are scored meanwhile.

        Points whose control was not finished in time stay in the journal, and the coordinator scores them.

        Args:
            manifest: the plan.
            index: index of the shard.
            patience: seconds to wait for the shard's lock, which a dead worker may still hold.

        Returns:
            A function that finishes the shard: it waits until all points are generated, scored, archived and published.
            Call it once, on another thread or after `drain`, before the worker is closed. It raises `PointsFailed` if
            some of the points failed, and the errors below if they occur after the return.

        Raises:
            ConfigError: the shard cannot be read, or an input has changed since it was planned.
            SweepHeld: another worker has the shard or has taken it over, or a later run has replaced the plan.
            PointsFailed: some of its points failed.
            EngineError, TooManyFailures: see `GroupExecutor.run_group`.
        """
        with ExitStack() as cleanup:
            self._generate(manifest, index, patience, cleanup)
            return cleanup.pop_all().close

    def _generate(self, manifest: Manifest, index: int, patience: float, cleanup: ExitStack) -> None:
        """Generate a shard; `cleanup` finishes it, or leaves it to another worker after an error."""
        finished = self._unfinished[manifest.folder, index] = threading.Event()
        cleanup.callback(finished.set)
        lock = _acquire_lock(manifest, index, patience)
        cleanup.callback(lock.release)
        if manifest.is_replaced:
            raise SweepHeld(f"{manifest.path}: a later run of the sweep has replaced this plan.")
        state_file = StateFile(manifest.state(index))
        state_file.write(now=True)
        cleanup.push(partial(self._record, state_file, lock))
        times = [time.monotonic()]
        cleanup.callback(_log_times, index, times)
        shard = read_shard(manifest, index)
        resources = self._resources(shard.points[0], manifest)
        run = ShardRun(resources, manifest, index, shard, state_file, lock)
        times.append(time.monotonic())
        run.generate(cleanup)
        times.append(time.monotonic())

    def _record(
        self, state_file: StateFile, lock: SweepLock, kind: object, error: BaseException | None, traceback: object
    ) -> None:
        """Write the state in which the worker leaves a shard."""
        if error is None:
            state_file.state.state = DONE
        else:
            # An interrupted shard is resumed by another worker or after a requeue, so it has not failed. Its scoring
            # may be cancelled by the end of the worker pool.
            interrupted = isinstance(error, CancelledError) or not isinstance(error, Exception)
            state_file.state.state = WORKING if interrupted else FAILED
            state_file.state.reason = redact(str(error)) or type(error).__name__
        with self._recording:
            sums = self._costs.sums()
            costs = {name: value - self._recorded.get(name, 0.0) for name, value in sums.items()}
            self._recorded = sums
        if not lock.lost.is_set():  # else the file belongs to the worker that has taken the shard over
            state_file.add_costs(costs)
            state_file.write(now=True)

    def _resources(self, shard_point: ShardPoint, manifest: Manifest) -> Resources:
        settings = shard_point.point.config.sweep
        journal = Journal(settings.root / "journal")
        archive = Archive(settings.root / "sweeps" / manifest.sweep_id / "points")
        resume = ResumeIndex(archive, journal, manifest.sweep_id, settings.resume)
        if self._executor is None or self._pool is None:
            config = shard_point.point.config
            self._pool = open_worker_pool(settings.helpers, config.plugins, on_gpu=settings.gpu_scoring)
            self._executor = GroupExecutor(settings, journal, resume, self._pool, self._costs, self._terminal)
        if manifest.instant not in self._inputs:
            clock = SweepClock(instant=manifest.instant, keep=False)
            self._inputs[manifest.instant] = InputStore(clock, Packages(settings.root))
        return Resources(
            executor=self._executor,
            pool=self._pool,
            costs=self._costs,
            inputs=self._inputs[manifest.instant],
            resume=resume,
            archive=archive,
            settle_shards=partial(self._settle, manifest.folder),
        )

    def _settle(self, folder: Path, indices: Collection[int], done: Callable[[], bool]) -> None:
        """Wait for shards that this worker has begun and not finished, or until `done()`."""
        events = [event for index in indices if (event := self._unfinished.get((folder, index))) and not event.is_set()]
        if not events:
            return
        self.drain(until=_throttled(done, SETTLE_SECONDS))
        for event in events:
            while not event.wait(SETTLE_SECONDS) and not done():
                signals.check()

    def __enter__(self) -> ShardWorker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        # After an interrupt, the engine dies with this process: an orderly shutdown takes longer than is allowed.
        if self._executor is not None and (error is None or isinstance(error, Exception)):
            self._executor.close()
        if self._pool is not None:
            self._pool.close()


def _log_times(index: int, times: Sequence[float]) -> None:
    seconds = [after - before for before, after in pairwise([*times, time.monotonic()])]
    if len(seconds) == 3:
        log.info(
            "Shard %d: %.2f s to read inputs, %.2f s to submit requests, then %.2f s until all was scored.",
            index,
            *seconds,
        )


def _throttled(check: Callable[[], bool], seconds: float) -> Callable[[], bool]:
    """Return a function that calls `check` at most once in `seconds`, and returns False in between."""
    last = 0.0

    def throttled() -> bool:
        nonlocal last
        if time.monotonic() - last < seconds:
            return False
        last = time.monotonic()
        return check()

    return throttled


def _acquire_lock(manifest: Manifest, index: int, patience: float) -> SweepLock:
    lock = SweepLock(manifest.lock(index), lambda reason: log.error("%s", reason))
    deadline = time.monotonic() + patience
    while True:
        try:
            lock.acquire()
        except SweepHeld:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)
        else:
            return lock
