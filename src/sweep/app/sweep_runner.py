"""Sweep runner: plans points, generates on one engine for all points that can share it, scores and publishes.

The main thread feeds the engine one continuous batch of requests and writes its answers to the journal. Pool processes
build requests, and score and archive each point after its last answer. Another process publishes archived points.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from sweep.config.combinations import describe_zip
from sweep.config.schema import SweepConfig
from sweep.console.terminal import Terminal
from sweep.core.timing import SharedCosts
from sweep.engines.supervisor import Supervisor
from sweep.errors import ConfigError, EngineError
from sweep.execution.group_executor import GroupExecutor
from sweep.execution.resume import ResumeIndex
from sweep.inputs.clock import SweepClock, describe_read
from sweep.inputs.input_store import InputStore
from sweep.inputs.packaged_model import Packages
from sweep.launch import plans
from sweep.launch.backend import PATIENCE, ShardBackend
from sweep.launch.coordinator import Coordinator
from sweep.planning.plan import EngineGroup, describe_prompts, make_plan
from sweep.planning.results import PointResult
from sweep.planning.shown_prompts import Shown, shown_prompts
from sweep.points.fingerprint import Fingerprints
from sweep.points.point import Point, with_controls
from sweep.processes.child import END_SECONDS
from sweep.publishing.publisher import Publisher
from sweep.report.terminal import SweepOutcome
from sweep.storage.archive import Archive
from sweep.storage.journal import Journal
from sweep.tracking import AnyTracker, open_tracker
from sweep.workers import open_worker_pool

if TYPE_CHECKING:
    from sweep.report.comparison import Comparison

log = logging.getLogger(__name__)


class SweepRunner:
    """One sweep in one process. Owned by the main thread.

    `run` may be called any number of times, as optimising sweepers do. Engine, tracker and worker pool stay open until
    the `with` block ends. The block's exception decides whether the sweep is recorded as finished, failed or
    interrupted.

    Attributes:
        publisher: Scores, publishes and reports points. None until a batch was run.
    """

    def __init__(
        self,
        base: SweepConfig,
        sweep_id: str,
        command: str,
        terminal: Terminal,
        backend: ShardBackend | None = None,
        *,
        name: str | None = None,
    ) -> None:
        """Create the runner; nothing is started yet.

        Args:
            base: Configuration that all points share.
            sweep_id: Id of the sweep, which names its folder.
            command: Command line as typed, without secrets.
            terminal: Terminal for progress and messages.
            backend: Runs points in shards. None: run them in this process.
            name: Name of the sweep if `sweep.name` is not set. None: the sweep's id.
        """
        self._base, self._sweep_id, self._command, self._terminal = base, sweep_id, command, terminal
        self._name = base.sweep.name or name or sweep_id
        self._settings = base.sweep
        self._journal = Journal(base.sweep.root / "journal")
        self._archive = Archive(self.folder / "points")
        self._resume = ResumeIndex(self._archive, self._journal, sweep_id, base.sweep.resume)
        self._costs = SharedCosts()
        self._pool = open_worker_pool(base.sweep.helpers, base.plugins, on_gpu=base.sweep.gpu_scoring)
        self._executor = GroupExecutor(self._settings, self._journal, self._resume, self._pool, self._costs, terminal)
        self._plans = self.folder / "shards"
        self._coordinator = (
            Coordinator(backend, self._plans, sweep_id, command, self._archive, terminal)
            if backend is not None
            else None
        )
        self._shards_starts = 0
        self._tracker: AnyTracker | None = None
        self.publisher: Publisher | None = None
        packages = Packages(base.sweep.root, terminal.waiting)
        self._fingerprints = Fingerprints(InputStore(SweepClock(self.folder), packages))
        self._printed: set[str] = set()
        self._shown = Shown()
        self._run_as: dict[str, str] = {}

    @property
    def folder(self) -> Path:
        """Folder of this sweep's files."""
        return self._settings.root / "sweeps" / self._sweep_id

    @property
    def engine(self) -> Supervisor | None:
        """The open engine; None if no engine is open."""
        return self._executor.engine

    @property
    def engine_starts(self) -> int:
        """Number of engines started, including restarts after a crash."""
        return self._executor.engine_starts + self._shards_starts

    @property
    def results(self) -> dict[str, PointResult]:
        """Results so far, by `Point.key`."""
        return self.publisher.results if self.publisher else {}

    @property
    def tracker(self) -> AnyTracker | None:
        """Tracker of this sweep; None until a batch was run."""
        return self._tracker

    @property
    def comparison(self) -> Comparison | None:
        """Comparison of all points; None until the sweep has ended."""
        return self.publisher.comparison if self.publisher else None

    def outcome(self) -> SweepOutcome | None:
        """Return the input of the closing summary; None until a batch was run."""
        if self.publisher is None or self._tracker is None:
            return None
        publisher = self.publisher
        return SweepOutcome(self.folder, publisher.results, publisher.comparison, self._tracker, publisher.nothing_new)

    @property
    def problems(self) -> list[str]:
        """One line for each point or report that could not be published."""
        return self.publisher.problems if self.publisher else []

    def run(self, points: Sequence[Point]) -> None:
        """Generate, score and publish points and the controls they need. Finished points are not run again.

        Raises:
            ConfigError: An input is wrong, or the model fails the identity check. Nothing was started.
            SweepHeld: Shards of this sweep are running elsewhere, and this process does not wait for them.
            EngineError: The engine failed for good. Complete points are published, incomplete ones are FAILED.
            TooManyFailures: More points failed than `sweep.on_error` and `sweep.max_failures` allow.
        """
        fingerprints = self._fingerprints
        if self._tracker is None:
            self._wait_for_shards()
            with suppress(OSError):  # reported when the first file is written
                self.folder.mkdir(parents=True, exist_ok=True)
            self._tracker = open_tracker(self._base.tracking, self._settings.root, self._sweep_id)
        fresh = self._distinct(points)
        # A shard reads controls from its plan only, so controls that this process knows are planned again for it.
        known_controls = self.publisher.scoring.controls if self.publisher and self._coordinator is None else ()
        planned = with_controls(fresh, known_controls)
        tasks = self._resume.tasks(planned, fingerprints)
        groups = make_plan(self._resume.todo(tasks), fingerprints.inputs)
        for shown in shown_prompts(points, fingerprints.inputs, self._settings.show_prompt, self._shown):
            self._terminal.marked(shown.title, shown.pieces)
        self._say_once(describe_prompts(groups))
        self._say_once(describe_zip(self._settings.zip))
        self._say_once(map(describe_read, fingerprints.inputs.clock.reads))
        if groups:
            self._say_once(filter(None, [self._resume.older_answers()]))
        coordinator = self._coordinator if self._coordinator is not None and self._coordinator.wants(groups) else None
        if coordinator is None:
            for group in groups:
                self._resume.origin(group.spec.engine)
        publisher = self.publisher or self._open_publisher(groups if coordinator is None else ())
        publisher.take_archived(tasks)
        if coordinator is not None:
            coordinator.hand_out(groups, publisher, self._executor, self._resume, fingerprints.inputs.clock.used)
            if not coordinator.waits:
                publisher.detach()
        else:
            for group in groups:
                self._run_group(group, publisher)
        publisher.scoring.drain()

    def result(self, point: Point) -> PointResult | None:
        """Return the result of a point, or of the equal point that was run instead; None if there is none yet."""
        return self.results.get(self._run_as.get(point.key, point.key))

    def __enter__(self) -> SweepRunner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        interrupted = error is not None and not isinstance(error, Exception)
        with ExitStack() as undo:
            undo.callback(self._pool.close)
            if self._tracker is not None:
                undo.callback(self._tracker.end, 0.0 if interrupted else END_SECONDS)
            if self._coordinator is not None:
                undo.callback(self._coordinator.close)
            if not interrupted:
                undo.callback(self._executor.close)
                if self._coordinator is not None and error is not None:
                    self._coordinator.close()  # running shards record their costs when they end
                self._count_shards()
            # When interrupted, the engine ends with this process: a regular shutdown would take too long.
            self._costs.engine_starts = self.engine_starts
            if self.publisher is not None:
                undo.callback(self.publisher.close, error)

    def _wait_for_shards(self) -> None:
        """Wait for shards that an earlier process of this sweep has started; `SweepHeld` if they do not end in time."""
        if self._coordinator is not None:
            self._coordinator.attach()
        if self._plans.is_dir():
            plans.retire_all(self._plans, self._coordinator.patience if self._coordinator else PATIENCE)

    def _count_shards(self) -> None:
        """Add the costs of shards, including shards that an earlier process of the sweep did not wait for."""
        if self.publisher is None or (self._coordinator is not None and not self._coordinator.waits):
            return
        for manifest, states in plans.uncounted(self._plans):
            for state in states:
                self._shards_starts += state.engine_starts
                self._costs.add(state.costs)
            with suppress(OSError):  # not our folder: the shards are counted again next time
                manifest.counted.touch()

    def _say_once(self, lines: Iterable[str]) -> None:
        """Print lines that this sweep has not printed before."""
        for line in lines:
            if line not in self._printed:
                self._printed.add(line)
                self._terminal.say(line)

    def _distinct(self, points: Sequence[Point]) -> list[Point]:
        """Return the points that have not been run; of points that differ only in their names, return one."""
        fresh: dict[str, Point] = {}
        for point, representative in self._fingerprints.distinct(points):
            key = self._run_as.setdefault(point.key, representative.key)
            if key not in self.results and key not in fresh:
                fresh[key] = representative
            elif point.key != key:
                log.warning("%s is the same as %s: it is run once.", point.name, representative.name)
        return list(fresh.values())

    def _open_publisher(self, groups: Sequence[EngineGroup]) -> Publisher:
        """Connect to the tracker before an engine starts, and import the first engine's library meanwhile."""
        assert self._tracker is not None
        with self._terminal.waiting("MLflow store"):
            self._tracker.prepare()
            if groups:
                self._pool.prepare()
            for group in groups[:1]:
                group.spec.engine.warm_up(self._settings.root / ".cache")
            self.publisher = Publisher(
                self._base,
                self._sweep_id,
                self._name,
                self._command,
                self._terminal,
                self._pool,
                self._archive,
                self._costs,
                self._tracker,
            )
        return self.publisher

    def _run_group(self, group: EngineGroup, publisher: Publisher) -> None:
        try:
            self._executor.run_group(group, publisher.scoring, publisher.start)
        except ConfigError as error:
            if publisher.results:  # points were run, so exit code 2 (nothing was started) would be wrong
                raise EngineError(str(error)) from error
            raise
