"""Shard worker: runs shards of a plan one after the other, with an engine that stays open between them."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from types import TracebackType

from sweep.console import signals
from sweep.console.terminal import Terminal
from sweep.core.timing import SharedCosts
from sweep.errors import ConfigError, PointsFailed, SweepHeld
from sweep.execution.group_executor import GroupExecutor
from sweep.execution.resume import ResumeIndex
from sweep.inputs.clock import SweepClock
from sweep.inputs.input_store import InputStore
from sweep.inputs.packaged_model import Packages
from sweep.launch.manifest import Manifest, Shard, ShardPoint, read_shard
from sweep.launch.shard_state import DONE, FAILED, WAITING, WORKING, StateFile, read_state
from sweep.planning.plan import Task, make_plan
from sweep.planning.results import PointResult
from sweep.points.fingerprint import Fingerprints
from sweep.publishing.queue import PublishQueue
from sweep.publishing.scoring_stage import ScoringStage
from sweep.storage.archive import Archive, Archived
from sweep.storage.journal import Journal
from sweep.storage.lock import SweepLock
from sweep.storage.publish_log import PublishLog
from sweep.tracking import AnyTracker, open_tracker
from sweep.util.counts import counted
from sweep.util.redaction import redact
from sweep.util.retry import Patience
from sweep.workers import open_worker_pool
from sweep.workers.base import WorkerPool

log = logging.getLogger(__name__)

CONTROL_SECONDS = 600.0  # how long a shard with generated points waits for a control of another shard
POLL_SECONDS = 0.5


class ShardWorker:
    """Runs shards of one sweep. Owned by the worker's main thread. Use it in a `with` block, which ends the engine."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._costs = SharedCosts()
        self._executor: GroupExecutor | None = None
        self._pool: WorkerPool | None = None

    def work(self, manifest: Manifest, index: int, patience: float = 0.0) -> None:
        """Generate, score and archive the unfinished points of a shard, and publish them if the plan has a parent run.

        Points whose control was not finished in time stay in the journal, and the coordinator scores them.

        Args:
            manifest: the plan.
            index: index of the shard.
            patience: seconds to wait for the shard's lock, which a dead worker may still hold.

        Raises:
            ConfigError: the shard cannot be read, or an input has changed since it was planned.
            SweepHeld: another worker has the shard or has taken it over, or a later run has replaced the plan.
            PointsFailed: some of its points failed.
            EngineError, TooManyFailures: see `GroupExecutor.run_group`.
        """
        with ExitStack() as cleanup:
            lock = _acquire_lock(manifest, index, patience)
            cleanup.callback(lock.release)
            if manifest.is_replaced:
                raise SweepHeld(f"{manifest.path}: a later run of the sweep has replaced this plan.")
            state_file, costs_before = StateFile(manifest.state(index)), self._costs.sums()
            state_file.write(now=True)
            try:
                _ShardRun(self, manifest, index, read_shard(manifest, index), state_file, lock).work()
                state_file.state.state = DONE
            except BaseException as error:
                # An interrupted shard is resumed by another worker or after a requeue, so it has not failed.
                state_file.state.state = FAILED if isinstance(error, Exception) else WORKING
                state_file.state.reason = redact(str(error)) or type(error).__name__
                raise
            finally:
                costs = {name: value - costs_before[name] for name, value in self._costs.sums().items()}
                if not lock.lost.is_set():  # else the file belongs to the worker that has taken the shard over
                    state_file.add_costs(costs)
                    state_file.write(now=True)

    def executor(self, shard_point: ShardPoint, sweep_id: str) -> tuple[GroupExecutor, ResumeIndex, Archive]:
        """Return the executor, which is shared by all shards, with the sweep's resume index and archive."""
        settings = shard_point.point.config.sweep
        journal = Journal(settings.root / "journal")
        archive = Archive(settings.root / "sweeps" / sweep_id / "points")
        resume = ResumeIndex(archive, journal, sweep_id, settings.resume)
        if self._executor is None:
            config = shard_point.point.config
            self._pool = open_worker_pool(settings.helpers, config.plugins, on_gpu=settings.gpu_scoring)
            self._executor = GroupExecutor(settings, journal, resume, self._pool, self._costs, self._terminal)
        return self._executor, resume, archive

    @property
    def pool(self) -> WorkerPool:
        """The worker pool. Only after `executor` was called."""
        assert self._pool is not None
        return self._pool

    @property
    def costs(self) -> SharedCosts:
        """The costs of all shards together."""
        return self._costs

    def __enter__(self) -> ShardWorker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        # After an interrupt, the engine dies with this process: an orderly shutdown takes longer than is allowed.
        if self._executor is not None and (error is None or isinstance(error, Exception)):
            self._executor.close()
        if self._pool is not None:
            self._pool.close()


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


class _ShardRun:
    """One run of a shard. Owned by the worker's main thread."""

    def __init__(
        self,
        worker: ShardWorker,
        manifest: Manifest,
        index: int,
        shard: Shard,
        state_file: StateFile,
        lock: SweepLock,
    ) -> None:
        self._manifest, self._index, self._state_file, self._lock = manifest, index, state_file, lock
        self._points, self._max_model_len = shard.points, shard.max_model_len
        self._base = self._points[0].point.config
        self._executor, self._resume, self._archive = worker.executor(self._points[0], manifest.sweep_id)
        self._pool = worker.pool
        self._counted_starts = self._executor.engine_starts
        self._tasks = self._verified_tasks()
        self._to_generate = [
            task for task, shard_point in zip(self._tasks, self._points, strict=True) if shard_point.is_generated_here
        ]
        self._controls = [task for task in self._tasks if task.point.is_control]
        self._shard_of = {p.point.control_key: p.control_shard for p in self._points if p.control_shard is not None}
        self._costs = worker.costs
        self._queue: PublishQueue | None = None
        self._failed: dict[str, None] = {}

    def work(self) -> None:
        """Generate all points, then wait for the controls of other shards and score the points that need them."""
        todo = [task for task in self._to_generate if not task.done]
        if not todo:
            return
        self._resume.check_versions(self._tasks)
        self._pool.prepare()
        self._scoring = ScoringStage(self._pool, self._archive, self._on_result, self._costs)
        with ExitStack() as undo:
            if self._manifest.parent is not None:
                tracker = open_tracker(self._base.tracking, self._base.sweep.root, self._manifest.sweep_id)
                undo.callback(tracker.end)
                self._queue = self._open_queue(tracker, self._manifest.parent)
                undo.callback(self._queue.abandon, 0.0)
            available = self._done_control_keys()
            available |= {task.point.control_key for task in todo if task.point.is_control}
            external_controls = {task.point.control_key for task in todo} - available
            try:
                unscored = self._generate(todo, external_controls)
            finally:
                self._count_starts()
                if isinstance(sys.exc_info()[1], (KeyboardInterrupt, SystemExit)):
                    self._scoring.abandon(0.0)
                else:
                    self._scoring.close()
                    if self._queue is not None:
                        self._queue.close()
        if self._failed:
            raise PointsFailed(f"{counted(len(self._failed), 'point')} failed: {', '.join(list(self._failed)[:3])}")
        if unscored:
            raise PointsFailed(f"{counted(len(unscored), 'generated point')} not scored: the control was not finished")

    def _generate(self, todo: Sequence[Task], external_controls: set[str]) -> list[Task]:
        """Generate and score points. Return those whose control was not finished by another shard."""
        self._run(todo, external_controls)
        waiting = [t for t in todo if t.point.control_key in external_controls and t.point.name not in self._failed]
        if not waiting or not self._wait_for_controls(external_controls):
            return waiting
        self._verified_tasks()
        self._run(waiting, (), recalled=True)
        return []

    def _run(self, todo: Sequence[Task], external_controls: Collection[str], recalled: bool = False) -> None:
        """Run points. With `recalled`, all answers are in the journal and already counted as progress."""
        controls = {task.point.control_key for task in todo}
        done_controls = [c for c in self._done_controls() if c.point.control_key in controls]
        groups = make_plan([*done_controls, *todo], self._inputs)
        if not recalled:
            self._state_file.state.requests += sum(group.requests for group in groups)
        for group in groups:
            self._executor.run_group(
                replace(group, max_model_len=max(self._max_model_len, group.max_model_len)),
                self._scoring,
                self._count_starts,
                external_controls=external_controls,
                on_answer=partial(self._on_answer, count=not recalled),
            )

    def _on_answer(self, tokens: int, count: bool) -> None:
        """Count an answer as progress, unless another worker has taken the shard over."""
        self._check_lock()
        if count:
            self._state_file.advance(tokens)

    def _check_lock(self) -> None:
        """Raise `SweepHeld` if another worker has taken the shard over: the state file is that worker's."""
        if self._lock.lost.is_set():
            raise SweepHeld(f"Shard {self._index}: another worker has taken it over. Finished points are kept.")

    def _count_starts(self) -> None:
        starts = self._executor.engine_starts
        self._state_file.state.engine_starts += starts - self._counted_starts
        self._counted_starts = starts
        if not self._lock.lost.is_set():
            self._state_file.write(now=True)

    def _wait_for_controls(self, external_controls: set[str]) -> bool:
        """Wait for controls of other shards. Return whether all are finished."""
        self._check_lock()
        self._state_file.state.state = WAITING
        self._state_file.write(now=True)
        deadline = time.monotonic() + CONTROL_SECONDS
        while external_controls - self._done_control_keys():
            signals.check()
            self._check_lock()
            if time.monotonic() > deadline or self._is_control_lost(external_controls):
                log.warning("The control was not finished by its shard. The sweep's own command scores these points.")
                return False
            time.sleep(POLL_SECONDS)
        self._state_file.state.state = WORKING
        return True

    def _is_control_lost(self, external_controls: Collection[str]) -> bool:
        """Return whether a control is in no shard, or its shard has ended without it."""
        if not self._shard_of.keys() >= set(external_controls):
            return True
        states = {key: read_state(self._manifest.state(self._shard_of[key])) for key in external_controls}
        ended = {key for key, state in states.items() if state is not None and state.ended}
        return bool(ended - self._done_control_keys())

    def _done_controls(self) -> list[Task]:
        """Return the controls that are finished by now."""
        return [t for task in self._controls if (t := _with_archived(task, self._archive)).done]

    def _done_control_keys(self) -> set[str]:
        return {task.point.control_key for task in self._done_controls()}

    def _verified_tasks(self) -> list[Task]:
        """Return the shard's tasks after checking that no input was edited since the plan or the last shard."""
        tasks = []
        clock = SweepClock(instant=self._manifest.instant, keep=False)
        self._inputs = InputStore(clock, Packages(self._base.sweep.root))
        point_fingerprints = Fingerprints(self._inputs).identify([shard_point.point for shard_point in self._points])
        for shard_point, point_fingerprint in zip(self._points, point_fingerprints, strict=True):
            if point_fingerprint.fingerprint != shard_point.fingerprint:
                raise ConfigError(
                    f"{self._manifest.path}: {shard_point.point.name} has changed since the plan was made: its model, "
                    "its prompts or its transform's files are different now. Run the sweep's command again."
                )
            task = Task(point=shard_point.point, point_fingerprint=point_fingerprint, index=shard_point.index)
            tasks.append(_with_archived(task, self._archive))
        return tasks

    def _open_queue(self, tracker: AnyTracker, parent: str) -> PublishQueue:
        folder = self._base.sweep.root / "sweeps" / self._manifest.sweep_id
        writer = f"{self._manifest.folder.name}-{self._index}"
        publish_log = PublishLog(folder, tracker.place, writer)

        def begin() -> bool:
            tracker.attach(parent)
            publish_log.open(tracker.place)
            return True  # an earlier attempt at this shard may have published points

        return PublishQueue(
            tracker, self._archive, publish_log, self._costs, begin, Patience(self._base.tracking.patience)
        )

    def _on_result(self, result: PointResult, archived: Archived) -> None:
        if result.error is not None:
            self._failed[result.point.name] = None
        if self._queue is not None:
            self._queue.put(archived)


def _with_archived(task: Task, archive: Archive) -> Task:
    archived = archive.get(task.point_fingerprint.result_key)
    return Task(point=task.point, point_fingerprint=task.point_fingerprint, index=task.index, archived=archived)
