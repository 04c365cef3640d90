"""Coordinator: hands shards to a backend and publishes the points that they finish."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from sweep.console.terminal import Advance, Terminal
from sweep.execution.group_executor import GroupExecutor
from sweep.execution.prefetch import ANSWER, FLOOR
from sweep.execution.resume import ResumeIndex
from sweep.launch import manifest as manifests
from sweep.launch import plans
from sweep.launch.backend import ShardBackend
from sweep.launch.manifest import Manifest
from sweep.planning.plan import EngineGroup, PlannedPoint
from sweep.planning.results import Progress, given_kinds
from sweep.publishing.publisher import Publisher
from sweep.storage.archive import Archive
from sweep.util.counts import counted

PERIOD = 2.0  # seconds between checks of the shards' progress


class Coordinator:
    """Runs a sweep's points in shards. Owned by the main thread of the process that plans.

    Call `attach` before planning and `close` at the end.
    """

    def __init__(
        self, backend: ShardBackend, folder: Path, sweep_id: str, command: str, archive: Archive, terminal: Terminal
    ) -> None:
        self._backend, self._folder, self._sweep_id, self._command = backend, folder, sweep_id, command
        self._archive, self._terminal = archive, terminal

    @property
    def waits(self) -> bool:
        """Whether `hand_out` waits until the shards have ended."""
        return self._backend.waits

    @property
    def patience(self) -> float:
        """Seconds to wait for workers of an earlier run."""
        return self._backend.patience

    def wants(self, groups: Sequence[EngineGroup]) -> bool:
        """Return whether to call `hand_out` for these groups."""
        return bool(groups) or self._backend.plans_empty

    def attach(self) -> None:
        """Wait for workers that an earlier coordinator of this sweep has left.

        Raises:
            SweepHeld: workers are running, and the backend does not wait.
        """
        if self._folder.is_dir():
            self._backend.attach(self._folder)

    def hand_out(
        self,
        groups: Sequence[EngineGroup],
        publisher: Publisher,
        executor: GroupExecutor,
        resume: ResumeIndex,
        instant: datetime | None,
    ) -> None:
        """Run groups of points in shards and publish their results.

        Args:
            groups: the points.
            publisher: receives the finished points.
            executor: scores points whose control was finished too late for their shard.
            resume: finds their answers in the journal.
            instant: the time that chat templates were given, or None if they read no clock.
        """
        points, shards = [planned for group in groups for planned in group.points], self._backend.cut(groups)
        manifest = manifests.write(
            self._backend.plan_folder(self._folder),
            groups,
            shards,
            sweep_id=self._sweep_id,
            command=self._command,
            parent=publisher.share() if shards else None,
            instant=instant,
        )
        todo = sum(not planned.done for planned in points)
        self._terminal.say(f"{counted(todo, 'point')} in {counted(manifest.shards, 'shard')}")
        collector = _ResultCollector(points, self._archive, publisher)
        with self._terminal.progress(sum(group.requests for group in groups)) as advance:
            reasons = self._backend.work(manifest, _ProgressWatch(manifest, collector, advance))
            if not self.waits:
                return
            collector.collect()
        point_reasons = {_key(planned): f"shard {i}: {why}" for i, why in reasons.items() for planned in shards[i]}
        self._finish_remaining(groups, collector, point_reasons, publisher, executor, resume)

    def close(self) -> None:
        """End the processes that must not outlive this one."""
        self._backend.close()

    def _finish_remaining(
        self,
        groups: Sequence[EngineGroup],
        collector: _ResultCollector,
        reasons: Mapping[str, str],
        publisher: Publisher,
        executor: GroupExecutor,
        resume: ResumeIndex,
    ) -> None:
        """Score answered points whose control came too late for their shard, and fail points without answers."""
        for group in groups:
            remaining = [planned for planned in group.points if _key(planned) in collector.remaining]
            controls = {p.point.control_key: p for p in map(self._with_archived, group.points) if p.point.is_control}
            usable = {key for key, control in controls.items() if control.done or _is_answered(control, resume)}
            answered = [p for p in remaining if p.point.control_key in usable and _is_answered(p, resume)]
            answered_keys = set(map(_key, answered))
            for planned in remaining:
                if _key(planned) not in answered_keys:
                    reason = reasons.get(_key(planned), "its shard ended without finishing it")
                    publisher.scoring.fail(Progress(planned, started=time.time()), reason)
            if answered:
                needed = [controls[key] for key in dict.fromkeys(p.point.control_key for p in answered)]
                executor.run_group(replace(group, points=[*needed, *answered]), publisher.scoring, lambda: None)

    def _with_archived(self, planned: PlannedPoint) -> PlannedPoint:
        archived = self._archive.get(planned.point_fingerprint.result_key)
        return planned if archived is None else replace(planned, archived=archived)


class _ResultCollector:
    """Passes points that shards have archived to the publisher. Owned by the coordinator's main thread.

    Attributes:
        remaining: the points that no shard has archived yet, by `result_key`.
    """

    def __init__(self, points: Sequence[PlannedPoint], archive: Archive, publisher: Publisher) -> None:
        self._archive, self._publisher = archive, publisher
        self.remaining = {_key(planned): planned for planned in points if not planned.done}
        self._seen: dict[str, float] = {}
        self._failed = 0

    def collect(self) -> None:
        """Publish what is new in the archive.

        Raises:
            TooManyFailures: more points failed than `sweep.max_failures` allows. Each shard counts only its own.
        """
        for key, written in self._archive.written():
            planned = self.remaining.get(key)
            if planned is None or self._seen.get(key) == written:
                continue
            archived = self._archive.get(key)
            if archived is None:  # still being written, or not yet visible on this machine
                continue
            self._seen[key] = written
            if archived.done or archived != planned.archived:  # otherwise it is the failure of an earlier attempt
                del self.remaining[key]
                self._publisher.take(planned, archived)
                if archived.record.error is not None:
                    self._failed += 1
                    planned.point.config.sweep.check_failures(self._failed)


class _ProgressWatch:
    """Callback that updates the progress display and collects results, at most once per `PERIOD`.

    Called on the coordinator's main thread.
    """

    def __init__(self, manifest: Manifest, collector: _ResultCollector, advance: Advance) -> None:
        self._manifest, self._collector, self._advance = manifest, collector, advance
        self._checked_at = 0.0
        self._done = self._tokens = 0

    def __call__(self) -> None:
        if time.monotonic() - self._checked_at < PERIOD:
            return
        self._checked_at = time.monotonic()
        states = plans.states(self._manifest)
        done, tokens = sum(state.done for state in states), sum(state.tokens for state in states)
        for i in range(done - self._done):
            self._advance(tokens - self._tokens if i == 0 else 0)
        self._done, self._tokens = max(done, self._done), max(tokens, self._tokens)
        self._collector.collect()


def _key(planned: PlannedPoint) -> str:
    return planned.point_fingerprint.result_key


def _is_answered(planned: PlannedPoint, resume: ResumeIndex) -> bool:
    """Return whether the journal has all of a point's answers. Never so with teacher forcing, which needs an engine."""
    if planned.point.config.scoring.teacher_forced:
        return False
    recalled = resume.recall(planned)
    kinds = (ANSWER, FLOOR)[: planned.runs]
    return all(
        (kind, encoded.prompt.id) in recalled
        for j, encoded in enumerate(planned.prompts)
        for kind in (*kinds, *given_kinds(planned, j))
    )
