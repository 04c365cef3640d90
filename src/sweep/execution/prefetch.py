"""Prefetch: yields the steps of a group of points in order, and has their requests built some way ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from sweep.engines.base import Completion, Origin
from sweep.inputs.tokenization import EncodedPrompt
from sweep.planning.plan import EngineGroup, PlannedPoint
from sweep.planning.results import CONTROL, given_kinds
from sweep.workers.base import Built, Unbuilt, WorkerLost, WorkerPool

ANSWER, FLOOR = "answer", "floor"  # the journal's kinds of answers, apart from forced ones

# Limits of the requests that are built before the engine asks for them: how many, and their embedding entries in all.
AHEAD, AHEAD_ENTRIES = 256, 2**25
# The same limits for one task of the worker pool.
CHUNK, CHUNK_ENTRIES = 16, 2**22


class Recalled(Protocol):
    """An answer from the journal."""

    @property
    def completions(self) -> tuple[Completion, ...]:
        """One completion per sample."""

    @property
    def scored(self) -> tuple[float, ...]:
        """Log-probabilities per token, for a request that forced an answer."""

    @property
    def origin(self) -> Origin:
        """The engine that generated the answer."""

    @property
    def is_from_this_sweep(self) -> bool:
        """Whether the answer was generated for this sweep."""


Run = tuple[PlannedPoint, bool]  # a point, and whether this is a control's second run
RecalledAnswers = Mapping[tuple[str, str], Recalled]  # by kind of answer and prompt id


@dataclass(frozen=True, slots=True)
class Step:
    """One prompt of one run.

    Attributes:
        run: index of the run.
        prompt: index of the prompt.
        recalled: the answer from the journal, if there is one.
        building: the requests that are built in the same task, if this step needs one.
        position: index of this step's request in `building`.
        entries: approximate number of entries of the request's embeddings.
    """

    run: int
    prompt: int
    recalled: Recalled | None
    building: Future[list[Built | Unbuilt]] | None
    position: int
    entries: int

    def wait_for_request(self) -> Built | Unbuilt:
        """Wait for the request. Only for a step that has `building`."""
        assert self.building is not None
        try:
            return self.building.result()[self.position]
        except WorkerLost as error:
            return Unbuilt(str(error), None)


def ordered_runs(group: EngineGroup) -> Iterator[Run]:
    """Yield the runs of a group: each point once, and each control's second run after its first point.

    The second run thus shares its batches with other requests than the first.
    """
    second_run: PlannedPoint | None = None
    for planned in group.points:
        if planned.point.is_control:
            if second_run is not None:
                yield second_run, True
            yield planned, False
            second_run = planned if planned.runs > 1 else None
        else:
            yield planned, False
            if second_run is not None:
                yield second_run, True
                second_run = None
    if second_run is not None:
        yield second_run, True


def prefetch_steps(
    runs: Sequence[Run], recall: Callable[[int], RecalledAnswers], pool: WorkerPool, max_rows: int
) -> Iterator[Step]:
    """Yield the steps of all runs in order, and start building requests up to `AHEAD` steps earlier.

    Args:
        runs: the runs, in order.
        recall: returns the recalled answers of a run by its index. Called once per run.
        pool: builds the requests.
        max_rows: the most rows of a prompt that leave room for an answer.
    """
    pending: deque[Step] = deque()
    entries = 0
    for step in _steps(runs, recall, pool, max_rows):
        pending.append(step)
        entries += step.entries
        while len(pending) > AHEAD or (entries > AHEAD_ENTRIES and len(pending) > 1):
            entries -= pending[0].entries
            yield pending.popleft()
    yield from pending


def _steps(
    runs: Sequence[Run], recall: Callable[[int], RecalledAnswers], pool: WorkerPool, max_rows: int
) -> Iterator[Step]:
    for number, (planned, is_floor) in enumerate(runs):
        answers, kind = recall(number), FLOOR if is_floor else ANSWER
        prompts, forced = range(len(planned.prompts)), _forced_prompts(planned, answers)
        width = planned.corpus.table.hidden_size
        for chunk in chunks(reversed(prompts) if is_floor else prompts, planned.prompts, width):
            recalled = {j: answers.get((kind, planned.prompts[j].prompt.id)) for j in chunk}
            # A recalled answer needs no request, but the perturbation is not in the journal and is measured anew.
            needed = [j for j in chunk if recalled[j] is None or not (planned.done or is_floor)]
            unsent = frozenset(j for j in needed if recalled[j] is not None and j not in forced)
            config = planned.point.config
            building = pool.build(planned.corpus, config, needed, unsent, max_rows) if needed else None
            positions = {j: position for position, j in enumerate(needed)}
            for j in chunk:
                future = building if j in positions else None
                entries = len(planned.prompts[j].token_ids) * width
                yield Step(number, j, recalled[j], future, positions.get(j, 0), entries)


def _forced_prompts(planned: PlannedPoint, answers: RecalledAnswers) -> set[int]:
    """Return the prompts whose embeddings are needed again, because the journal lacks the score of an answer.

    It is that of the control's answer, or of an answer that is given.
    """
    ids = [encoded.prompt.id for encoded in planned.prompts]
    scored = (
        {prompt_id for kind, prompt_id in answers if kind.startswith(CONTROL)} if planned.forces_control else {*ids}
    )
    return {
        j
        for j, prompt_id in enumerate(ids)
        if prompt_id not in scored or any((kind, prompt_id) not in answers for kind in given_kinds(planned, j))
    }


def chunks(order: Iterable[int], prompts: Sequence[EncodedPrompt], width: int) -> Iterator[list[int]]:
    """Split prompt indices, in the given order, into chunks whose requests are built in one task.

    Args:
        order: indices into `prompts`.
        prompts: the encoded prompts.
        width: hidden size of the model.
    """
    chunk: list[int] = []
    chunk_entries = 0
    for j in order:
        entries = len(prompts[j].token_ids) * width
        if chunk and (len(chunk) == CHUNK or chunk_entries + entries > CHUNK_ENTRIES):
            yield chunk
            chunk, chunk_entries = [], 0
        chunk.append(j)
        chunk_entries += entries
    if chunk:
        yield chunk
