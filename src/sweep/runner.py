"""Points in, generations out: one engine for all points that can share it, and one continuous batch of their requests.

The main thread feeds the engine and takes its answers to the journal; a second thread scores and archives each point as
soon as its last answer is in; a third publishes what is archived.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import cast

from sweep import signals
from sweep.config import SweepConfig
from sweep.costs import SharedCosts
from sweep.disk.archive import Archive
from sweep.disk.journal import Journal, Writer
from sweep.engines.base import Failure
from sweep.engines.gate import GATE_TOKENS, GatePrompt, identity_gate
from sweep.engines.supervisor import Supervisor
from sweep.errors import ConfigError, EngineError, TooManyFailures
from sweep.identity import Contents
from sweep.memory import Memory
from sweep.outcome import PointResult
from sweep.plan import EngineGroup, Task, describe, make_plan
from sweep.point import EngineSpec, Point, with_controls
from sweep.publication.publisher import Publisher
from sweep.publication.scoring_thread import ScoringThread
from sweep.report.comparison import Comparison
from sweep.terminal import Advance, Terminal
from sweep.tracking import Tracker
from sweep.workload import Key, Workload

log = logging.getLogger(__name__)

GATE_PROMPTS = 4


class Runner:
    """One sweep: what is known of it, and the open engine.

    `run` may be called any number of times, as optimising sweepers do; what was opened stays open until the end of the
    `with` block, which says whether the sweep finished, failed or was interrupted.

    Attributes:
        publisher: scores, publishes and reports; None until something was run.
    """

    def __init__(self, base: SweepConfig, sweep_id: str, command: str, terminal: Terminal) -> None:
        self._base, self._sweep_id, self._command, self._terminal = base, sweep_id, command, terminal
        self._settings = base.sweep
        self._journal = Journal(base.sweep.root / "journal")
        self._archive = Archive(self.folder / "points")
        self._memory = Memory(self._archive, self._journal, sweep_id, base.sweep.resume)
        self._engine: tuple[EngineSpec, int, Supervisor] | None = None
        self._costs = SharedCosts()
        self.publisher: Publisher | None = None
        self._earlier_starts = 0
        self._contents = Contents()
        self._run_as: dict[str, str] = {}

    @property
    def folder(self) -> Path:
        """Where this sweep's own files lie."""
        return self._settings.root / "sweeps" / self._sweep_id

    @property
    def engine(self) -> Supervisor | None:
        """The open engine, if there is one."""
        return self._engine[2] if self._engine else None

    @property
    def engine_starts(self) -> int:
        """How many engines were started, those among them that took a dead one's place."""
        return self._earlier_starts + (self._engine[2].starts if self._engine else 0)

    @property
    def results(self) -> dict[str, PointResult]:
        """What became of each point so far, by `Point.key`."""
        return self.publisher.results if self.publisher else {}

    @property
    def tracker(self) -> Tracker | None:
        """Where results are published, once something was run."""
        return self.publisher.tracker if self.publisher else None

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
            EngineError: the engine failed for good; what was complete is published, what had begun is FAILED.
            TooManyFailures: more points failed than `sweep.on_error` and `sweep.max_failures` allow.
        """
        contents = self._contents
        fresh = self._distinct(points)
        wanted = with_controls(fresh, self.publisher.scoring.controls if self.publisher else ())
        tasks = self._memory.tasks(wanted, contents)
        todo = _with_their_controls(tasks)
        self._memory.check_versions(todo)
        groups = make_plan(todo)
        if self._settings.dry_run:
            for line in describe(groups, len(tasks)):
                self._terminal.result(line)
            return
        publisher = self.publisher or self._open_publisher()
        publisher.take_archived(tasks)
        for group in groups:
            self._work_off(group, publisher)
        publisher.scoring.drain()

    def result(self, point: Point) -> PointResult | None:
        """Return what became of a point, or of the one that is the same and was run in its place; None: nothing yet."""
        return self.results.get(self._run_as.get(point.key, point.key))

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with ExitStack() as undo:
            if error is None or isinstance(error, Exception):
                undo.callback(self._close_engine)
            # Else the engine ends with this process: shutting it down properly takes longer than there is time.
            self._costs.engine_starts = self.engine_starts
            if self.publisher is not None:
                undo.callback(self.publisher.close, error)

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

    def _open_publisher(self) -> Publisher:
        """Reach the tracker, whose absence is to be noticed before an engine starts."""
        with self._terminal.waiting("MLflow store"):
            self.publisher = Publisher(
                self._base, self._sweep_id, self._command, self._terminal, self._archive, self._costs
            )
        return self.publisher

    def _work_off(self, group: EngineGroup, publisher: Publisher) -> None:
        """Have a group's points answered, by the engine or from the journal."""
        scoring = publisher.scoring
        workload = Workload(group, scoring.controls, self._memory.recall)
        try:
            engine = self._open_engine(group) if workload.has_request() else None
        except ConfigError as error:
            if publisher.results:  # then it is not true that nothing was started
                raise EngineError(str(error)) from error
            raise
        publisher.start()
        journal = self._journal.writer(self._memory.header(group.spec.engine.name))
        try:
            with self._terminal.progress(group.requests) as advance:
                self._take(workload, scoring, advance)
                if engine is not None:
                    self._generate(engine, workload, journal, scoring, advance)
        except EngineError as error:
            self._close_engine()
            for progress in workload.active.values():
                if not progress.is_floor:
                    scoring.fail(progress, str(error))
            scoring.end_waiting("its control was not finished", for_floors=False)
            raise
        finally:
            journal.close()
        for progress in workload.active.values():  # whose control has failed
            scoring.fail(progress, "its control was not finished")
        scoring.end_waiting("its control was not finished")

    def _generate(
        self, engine: Supervisor, workload: Workload, journal: Writer, scoring: ScoringThread, advance: Advance
    ) -> None:
        then = time.monotonic()
        for answer in engine.generate(workload, lambda key: cast(Key, key).point in workload.active):
            signals.check()
            key, tokens = cast(Key, answer.key), 0
            if isinstance(answer, Failure):
                workload.reject(key, answer.reason)
            else:
                tokens = sum(len(completion.token_ids) for completion in answer.completions)
                journal.append(*workload.journaled(key), answer)
                workload.receive(answer)
            now = time.monotonic()
            self._costs.count(tokens, now - then)
            then = now
            advance(tokens)
            self._take(workload, scoring, advance)
        self._costs.gpu_memory_gib = engine.memory_gib()

    def _take(self, workload: Workload, scoring: ScoringThread, advance: Advance) -> None:
        """Hand over what the workload has come to an end with."""
        for _ in range(workload.take_recalled()):
            advance(0)
        while workload.finished:
            scoring.complete(workload.finished.popleft())
        while workload.failed:
            scoring.fail(*workload.failed.popleft())
        if scoring.failed > self._settings.failures_allowed:
            allowed = "sweep.on_error=stop" if self._settings.on_error == "stop" else "sweep.max_failures"
            raise TooManyFailures(f"{scoring.failed} points failed, more than {allowed} allows.")

    def _open_engine(self, group: EngineGroup) -> Supervisor:
        """Return the open engine if it will do, else another one that has passed the identity gate."""
        if self._engine is not None:
            spec, max_model_len, engine = self._engine
            if spec == group.spec and max_model_len >= group.max_model_len:
                return engine
            self._close_engine()
        cache = self._settings.root / ".cache"
        name = f"{group.spec.engine.name}, {group.spec.model.id}"
        with self._terminal.waiting(f"Engine ({name})"), self._costs.timing("engine_start_seconds"):
            engine = Supervisor(
                group.spec.engine, lambda config: config.open(group.checkpoint.files, group.max_model_len, cache)
            )
            self._engine = (group.spec, group.max_model_len, engine)
            identity_gate(engine, _gate_prompts(group), _gate_tokens(group))
        return engine

    def _close_engine(self) -> None:
        if self._engine is not None:
            engine, self._engine = self._engine[2], None
            self._earlier_starts += engine.starts
            engine.close()


def _with_their_controls(tasks: Sequence[Task]) -> list[Task]:
    """Return the tasks that are not done, and with them those done controls that they are compared with."""
    wanted = {task.point.control_key for task in tasks if not task.done}
    return [task for task in tasks if not task.done or (task.point.is_control and task.point.control_key in wanted)]


def _gate_prompts(group: EngineGroup) -> list[GatePrompt]:
    first = group.points[0].prompts[:GATE_PROMPTS]
    return [GatePrompt(e.prompt.id, e.token_ids, group.table.rows(e.token_ids).to(group.table.dtype)) for e in first]


def _gate_tokens(group: EngineGroup) -> int:
    longest = max(len(e.token_ids) for e in group.points[0].prompts[:GATE_PROMPTS])
    return min(GATE_TOKENS, group.max_model_len - longest)
