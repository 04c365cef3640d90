"""Points in, generations out: one engine for all points that can share it, and one continuous batch of their requests.

The main thread feeds the engine and takes its answers to the journal.  Processes beside it build the requests, and
score and archive each point as soon as its last answer is in; another one publishes what is archived.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from sweep.config import SweepConfig
from sweep.costs import SharedCosts
from sweep.disk.archive import Archive
from sweep.disk.journal import Journal
from sweep.engines.supervisor import Supervisor
from sweep.errors import ConfigError, EngineError
from sweep.generator import Generator
from sweep.helpers import open_helpers
from sweep.identity import Contents
from sweep.memory import Memory
from sweep.outcome import PointResult
from sweep.plan import EngineGroup, make_plan
from sweep.point import Point, with_controls
from sweep.publication.publisher import Publisher
from sweep.remote import END_SECONDS
from sweep.shards import plans
from sweep.shards.crew import PATIENCE, Crew
from sweep.shards.head import Head
from sweep.terminal import Terminal
from sweep.tracking import AnyTracker, open_tracker

if TYPE_CHECKING:
    from sweep.report.comparison import Comparison

log = logging.getLogger(__name__)


class Runner:
    """One sweep: what is known of it, and the open engine.

    `run` may be called any number of times, as optimising sweepers do; what was opened stays open until the end of the
    `with` block, which says whether the sweep finished, failed or was interrupted.

    Attributes:
        publisher: scores, publishes and reports; None until something was run.
    """

    def __init__(
        self, base: SweepConfig, sweep_id: str, command: str, terminal: Terminal, crew: Crew | None = None
    ) -> None:
        """Name the sweep.

        Args:
            base: what all its points share.
            command: what the user typed, without secrets.
            crew: who works points off, in shards; None: this process.
        """
        self._base, self._sweep_id, self._command, self._terminal = base, sweep_id, command, terminal
        self._settings = base.sweep
        self._journal = Journal(base.sweep.root / "journal")
        self._archive = Archive(self.folder / "points")
        self._memory = Memory(self._archive, self._journal, sweep_id, base.sweep.resume)
        self._costs = SharedCosts()
        self._helpers = open_helpers(base.sweep.helpers, base.plugins)
        self._generator = Generator(self._settings, self._journal, self._memory, self._helpers, self._costs, terminal)
        self._plans = self.folder / "shards"
        self._head = Head(crew, self._plans, sweep_id, command, self._archive, terminal) if crew is not None else None
        self._shards_starts = 0
        self._tracker: AnyTracker | None = None
        self.publisher: Publisher | None = None
        self._contents = Contents()
        self._run_as: dict[str, str] = {}

    @property
    def folder(self) -> Path:
        """Where this sweep's own files lie."""
        return self._settings.root / "sweeps" / self._sweep_id

    @property
    def engine(self) -> Supervisor | None:
        """The open engine, if there is one."""
        return self._generator.engine

    @property
    def engine_starts(self) -> int:
        """How many engines were started, those among them that took a dead one's place."""
        return self._generator.engine_starts + self._shards_starts

    @property
    def results(self) -> dict[str, PointResult]:
        """What became of each point so far, by `Point.key`."""
        return self.publisher.results if self.publisher else {}

    @property
    def tracker(self) -> AnyTracker | None:
        """Where results are published, once something was run."""
        return self._tracker

    @property
    def comparison(self) -> Comparison | None:
        """All points beside each other, once the sweep has ended."""
        return self.publisher.comparison if self.publisher else None

    @property
    def problems(self) -> list[str]:
        """What could not be published or reported."""
        return self.publisher.problems if self.publisher else []

    def run(self, points: Sequence[Point]) -> None:
        """Generate, score and publish points and the controls they need.  What was done before is not done again.

        Raises:
            ConfigError: an input is wrong, or the model fails the identity gate; nothing was started.
            SweepHeld: shards of this sweep are at work that this process does not wait for.
            EngineError: the engine failed for good; what was complete is published, what had begun is FAILED.
            TooManyFailures: more points failed than `sweep.on_error` and `sweep.max_failures` allow.
        """
        contents = self._contents
        if self._tracker is None:
            self._take_place()
            self._tracker = open_tracker(self._base.tracking, self._settings.root, self._sweep_id)
        fresh = self._distinct(points)
        # Shards find their controls in the plan, also those that this process happens to know.
        known = self.publisher.scoring.controls if self.publisher and self._head is None else ()
        wanted = with_controls(fresh, known)
        tasks = self._memory.tasks(wanted, contents)
        groups = make_plan(self._memory.todo(tasks))
        head = self._head if self._head is not None and self._head.wants(groups) else None
        if self.publisher is None and head is None:
            for group in groups:
                group.spec.engine.reach()
        publisher = self.publisher or self._open_publisher(groups if head is None else ())
        publisher.take_archived(tasks)
        if head is not None:
            head.hand_out(groups, publisher, self._generator, self._memory)
            if not head.waits:
                publisher.leave()
        else:
            for group in groups:
                self._work_off(group, publisher)
        publisher.scoring.drain()

    def result(self, point: Point) -> PointResult | None:
        """Return what became of a point, or of the one that is the same and was run in its place; None: nothing yet."""
        return self.results.get(self._run_as.get(point.key, point.key))

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        hurried = error is not None and not isinstance(error, Exception)
        with ExitStack() as undo:
            undo.callback(self._helpers.close)
            if self._tracker is not None:
                undo.callback(self._tracker.end, 0.0 if hurried else END_SECONDS)
            if self._head is not None:
                undo.callback(self._head.close)
            if not hurried:
                undo.callback(self._generator.close)
                if self._head is not None and error is not None:
                    self._head.close()  # shards that are at work say what they took as they leave
                self._count_shards()
            # Else the engine ends with this process: shutting it down properly takes longer than there is time.
            self._costs.engine_starts = self.engine_starts
            if self.publisher is not None:
                undo.callback(self.publisher.close, error)

    def _take_place(self) -> None:
        """Wait for, or refuse to be in the way of, what an earlier process of this sweep has left at work.

        Raises:
            SweepHeld: something is at work.
        """
        if self._head is not None:
            self._head.attach()
        if self._plans.is_dir():
            plans.take_place(self._plans, self._head.patience if self._head else PATIENCE)

    def _count_shards(self) -> None:
        """Add what shards have cost, those among them that an earlier process of the sweep has not waited for."""
        if self.publisher is None or (self._head is not None and not self._head.waits):
            return
        for manifest, states in plans.uncounted(self._plans):
            for state in states:
                self._shards_starts += state.engine_starts
                self._costs.add(state.costs)
            with suppress(OSError):  # somebody else's folder; they are counted again, then
                manifest.counted.touch()

    def _distinct(self, points: Sequence[Point]) -> list[Point]:
        """Return the points that have not been run, without those that are the same as others but for their names."""
        fresh: dict[str, Point] = {}
        for asked, same in self._contents.distinct(points):
            own = self._run_as.setdefault(asked.key, same.key)
            if own not in self.results and own not in fresh:
                fresh[own] = same
            elif asked.key != own:
                log.warning("%s is the same as %s, and run once.", asked.name, same.name)
        return list(fresh.values())

    def _open_publisher(self, groups: Sequence[EngineGroup]) -> Publisher:
        """Reach the tracker, whose absence is to be noticed before an engine starts; import the first meanwhile."""
        assert self._tracker is not None
        with self._terminal.waiting("MLflow store"):
            self._tracker.prepare()
            if groups:
                self._helpers.prepare()
            for group in groups[:1]:
                group.spec.engine.warm_up(self._settings.root / ".cache")
            self.publisher = Publisher(
                self._base,
                self._sweep_id,
                self._command,
                self._terminal,
                self._helpers,
                self._archive,
                self._costs,
                self._tracker,
            )
        return self.publisher

    def _work_off(self, group: EngineGroup, publisher: Publisher) -> None:
        try:
            self._generator.work_off(group, publisher.scoring, publisher.start)
        except ConfigError as error:
            if publisher.results:  # then it is not true that nothing was started
                raise EngineError(str(error)) from error
            raise
