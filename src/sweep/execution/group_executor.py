"""Groups of points answered: by an engine that stays open as long as it will do, or from the journal."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import cast

from sweep import signals
from sweep.config import SweepSettings
from sweep.costs import SharedCosts
from sweep.disk.journal import Journal
from sweep.disk.writer import Writer
from sweep.engines.base import Engine, EngineConfig, Failure
from sweep.engines.gate import GATE_TOKENS, GatePrompt, identity_gate
from sweep.engines.supervisor import Supervisor
from sweep.errors import EngineError
from sweep.helpers.base import Helpers
from sweep.memory import Memory
from sweep.plan import EngineGroup
from sweep.point import EngineSpec
from sweep.publication.scoring import Scoring
from sweep.terminal import Advance, Terminal
from sweep.workload import Key, Workload

GATE_PROMPTS = 4


class Generator:
    """An engine, once it is needed, and what its answers go to: the journal first, then scoring."""

    def __init__(
        self,
        settings: SweepSettings,
        journal: Journal,
        memory: Memory,
        helpers: Helpers,
        costs: SharedCosts,
        terminal: Terminal,
    ) -> None:
        self._settings, self._journal, self._memory, self._helpers = settings, journal, memory, helpers
        self._costs, self._terminal = costs, terminal
        self._engine: tuple[EngineSpec, int, Supervisor] | None = None
        self._earlier_starts = 0

    @property
    def engine(self) -> Supervisor | None:
        """The open engine, if there is one."""
        return self._engine[2] if self._engine else None

    @property
    def engine_starts(self) -> int:
        """How many engines were started, those among them that took a dead one's place."""
        return self._earlier_starts + (self._engine[2].starts if self._engine else 0)

    def work_off(
        self,
        group: EngineGroup,
        scoring: Scoring,
        opened: Callable[[], object],
        *,
        elsewhere: Collection[str] = (),
        watch: Advance | None = None,
    ) -> None:
        """Have a group's points answered and handed to scoring.

        Args:
            scoring: takes the points that have an end, and knows the controls' answers.
            opened: called when the engine is open, or turned out not to be needed.
            elsewhere: `control_key` of controls that another process generates.  Their points are answered, and left
                for when it has.
            watch: told of each answer, with its tokens; None: the terminal is.

        Raises:
            ConfigError: the model fails the identity gate.
            EngineError: the engine failed for good; what was complete is scored, what had begun has failed.
            TooManyFailures: more points failed than `sweep.on_error` and `sweep.max_failures` allow.
        """
        workload = Workload(group, scoring.controls, self._memory.recall, self._helpers)
        engine = self._open_engine(group) if workload.has_request() else None
        opened()
        journal = self._journal.writer(self._memory.header(group.spec.engine.name))
        try:
            if watch is not None:
                self._answer(engine, workload, journal, scoring, elsewhere, watch)
            else:
                with self._terminal.progress(group.requests) as advance:
                    self._answer(engine, workload, journal, scoring, elsewhere, advance)
        except EngineError as error:
            self.close()
            for progress in workload.active.values():
                if not progress.is_floor:
                    scoring.fail(progress, str(error))
            scoring.end_waiting("its control was not finished", for_floors=False)
            raise
        finally:
            journal.close()
        for progress in workload.active.values():  # whose control has failed, or is not there yet
            if progress.planned.point.control_key not in elsewhere:
                scoring.fail(progress, "its control was not finished")
        scoring.end_waiting("its control was not finished")

    def close(self) -> None:
        """End the engine, if there is one."""
        if self._engine is not None:
            engine, self._engine = self._engine[2], None
            self._earlier_starts += engine.starts
            engine.close()

    def _answer(
        self,
        engine: Supervisor | None,
        workload: Workload,
        journal: Writer,
        scoring: Scoring,
        elsewhere: Collection[str],
        advance: Advance,
    ) -> None:
        self._take(workload, scoring, elsewhere, advance)
        if engine is None:
            return
        then = time.monotonic()
        for answer in engine.generate(workload, lambda key: cast(Key, key).point in workload.active):
            signals.check()
            key, tokens = cast(Key, answer.key), 0
            is_asked = key.forced is None  # else an answer has led to it, and nobody has counted it before
            if isinstance(answer, Failure):
                workload.reject(key, answer.reason)
            else:
                tokens = sum(len(completion.token_ids) for completion in answer.completions)
                journal.append(*workload.journaled(key), answer)
                workload.receive(answer)
            now = time.monotonic()
            self._costs.count(tokens, now - then)
            then = now
            if is_asked:
                advance(tokens)
            self._take(workload, scoring, elsewhere, advance)
        self._costs.gpu_memory_gib = engine.memory_gib()

    def _take(self, workload: Workload, scoring: Scoring, elsewhere: Collection[str], advance: Advance) -> None:
        """Hand over what the workload has come to an end with."""
        for _ in range(workload.take_recalled()):
            advance(0)
        while workload.finished:
            progress = workload.finished.popleft()
            waits = progress.planned.point.control_key in elsewhere
            (scoring.leave if waits else scoring.complete)(progress)
        while workload.failed:
            scoring.fail(*workload.failed.popleft())
        self._settings.bear(scoring.failed)

    def _open_engine(self, group: EngineGroup) -> Supervisor:
        """Return the open engine if it will do, else another one that has passed the identity gate."""
        if self._engine is not None:
            spec, max_model_len, engine = self._engine
            if spec == group.spec and max_model_len >= group.max_model_len:
                return engine
            self.close()
        cache = self._settings.root / ".cache"
        name = f"{group.spec.engine.name}, {group.spec.model.id}"
        with self._terminal.waiting(f"Engine ({name})"), self._costs.timing("engine_start_seconds"):
            engine = Supervisor(group.spec.engine, _Opening(group, cache))
            self._engine = (group.spec, group.max_model_len, engine)
            try:
                identity_gate(engine, _gate_prompts(group), _gate_tokens(group))
            except Exception:  # lest the next shard find it open
                self.close()
                raise
        return engine


class _Opening:
    """Starts a group's engine, and has it pass the identity gate again when it takes a dead one's place.

    A server that was away may have come back with another model.
    """

    def __init__(self, group: EngineGroup, cache: Path) -> None:
        self._group, self._cache, self._again = group, cache, False

    def __call__(self, config: EngineConfig) -> Engine:
        engine = config.open(self._group.checkpoint.files, self._group.max_model_len, self._cache)
        if self._again:
            try:
                identity_gate(engine, _gate_prompts(self._group), _gate_tokens(self._group))
            except BaseException:
                engine.close()
                raise
        self._again = True
        return engine


def _gate_prompts(group: EngineGroup) -> list[GatePrompt]:
    first = group.points[0].prompts[:GATE_PROMPTS]
    return [GatePrompt(e.prompt.id, e.token_ids, group.table.rows(e.token_ids).to(group.table.dtype)) for e in first]


def _gate_tokens(group: EngineGroup) -> int:
    longest = max(len(e.token_ids) for e in group.points[0].prompts[:GATE_PROMPTS])
    return min(GATE_TOKENS, group.max_model_len - longest)
