"""Run of one shard: generates its points with the worker's engine, and scores and archives them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

from sweep.console import signals
from sweep.core.timing import SharedCosts
from sweep.errors import ConfigError, PointsFailed, SweepHeld
from sweep.execution.group_executor import GroupExecutor
from sweep.execution.request_stream import GroupRun
from sweep.execution.resume import ResumeIndex
from sweep.inputs.input_store import InputStore
from sweep.launch.manifest import Manifest, Shard
from sweep.launch.shard_state import WAITING, WORKING, StateFile, read_state
from sweep.planning.plan import Task, make_plan
from sweep.planning.results import PointResult
from sweep.points.fingerprint import Fingerprints
from sweep.publishing.queue import PublishQueue
from sweep.publishing.scoring_stage import ScoringStage
from sweep.storage.archive import Archive, Archived
from sweep.storage.lock import SweepLock
from sweep.storage.publish_log import PublishLog
from sweep.tracking import AnyTracker, open_tracker
from sweep.util.counts import counted
from sweep.util.retry import Patience
from sweep.workers.base import WorkerPool

log = logging.getLogger(__name__)

CONTROL_SECONDS = 600.0  # how long a shard with generated points waits for a control of another shard
POLL_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """Objects that a worker keeps from shard to shard, and the sweep's files.

    Attributes:
        executor: drives the engine.
        pool: builds requests and scores points.
        costs: costs of all shards of the worker.
        inputs: prompts and models, read once.
        resume: finds answers in the journal.
        archive: finished points of the sweep.
        settle_shards: waits for shards, by index, that this worker has begun, or until a function returns True.
    """

    executor: GroupExecutor
    pool: WorkerPool
    costs: SharedCosts
    inputs: InputStore
    resume: ResumeIndex
    archive: Archive
    settle_shards: Callable[[Collection[int], Callable[[], bool]], None]


class ShardRun:
    """One run of a shard. `generate` runs on the worker's main thread; what it adds to `cleanup`, on any one thread."""

    def __init__(
        self, resources: Resources, manifest: Manifest, index: int, shard: Shard, state_file: StateFile, lock: SweepLock
    ) -> None:
        """Read the inputs and check that they are those of the plan.

        Raises:
            ConfigError: an input has changed since the plan was made.
        """
        self._manifest, self._index, self._state_file, self._lock = manifest, index, state_file, lock
        self._points, self._max_model_len = shard.points, shard.max_model_len
        self._base = self._points[0].point.config
        self._executor, self._pool, self._inputs = resources.executor, resources.pool, resources.inputs
        self._resume, self._archive, self._costs = resources.resume, resources.archive, resources.costs
        self._settle_shards = resources.settle_shards
        self._tasks = self._verified_tasks()
        self._to_generate = [
            task for task, shard_point in zip(self._tasks, self._points, strict=True) if shard_point.is_generated_here
        ]
        self._controls = [task for task in self._tasks if task.point.is_control]
        self._shard_of = {p.point.control_key: p.control_shard for p in self._points if p.control_shard is not None}
        self._queue: PublishQueue | None = None
        self._unscored: list[Task] = []
        self._failed: dict[str, None] = {}

    def generate(self, cleanup: ExitStack) -> None:
        """Generate all points and give them to scoring, after the controls of other shards.

        Without such controls, this returns once the engine has drawn all requests.

        Args:
            cleanup: closed by the caller later, or on an error: waits until all points are generated, scored and
                published. Close it on another thread, or after `GroupExecutor.drain`.
        """
        todo = [task for task in self._to_generate if not task.done]
        if not todo:
            return
        self._resume.check_versions(self._tasks)
        self._pool.prepare()
        cleanup.push(self._raise_failures)
        if self._manifest.parent is not None:
            tracker = open_tracker(self._base.tracking, self._base.sweep.root, self._manifest.sweep_id)
            cleanup.callback(tracker.end)
            self._queue = self._open_queue(tracker, self._manifest.parent)
            cleanup.callback(self._queue.abandon, 0.0)
        self._scoring = ScoringStage(self._pool, self._archive, self._on_result, self._costs)
        cleanup.push(self._close_scoring)
        if external_controls := self._controls_elsewhere(todo):
            shards = {self._shard_of[key] for key in external_controls if key in self._shard_of}
            self._settle_shards(shards, lambda: not self._controls_elsewhere(todo))
            external_controls = self._controls_elsewhere(todo)
        runs: list[GroupRun] = []
        cleanup.push(partial(self._await_runs, runs))
        try:
            self._unscored = self._generate(todo, external_controls, runs)
        finally:
            self._count_starts()

    def _controls_elsewhere(self, todo: Sequence[Task]) -> set[str]:
        """Return the control keys of points whose control is neither finished nor in this shard."""
        here = {task.point.control_key for task in todo if task.point.is_control}
        return {task.point.control_key for task in todo} - here - self._done_control_keys()

    def _close_scoring(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            self._scoring.abandon(0.0)
            return
        self._scoring.close()
        if self._queue is not None:
            self._queue.close()

    def _raise_failures(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if error is not None:
            return
        if self._failed:
            raise PointsFailed(f"{counted(len(self._failed), 'point')} failed: {', '.join(list(self._failed)[:3])}")
        if self._unscored:
            count = counted(len(self._unscored), "generated point")
            raise PointsFailed(f"{count} not scored: the control was not finished")

    def _await_runs(self, runs: list[GroupRun], kind: object, error: BaseException | None, traceback: object) -> None:
        """Wait until all answers are received, and raise the error of the first group that was ended by one."""
        if error is not None:
            return
        for run in runs:
            run.ended.wait()
            if run.error is not None:
                raise run.error

    def _generate(self, todo: Sequence[Task], external_controls: set[str], runs: list[GroupRun]) -> list[Task]:
        """Generate and score points. Return those whose control was not finished by another shard."""
        self._run(todo, external_controls, runs)
        waiting = [t for t in todo if t.point.control_key in external_controls and t.point.name not in self._failed]
        if not waiting or not self._wait_for_controls(external_controls):
            return waiting
        self._verified_tasks()
        self._run(waiting, (), runs, recalled=True)
        return []

    def _run(
        self, todo: Sequence[Task], external_controls: Collection[str], runs: list[GroupRun], recalled: bool = False
    ) -> None:
        """Begin to run points, and wait for them if controls are missing.

        Args:
            todo: the points.
            external_controls: see `GroupExecutor.run_group`.
            runs: receives what was begun.
            recalled: whether all answers are in the journal and already counted as progress.
        """
        controls = {task.point.control_key for task in todo}
        done_controls = [c for c in self._done_controls() if c.point.control_key in controls]
        groups = make_plan([*done_controls, *todo], self._inputs)
        if not recalled:
            self._state_file.state.requests += sum(group.requests for group in groups)
        for group in groups:
            run = self._executor.begin_group(
                replace(group, max_model_len=max(self._max_model_len, group.max_model_len)),
                self._scoring,
                self._count_starts,
                partial(self._on_answer, count=not recalled),
                external_controls=external_controls,
                on_end=self._count_starts,
            )
            runs.append(run)
            if external_controls:
                self._executor.drain()  # also of earlier shards: another worker may wait for their controls
            if run.error is not None:
                raise run.error

    def _on_answer(self, tokens: int, count: bool) -> None:
        """Count an answer as progress, unless another worker has taken the shard over."""
        self._check_lock()
        if count:
            self._state_file.advance(tokens)

    def _check_lock(self) -> None:
        if self._lock.lost.is_set():
            raise SweepHeld(f"Shard {self._index}: another worker has taken it over. Finished points are kept.")

    def _count_starts(self) -> None:
        self._state_file.state.engine_starts += self._executor.take_engine_starts()
        self._write_state()

    def _write_state(self) -> None:
        """Write the state file, unless another worker has taken the shard over: the file is its own then."""
        if not self._lock.lost.is_set():
            self._state_file.write(now=True)

    def _wait_for_controls(self, external_controls: set[str]) -> bool:
        """Wait for controls of other shards. Return whether all are finished."""
        self._check_lock()
        self._state_file.state.state = WAITING
        self._write_state()
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
        """Return the shard's tasks after checking that the inputs are those of the plan."""
        tasks = []
        point_fingerprints = Fingerprints(self._inputs).identify([shard_point.point for shard_point in self._points])
        for shard_point, point_fingerprint in zip(self._points, point_fingerprints, strict=True):
            if point_fingerprint.fingerprint != shard_point.fingerprint:
                raise ConfigError(
                    f"{self._manifest.path}: {shard_point.point.name} has changed since the plan was made: its model, "
                    "its prompts or its transform's files are different now. Run the sweep's command again."
                )
            tasks.append(
                _with_archived(
                    Task(point=shard_point.point, point_fingerprint=point_fingerprint, index=shard_point.index),
                    self._archive,
                )
            )
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
