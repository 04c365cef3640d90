"""Points in, generations out: one engine for all points that can share it, and one continuous batch of their requests.

The main thread feeds the engine and takes its answers to the journal; the publisher scores and publishes each point as
soon as its last answer is in.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import cast

from sweep.archive import Archive
from sweep.comparison import Comparison, Difference, compare
from sweep.config import SweepConfig
from sweep.engines.base import Engine, Generation
from sweep.engines.gate import GATE_TOKENS, GatePrompt, identity_gate
from sweep.errors import ConfigError, EngineError
from sweep.journal import Journal
from sweep.outcome import PointResult, as_yaml
from sweep.plan import EngineGroup, describe, make_plan
from sweep.point import EngineSpec, Point, with_controls
from sweep.publisher import Publisher
from sweep.results import tables
from sweep.terminal import Terminal
from sweep.tracking import Closing, Tracker
from sweep.workload import Key, Workload

log = logging.getLogger(__name__)

GATE_PROMPTS = 4


class Runner:
    """One sweep: its parent run, its journal, its open engine.

    `run` may be called any number of times, as optimising sweepers do; what was opened stays open until the end of the
    `with` block, which says whether the sweep finished, failed or was interrupted.
    """

    def __init__(self, base: SweepConfig, sweep_id: str, command: str, terminal: Terminal) -> None:
        self._base, self._sweep_id, self._command, self._terminal = base, sweep_id, command, terminal
        self.tracker: Tracker | None = None
        self._publisher: Publisher | None = None
        self._journal: Journal | None = None
        self._engine: tuple[EngineSpec, int, Engine] | None = None
        self.engine_starts = 0
        self.comparison: Comparison | None = None
        self._begun = 0

    @property
    def folder(self) -> Path:
        """Where this sweep's own files lie."""
        return self._base.sweep.root / "sweeps" / self._sweep_id

    @property
    def engine(self) -> Engine | None:
        """The open engine, if there is one."""
        return self._engine[2] if self._engine else None

    @property
    def results(self) -> dict[str, PointResult]:
        """What became of each point so far, by `Point.key`."""
        return self._publisher.results if self._publisher else {}

    @property
    def publishing_errors(self) -> list[str]:
        """What MLflow did not take; its generations are in the journal."""
        return self._publisher.errors if self._publisher else []

    def run(self, points: Sequence[Point]) -> None:
        """Generate, score and publish points and the controls they need.  What was done before is not done again.

        Raises:
            ConfigError: an input is wrong, or the model fails the identity gate; nothing was started.
            EngineError: the engine failed; what was complete is published, what had begun is FAILED.
        """
        fresh = {point.key: point for point in points if point.key not in self.results}
        wanted = with_controls(fresh.values(), self._publisher.controls if self._publisher else ())
        groups = make_plan(wanted)
        if self._base.sweep.dry_run:
            for line in describe(groups):
                self._terminal.result(line)
            return
        for group in groups:
            tracker = self._connect()
            try:
                engine = self._open_engine(group)
            except ConfigError as error:
                if self.results:  # then it is not true that nothing was started
                    raise EngineError(str(error)) from error
                raise
            publisher, journal = self._begin(tracker)
            try:
                self._generate(group, engine, publisher, journal)
            except EngineError:
                self._close_engine()
                raise
            publisher.drain()

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with ExitStack() as undo:
            undo.callback(self._close_engine)
            if self._journal is not None:
                undo.callback(self._journal.close)
            if self.tracker is not None:
                undo.callback(self._finish, self.tracker, error)
            if self._publisher is not None:
                undo.callback(self._publisher.close)

    def _report(self, tracker: Tracker, publisher: Publisher) -> None:
        """Compare the points, and write and publish what there is to be seen of that."""
        # Or Matplotlib would leave its cache in the user's home.
        os.environ.setdefault("MPLCONFIGDIR", str(self._base.sweep.root / ".cache" / "matplotlib"))
        from sweep.report import closing, files

        confidence = self._base.scoring.confidence
        self.comparison = comparison = compare(publisher.results.values(), confidence)
        laid_out = tables(
            comparison,
            publisher.archive.read(),
            sweep_id=self._sweep_id,
            name=self._base.sweep.name or self._sweep_id,
            command=self._command,
            confidence=confidence,
        )
        files.write(laid_out, self.folder / "report")
        for index, differences in comparison.differences.items():
            if index in publisher.runs:
                tracker.add(publisher.runs[index], _metrics_of(differences))
        axes = [f"axis/{key}" for key in laid_out.axes]
        shown = closing.shown_measures(comparison)
        describe = partial(closing.describe, comparison, self._command)
        tracker.close(Closing(describe, closing.series(comparison), self.folder / "report", axes, shown))

    def _finish(self, tracker: Tracker, error: BaseException | None) -> None:
        if self._publisher is not None and self.results:
            try:
                with self._terminal.waiting("Report"):
                    self._report(tracker, self._publisher)
            except Exception as problem:  # the points are published, and what is wrong with the report is said
                log.warning("The report could not be made: %s", problem, exc_info=True)
                self._publisher.errors.append(f"the report could not be made: {problem}")
        failed = sum(result.error is not None for result in self.results.values())
        status = "FAILED" if error or failed or self.publishing_errors else "FINISHED"
        if error is not None and not isinstance(error, Exception):
            status = "KILLED"
        metrics = {
            "sweep/points": float(len(self.results)),
            "sweep/failed": float(failed),
            "sweep/engine_starts": float(self.engine_starts),
            "cost/batch_tokens_per_second": self._publisher.tokens_per_second if self._publisher else 0.0,
        }
        tracker.finish(status, metrics)

    def _connect(self) -> Tracker:
        """Reach the tracker, whose absence is to be noticed before an engine starts."""
        if self.tracker is None:
            with self._terminal.waiting("MLflow store"):
                self.tracker = Tracker(self._base.tracking, self._base.sweep.root, self._sweep_id)
        return self.tracker

    def _begin(self, tracker: Tracker) -> tuple[Publisher, Journal]:
        """Create the parent run and the journal, once something is about to be generated."""
        if self._publisher is None or self._journal is None:
            tracker.start(self._base.sweep.name or self._sweep_id, self._command, as_yaml(Point(self._base)))
            self._publisher = Publisher(tracker, Archive(self.folder / "points"))
            self._journal = Journal(self.folder / "journal")
        return self._publisher, self._journal

    def _open_engine(self, group: EngineGroup) -> Engine:
        """Return the open engine if it will do, else another one that has passed the identity gate."""
        if self._engine is not None:
            spec, max_model_len, engine = self._engine
            if spec == group.spec and max_model_len >= group.max_model_len:
                return engine
            self._close_engine()
        name = f"{group.spec.engine.name}, {group.spec.model.id}"
        with self._terminal.waiting(f"Engine ({name})"):
            cache = self._base.sweep.root / ".cache"
            engine = group.spec.engine.open(group.checkpoint.files, group.max_model_len, cache)
            self._engine = (group.spec, group.max_model_len, engine)
            self.engine_starts += 1
            identity_gate(engine, _gate_prompts(group), _gate_tokens(group))
        return engine

    def _close_engine(self) -> None:
        if self._engine is not None:
            engine, self._engine = self._engine[2], None
            engine.close()

    def _generate(self, group: EngineGroup, engine: Engine, publisher: Publisher, journal: Journal) -> None:
        workload = Workload(group, self._begun, publisher.controls)
        then = time.monotonic()
        try:
            with self._terminal.progress(group.requests) as advance:
                for generation in engine.generate(workload):
                    tokens = sum(len(completion.token_ids) for completion in generation.completions)
                    now = time.monotonic()
                    publisher.count(tokens, now - then)
                    then = now
                    _record(generation, workload, journal)
                    for progress in workload.receive(generation):
                        journal.finish(progress.planned.fingerprint)
                        publisher.complete(progress)
                    while workload.failed:
                        publisher.fail(*workload.failed.popleft())
                    advance(tokens)
        except EngineError as error:
            for progress in workload.active.values():
                publisher.fail(progress, str(error))
            raise
        finally:
            self._begun += workload.begun
            while workload.failed:
                publisher.fail(*workload.failed.popleft())
            publisher.end_waiting("its control was not finished")


def _metrics_of(differences: Mapping[str, Difference]) -> dict[str, float]:
    """Return what a point's run is told of its differences to the control."""
    metrics = {}
    for measure, difference in differences.items():
        metrics[f"{measure}/difference"] = difference.mean
        metrics[f"{measure}/difference/ci_low"] = difference.ci_low
        metrics[f"{measure}/difference/ci_high"] = difference.ci_high
        metrics |= {f"{measure}/p": difference.p, f"{measure}/q": difference.q}
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _record(generation: Generation, workload: Workload, journal: Journal) -> None:
    key = cast(Key, generation.key)
    progress = workload.active.get(key.point)
    if progress is not None and key.forced is None and not progress.is_floor:
        planned = progress.planned
        journal.append(planned.fingerprint, planned.prompts[key.prompt].prompt.id, generation.completions)


def _gate_prompts(group: EngineGroup) -> list[GatePrompt]:
    first = group.points[0].prompts[:GATE_PROMPTS]
    return [GatePrompt(e.prompt.id, e.token_ids, group.table.rows(e.token_ids).to(group.table.dtype)) for e in first]


def _gate_tokens(group: EngineGroup) -> int:
    longest = max(len(e.token_ids) for e in group.points[0].prompts[:GATE_PROMPTS])
    return min(GATE_TOKENS, group.max_model_len - longest)
