"""One process's part of a sweep: shards, one after the other, with an engine that stays open between them."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType

from sweep import signals
from sweep.costs import SharedCosts
from sweep.disk.archive import Archive, Archived
from sweep.disk.journal import Journal
from sweep.disk.lease import Lease
from sweep.disk.ledger import Ledger
from sweep.errors import ConfigError, PointsFailed, SweepHeld
from sweep.generator import Generator
from sweep.helpers import open_helpers
from sweep.helpers.base import Helpers
from sweep.identity import Contents
from sweep.memory import Memory
from sweep.outcome import PointResult
from sweep.plan import Task, make_plan
from sweep.publication.outbox import Outbox
from sweep.publication.scoring import Scoring
from sweep.redaction import redact
from sweep.shards.manifest import Manifest, Piece, Shard, read_shard
from sweep.shards.state import DONE, FAILED, WAITING, WORKING, StateFile, read_state
from sweep.terminal import Terminal
from sweep.tracking import AnyTracker, open_tracker

log = logging.getLogger(__name__)

CONTROL_SECONDS = 600.0  # that a shard whose points are generated waits for the control that they are compared with
POLL_SECONDS = 0.5


class ShardWorker:
    """Works off shards of one sweep."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._costs = SharedCosts()
        self._generator: Generator | None = None
        self._helpers: Helpers | None = None

    def work(self, manifest: Manifest, index: int, patience: float = 0.0) -> None:
        """Work off a shard: generate, score, archive and, if the plan says so, publish what is not done.

        Points whose control another process has not finished in time stay in the journal, for whoever planned.

        Args:
            patience: seconds to wait for another process that has the shard, or had it and may be dead.

        Raises:
            ConfigError: the shard cannot be read, or what it was planned for has changed.
            SweepHeld: another process is at work on it, or has planned the sweep anew.
            PointsFailed: some of its points failed.
            EngineError, TooManyFailures: as of `Generator.work_off`.
        """
        with ExitStack() as held:
            held.callback(_lease(manifest, index, patience).release)
            if manifest.is_replaced:
                raise SweepHeld(f"{manifest.path}: a later run of the sweep has taken the place of this plan.")
            file, before = StateFile(manifest.state(index)), self._costs.sums()
            file.write(now=True)
            try:
                _Shard(self, manifest, index, read_shard(manifest, index), file).work()
                file.state.state = DONE
            except BaseException as error:
                # An interrupted shard goes on, in another process or after a requeue.
                file.state.state = FAILED if isinstance(error, Exception) else WORKING
                file.state.reason = redact(str(error)) or type(error).__name__
                raise
            finally:
                file.add_costs({name: value - before[name] for name, value in self._costs.sums().items()})
                file.write(now=True)

    def generator(self, piece: Piece, sweep_id: str) -> tuple[Generator, Memory, Archive]:
        """Return what works off the points of a sweep, whose engine is open already if it was used before."""
        settings = piece.point.config.sweep
        journal = Journal(settings.root / "journal")
        archive = Archive(settings.root / "sweeps" / sweep_id / "points")
        memory = Memory(archive, journal, sweep_id, settings.resume)
        if self._generator is None:
            config = piece.point.config
            self._helpers = open_helpers(settings.helpers, config.plugins)
            self._generator = Generator(settings, journal, memory, self._helpers, self._costs, self._terminal)
        return self._generator, memory, archive

    @property
    def helpers(self) -> Helpers:
        """What scores, once there is a generator."""
        assert self._helpers is not None
        return self._helpers

    @property
    def costs(self) -> SharedCosts:
        """What all shards took together."""
        return self._costs

    def __enter__(self) -> ShardWorker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        # Else the engine ends with this process: shutting it down properly takes longer than there is time.
        if self._generator is not None and (error is None or isinstance(error, Exception)):
            self._generator.close()
        if self._helpers is not None:
            self._helpers.close()


def _lease(manifest: Manifest, index: int, patience: float) -> Lease:
    lease = Lease(manifest.lease(index), lambda reason: log.error("%s", reason))
    until = time.monotonic() + patience
    while True:
        try:
            lease.acquire()
        except SweepHeld:
            if time.monotonic() > until:
                raise
            time.sleep(POLL_SECONDS)
        else:
            return lease


class _Shard:
    """One shard's points on their way."""

    def __init__(self, worker: ShardWorker, manifest: Manifest, index: int, shard: Shard, file: StateFile) -> None:
        self._manifest, self._index, self._file = manifest, index, file
        self._pieces, self._max_model_len = shard.pieces, shard.max_model_len
        self._base = self._pieces[0].point.config
        self._generator, self._memory, self._archive = worker.generator(self._pieces[0], manifest.sweep_id)
        self._helpers = worker.helpers
        self._starts = self._generator.engine_starts
        self._tasks = self._identified()
        self._own = [task for task, piece in zip(self._tasks, self._pieces, strict=True) if piece.own]
        self._controls = [task for task in self._tasks if task.point.is_control]
        self._homes = {p.point.control_key: p.home for p in self._pieces if p.home is not None}
        self._costs = worker.costs
        self._outbox: Outbox | None = None
        self._failed: dict[str, None] = {}

    def work(self) -> None:
        """Generate all; then, if need be, wait for the controls of others and take up what was left for them."""
        todo = [task for task in self._own if not task.done]
        self._memory.check_versions(todo)
        if not todo:
            return
        self._helpers.prepare()
        self._scoring = Scoring(self._helpers, self._archive, self._tell, self._costs)
        with ExitStack() as undo:
            if self._manifest.parent is not None:
                tracker = open_tracker(self._base.tracking, self._base.sweep.root, self._manifest.sweep_id)
                undo.callback(tracker.end)
                self._outbox = self._publish(tracker, self._manifest.parent)
                undo.callback(self._outbox.abandon, 0.0)
            here = {task.point.control_key for task in todo if task.point.is_control}
            elsewhere = {task.point.control_key for task in todo} - here - {c.point.control_key for c in self._done()}
            try:
                left = self._generate(todo, elsewhere)
            finally:
                self._count_starts()
                if isinstance(sys.exc_info()[1], (KeyboardInterrupt, SystemExit)):
                    self._scoring.abandon(0.0)
                else:
                    self._scoring.close()
                    if self._outbox is not None:
                        self._outbox.close()
        if self._failed:
            raise PointsFailed(f"{len(self._failed)} points failed: {', '.join(list(self._failed)[:3])}")
        if left:
            raise PointsFailed(f"{len(left)} points are generated, and wait for a control that was not finished")

    def _generate(self, todo: Sequence[Task], elsewhere: set[str]) -> list[Task]:
        """Have points answered; return those whose control did not come."""
        self._run(todo, elsewhere)
        waiting = [t for t in todo if t.point.control_key in elsewhere and t.point.name not in self._failed]
        if not waiting or not self._await(elsewhere):
            return waiting
        self._identified()
        self._run(waiting, (), again=True)
        return []

    def _run(self, todo: Sequence[Task], elsewhere: Collection[str], again: bool = False) -> None:
        """Have points answered; `again`: what was answered already, and counted, is only scored."""
        controls = {task.point.control_key for task in todo}
        groups = make_plan([*(c for c in self._done() if c.point.control_key in controls), *todo])
        if not again:
            self._file.state.requests += sum(group.requests for group in groups)
        for group in groups:
            self._generator.work_off(
                replace(group, max_model_len=max(self._max_model_len, group.max_model_len)),
                self._scoring,
                self._count_starts,
                elsewhere=elsewhere,
                watch=(lambda tokens: None) if again else self._file.advance,
            )

    def _count_starts(self) -> None:
        starts = self._generator.engine_starts
        self._file.state.engine_starts += starts - self._starts
        self._starts = starts
        self._file.write(now=True)

    def _await(self, elsewhere: set[str]) -> bool:
        """Wait for controls of other shards; return whether all are there."""
        self._file.state.state = WAITING
        self._file.write(now=True)
        until = time.monotonic() + CONTROL_SECONDS
        while elsewhere - {task.point.control_key for task in self._done()}:
            signals.check()
            if time.monotonic() > until or self._will_not_come(elsewhere):
                log.warning("The control was not finished; the points are left for the command that planned.")
                return False
            time.sleep(POLL_SECONDS)
        self._file.state.state = WORKING
        return True

    def _will_not_come(self, elsewhere: Collection[str]) -> bool:
        """Whether another shard has ended without its control."""
        if not self._homes.keys() >= set(elsewhere):  # nobody has it
            return True
        states = {key: read_state(self._manifest.state(self._homes[key])) for key in elsewhere}
        ended = {key for key, state in states.items() if state is not None and state.ended}
        return bool(ended - {task.point.control_key for task in self._done()})

    def _done(self) -> list[Task]:
        """Return the controls that are finished by now."""
        return [t for task in self._controls if (t := _archived(task, self._archive)).done]

    def _identified(self) -> list[Task]:
        """Return the points with what they are now: files may have been edited since the plan, or the last shard."""
        tasks = []
        identities = Contents().identify([piece.point for piece in self._pieces])
        for piece, identity in zip(self._pieces, identities, strict=True):
            if identity.fingerprint != piece.fingerprint:
                raise ConfigError(
                    f"{self._manifest.path}: {piece.point.name} is not what it was when it was planned: its model, its "
                    "prompts or its transform's files have changed. Give the command again."
                )
            tasks.append(_archived(Task(point=piece.point, identity=identity, index=piece.index), self._archive))
        return tasks

    def _publish(self, tracker: AnyTracker, parent: str) -> Outbox:
        folder = self._base.sweep.root / "sweeps" / self._manifest.sweep_id
        writer = f"{self._manifest.folder.name}-{self._index}"
        ledger = Ledger(folder, tracker.place, writer)

        def begin() -> bool:
            tracker.attach(parent)
            ledger.open(tracker.place)
            return True  # an earlier attempt at this shard may have got somewhere

        return Outbox(tracker, self._archive, ledger, self._costs, begin, self._base.tracking.patience)

    def _tell(self, result: PointResult, archived: Archived) -> None:
        if result.error is not None:
            self._failed[result.point.name] = None
        if self._outbox is not None:
            self._outbox.put(archived)


def _archived(task: Task, archive: Archive) -> Task:
    archived = archive.get(task.identity.result_key)
    return Task(point=task.point, identity=task.identity, index=task.index, archived=archived)
