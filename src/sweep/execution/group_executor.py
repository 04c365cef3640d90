"""Group executor: generates the answers of one engine group and hands finished points to scoring."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

from sweep.config.schema import SweepSettings
from sweep.console import signals
from sweep.console.terminal import Advance, Terminal
from sweep.core.timing import SharedCosts
from sweep.engines.base import Engine, EngineConfig, Failure, Generation
from sweep.engines.identity_check import IDENTITY_CHECK_TOKENS, IdentityPrompt, check_identity
from sweep.engines.supervisor import Supervisor
from sweep.errors import EngineError, JournalError, SweepError
from sweep.execution.request_stream import GroupRun, RequestStream
from sweep.execution.resume import ResumeIndex
from sweep.execution.scheduler import RequestScheduler
from sweep.inputs.lora import LoraAdapter
from sweep.planning.plan import EngineGroup
from sweep.points.point import EngineSpec
from sweep.publishing.scoring_stage import ScoringStage
from sweep.storage.journal import Journal
from sweep.workers.base import WorkerPool

IDENTITY_CHECK_PROMPTS = 4


class GroupExecutor:
    """Runs engine groups. Answers go to the journal first, then to scoring.

    Opens an engine only when a group has a request for it, and keeps it open while the next groups can use it.
    Owned by the main thread. Call `close` to end the engine.
    """

    def __init__(
        self,
        settings: SweepSettings,
        journal: Journal,
        resume: ResumeIndex,
        pool: WorkerPool,
        costs: SharedCosts,
        terminal: Terminal,
    ) -> None:
        self._settings, self._journal, self._resume, self._pool = settings, journal, resume, pool
        self._costs, self._terminal = costs, terminal
        self._engine: tuple[EngineSpec, int, Supervisor] | None = None
        self._adapters: set[LoraAdapter] = set()  # with which the open engine has passed the identity check
        self._closed_engine_starts = self._taken_engine_starts = 0
        self._stream = RequestStream()
        self._answers: Iterator[Generation | Failure] | None = None
        self._last_answer = 0.0  # time

    @property
    def engine(self) -> Supervisor | None:
        """The open engine, or None."""
        return self._engine[2] if self._engine else None

    @property
    def engine_starts(self) -> int:
        """Number of engine starts so far, restarts after a crash included."""
        return self._closed_engine_starts + (self._engine[2].starts if self._engine else 0)

    def take_engine_starts(self) -> int:
        """Return how often an engine was started since the last call."""
        starts = self.engine_starts - self._taken_engine_starts
        self._taken_engine_starts += starts
        return starts

    def run_group(
        self,
        group: EngineGroup,
        scoring: ScoringStage,
        on_ready: Callable[[], object],
        *,
        external_controls: Collection[str] = (),
        on_answer: Advance | None = None,
    ) -> None:
        """Generate a group's answers and hand its finished points to scoring.

        Args:
            group: the points to run.
            scoring: receives finished and failed points, and holds the controls' answers.
            on_ready: called once the engine is open, or is known not to be needed.
            external_controls: `control_key` of the controls that another process generates. The answers of their points
                are generated and left in the journal until the control is available.
            on_answer: called with the number of tokens of each answer. None: update the terminal's progress line.

        Raises:
            ConfigError: the model fails the identity check.
            EngineError: the engine failed permanently. Complete points are scored, begun points have failed.
            TooManyFailures: more points failed than `sweep.on_error` and `sweep.max_failures` allow.
        """
        with self._terminal.progress(group.requests) if on_answer is None else nullcontext(on_answer) as advance:
            run = self.begin_group(group, scoring, on_ready, advance, external_controls=external_controls)
            self._receive(run.ended.is_set)
        if run.error is not None:
            raise run.error

    def begin_group(
        self,
        group: EngineGroup,
        scoring: ScoringStage,
        on_ready: Callable[[], object],
        on_answer: Advance,
        *,
        external_controls: Collection[str] = (),
        on_end: Callable[[], object] = lambda: None,
    ) -> GroupRun:
        """Generate a group's answers until the engine has drawn all of its requests.

        Later calls of this method or of `drain` receive the other answers. The requests of the next group thus follow
        without a pause.

        Args:
            group: the points to run.
            scoring: see `run_group`.
            on_ready: see `run_group`.
            on_answer: called with the number of tokens of each answer.
            external_controls: see `run_group`.
            on_end: called once the group has ended, also by an error.

        Returns:
            The group's run, which has ended or ends later. Its `error` is one of those that `run_group` raises, or was
            raised by `on_answer`.

        Raises:
            ConfigError: the model fails the identity check.
            EngineError: the engine does not start.
        """
        scheduler = RequestScheduler(group, scoring.controls, self._resume.recall, self._pool)
        engine = self._open_engine(group) if scheduler.has_request() else None
        on_ready()
        if engine is not None:
            scheduler.origin = self._resume.confirm_origin(group.spec.engine, engine.origin)
        run = GroupRun(
            scheduler=scheduler,
            journal=self._journal.writer(self._resume.header(group.spec.engine)),
            scoring=scoring,
            external_controls=external_controls,
            advance=on_answer,
            on_end=on_end,
        )
        self._stream.add(run)
        try:
            if self._continues(run) and engine is None:
                self._end(run)
            self._receive(lambda: run.is_submitted or run.ended.is_set())
        except BaseException:  # the caller cleans up what the run would use
            self._stream.remove(run)
            raise
        return run

    def drain(self, until: Callable[[], bool] = lambda: False) -> None:
        """Receive the answers of all groups that have begun.

        Args:
            until: called before each answer. Stop early once it returns True.
        """
        self._receive(until)

    def close(self) -> None:
        """End the engine if one is open."""
        self._answers = None
        if self._engine is not None:
            engine, self._engine = self._engine[2], None
            self._closed_engine_starts += engine.starts
            engine.close()

    def _receive(self, done: Callable[[], bool]) -> None:
        """Receive answers until `done()`, or until all groups have ended."""
        try:
            while self._stream.runs and not done():
                self._receive_one()
        except BaseException:
            self._answers = None
            for run in self._stream.runs:
                with suppress(JournalError):
                    run.journal.close()
            raise

    def _receive_one(self) -> None:
        """Receive one answer. End the groups that miss no answer then, or all if there is none to come."""
        assert self._engine is not None
        engine = self._engine[2]
        if self._answers is None:
            self._answers = engine.generate(self._stream, self._stream.needs)
            self._last_answer = time.monotonic()
        try:
            answer = next(self._answers, None)
        except EngineError as error:
            self.close()
            for run in self._stream.runs:
                self._stream.remove(run)
                run.fail(error)
            return
        signals.check()
        now = time.monotonic()
        self._costs.count(0, now - self._last_answer)
        self._last_answer = now
        if answer is None:
            self._answers = None
        elif (delivered := self._stream.deliver(answer)) is not None:
            self._deliver(*delivered)
        for run in self._stream.runs:
            # Looking for the last request can finish a point whose other answers were recalled. Hence this order.
            if run.is_submitted or answer is None:
                is_answered = answer is None or run.is_answered()
                if run.error is not None:
                    self._end(run, run.error)
                elif self._continues(run) and is_answered:
                    self._end(run)

    def _deliver(self, run: GroupRun, answer: Generation | Failure) -> None:
        try:
            self._costs.count(run.receive(answer), 0.0)
        except SweepError as error:
            self._end(run, error)
        else:
            self._continues(run)

    def _continues(self, run: GroupRun) -> bool:
        """Pass the group's finished points to scoring. End the group if too many have failed."""
        try:
            self._settings.check_failures(run.hand_over())
        except SweepError as error:
            self._end(run, error)
        return not run.ended.is_set()

    def _end(self, run: GroupRun, error: Exception | None = None) -> None:
        self._stream.remove(run)
        if self._engine is not None:
            self._costs.gpu_memory_gib = self._engine[2].memory_gib()
        if not self._stream.runs:
            self._answers = None  # requests of failed points are aborted
        run.end(error)

    def _open_engine(self, group: EngineGroup) -> Supervisor:
        """Return the open engine if the group can use it, else start one that passes the identity check."""
        if self._engine is not None:
            spec, max_model_len, engine = self._engine
            if (
                spec == group.spec
                and max_model_len >= group.max_model_len
                and self._adapters.issuperset(group.adapters)
            ):
                return engine
            self.drain()
            self.close()
            if spec == group.spec:  # later shards may need any of these adapters
                adapters = dict.fromkeys([*group.adapters, *sorted(self._adapters, key=str)])
                group = replace(group, adapters=tuple(adapters))
        cache = self._settings.root / ".cache"
        name = f"{group.spec.engine.name}, {group.spec.model.id}"
        with self._terminal.waiting(f"Engine ({name})"), self._costs.timing("engine_start_seconds"):
            engine = Supervisor(group.spec.engine, _EngineOpener(group, cache, self._resume))
            self._engine, self._adapters = (group.spec, group.max_model_len, engine), set(group.adapters)
            try:
                _check_identity(engine, group)
            except Exception:  # the next shard must not use an engine that failed the check
                self.close()
                raise
        return engine


class _EngineOpener:
    """Opens a group's engine, and repeats the identity check on every restart.

    A server that was unreachable may have come back with another model or in another version. Called on the main
    thread: the engine's processes end with the thread that starts them.
    """

    def __init__(self, group: EngineGroup, cache: Path, resume: ResumeIndex) -> None:
        self._group, self._cache, self._resume, self._is_restart = group, cache, resume, False

    def __call__(self, config: EngineConfig) -> Engine:
        engine = config.open(self._group.files, self._group.max_model_len, self._cache)
        try:
            self._group.expect_unchanged()
            self._resume.confirm_origin(self._group.spec.engine, engine.origin)
            if self._is_restart:
                _check_identity(engine, self._group)
        except BaseException:
            engine.close()
            raise
        self._is_restart = True
        return engine


def _check_identity(engine: Engine, group: EngineGroup) -> None:
    """Run the identity check on the first prompts, once with each adapter. See `check_identity` for errors."""
    corpora = {planned.corpus.table.adapter_folder: planned.corpus for planned in group.points}
    prompts = [
        IdentityPrompt(e.prompt.id, e.token_ids, corpus.table.rows(e.token_ids).to(corpus.table.dtype), adapter)
        for adapter, corpus in corpora.items()
        for e in corpus.prompts[:IDENTITY_CHECK_PROMPTS]
    ]
    longest = max(len(prompt.token_ids) for prompt in prompts)
    check_identity(engine, prompts, min(IDENTITY_CHECK_TOKENS, group.max_model_len - longest))
