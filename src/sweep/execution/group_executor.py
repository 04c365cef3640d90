"""Group executor: generates the answers of one engine group and hands finished points to scoring."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import cast

from sweep.config.schema import SweepSettings
from sweep.console import signals
from sweep.console.terminal import Advance, Terminal
from sweep.core.timing import SharedCosts
from sweep.engines.base import Engine, EngineConfig, Failure
from sweep.engines.identity_check import IDENTITY_CHECK_TOKENS, IdentityPrompt, check_identity
from sweep.engines.supervisor import Supervisor
from sweep.errors import EngineError
from sweep.execution.resume import ResumeIndex
from sweep.execution.scheduler import Key, RequestScheduler
from sweep.inputs.lora import LoraAdapter
from sweep.planning.plan import EngineGroup
from sweep.points.point import EngineSpec
from sweep.publishing.scoring_stage import ScoringStage
from sweep.storage.journal import Journal
from sweep.storage.journal_writer import JournalWriter
from sweep.workers.base import WorkerPool

IDENTITY_CHECK_PROMPTS = 4

CONTROL_UNFINISHED = "its control was not finished"


class GroupExecutor:
    """Runs engine groups one after the other. Answers go to the journal first, then to scoring.

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
        self._closed_engine_starts = 0

    @property
    def engine(self) -> Supervisor | None:
        """The open engine, or None."""
        return self._engine[2] if self._engine else None

    @property
    def engine_starts(self) -> int:
        """Number of engine starts so far, restarts after a crash included."""
        return self._closed_engine_starts + (self._engine[2].starts if self._engine else 0)

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
        scheduler = RequestScheduler(group, scoring.controls, self._resume.recall, self._pool)
        engine = self._open_engine(group) if scheduler.has_request() else None
        on_ready()
        if engine is not None:
            scheduler.origin = self._resume.confirm_origin(group.spec.engine, engine.origin)
        journal = self._journal.writer(self._resume.header(group.spec.engine))
        try:
            if on_answer is not None:
                self._generate(engine, scheduler, journal, scoring, external_controls, on_answer)
            else:
                with self._terminal.progress(group.requests) as advance:
                    self._generate(engine, scheduler, journal, scoring, external_controls, advance)
        except EngineError as error:
            self.close()
            for progress in scheduler.active.values():
                if not progress.is_floor:
                    scoring.fail(progress, str(error))
            scoring.end_waiting(CONTROL_UNFINISHED, for_floors=False)
            raise
        finally:
            journal.close()
        for progress in scheduler.active.values():  # these still wait for their control
            if progress.planned.point.control_key not in external_controls:
                scoring.fail(progress, CONTROL_UNFINISHED)
        scoring.end_waiting(CONTROL_UNFINISHED)

    def close(self) -> None:
        """End the engine if one is open."""
        if self._engine is not None:
            engine, self._engine = self._engine[2], None
            self._closed_engine_starts += engine.starts
            engine.close()

    def _generate(
        self,
        engine: Supervisor | None,
        scheduler: RequestScheduler,
        journal: JournalWriter,
        scoring: ScoringStage,
        external_controls: Collection[str],
        advance: Advance,
    ) -> None:
        self._hand_over(scheduler, scoring, external_controls, advance)
        if engine is None:
            return
        last = time.monotonic()
        for answer in engine.generate(scheduler, lambda key: cast(Key, key).run in scheduler.active):
            signals.check()
            key, tokens = cast(Key, answer.key), 0
            is_counted = key.forced is None  # the total shown to the user excludes teacher forcing
            if isinstance(answer, Failure):
                scheduler.reject(key, answer.reason)
            else:
                tokens = sum(len(completion.token_ids) for completion in answer.completions)
                journal.append(*scheduler.journal_key(key), answer)
                scheduler.receive(answer)
            now = time.monotonic()
            self._costs.count(tokens, now - last)
            last = now
            if is_counted:
                advance(tokens)
            self._hand_over(scheduler, scoring, external_controls, advance)
        self._hand_over(scheduler, scoring, external_controls, advance)  # points whose last answers were recalled since
        self._costs.gpu_memory_gib = engine.memory_gib()

    def _hand_over(
        self, scheduler: RequestScheduler, scoring: ScoringStage, external_controls: Collection[str], advance: Advance
    ) -> None:
        """Count recalled answers, and pass the scheduler's finished and failed points to scoring."""
        for _ in range(scheduler.take_recalled_count()):
            advance(0)
        while scheduler.finished:
            progress = scheduler.finished.popleft()
            waits = progress.planned.point.control_key in external_controls
            (scoring.defer if waits else scoring.complete)(progress)
        while scheduler.failed:
            scoring.fail(*scheduler.failed.popleft())
        self._settings.check_failures(scoring.failed)

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
            self.close()
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
