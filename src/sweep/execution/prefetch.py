"""What there is to do for each prompt of a group of points, in order, with their requests built some way ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

from sweep.engines.base import Completion
from sweep.helpers.base import Built, HelperLost, Helpers, Unbuilt
from sweep.inputs.encoding import EncodedPrompt
from sweep.plan import EngineGroup, PlannedPoint

ANSWER, FLOOR = "answer", "floor"  # kinds of answers in the journal, beside forced ones

# How many requests are built before the engine asks for them, of how many entries of embeddings together; and how many
# are built in one go.
AHEAD, AHEAD_ENTRIES = 256, 2**25
CHUNK, CHUNK_ENTRIES = 16, 2**22


class Recalled(Protocol):
    """What is known of a request that was answered before."""

    @property
    def completions(self) -> tuple[Completion, ...]:
        """The answer."""

    @property
    def scored(self) -> tuple[float, ...]:
        """Log-probabilities, of a request that forced an answer."""

    @property
    def is_own(self) -> bool:
        """Whether it was answered for this sweep."""


Run = tuple[PlannedPoint, bool]  # a point, and whether it is a control's second run
Known = Mapping[tuple[str, str], Recalled]  # by kind of answer and prompt id


@dataclass(frozen=True, slots=True)
class Step:
    """What there is to do for a point's prompt.

    Attributes:
        run: the point, by number.
        prompt: by number.
        before: its answer, if it is known.
        building: its request among others, if one is needed.
        place: the request's among those.
        entries: about how many its embeddings have.
    """

    run: int
    prompt: int
    before: Recalled | None
    building: Future[list[Built | Unbuilt]] | None
    place: int
    entries: int

    def built(self) -> Built | Unbuilt:
        """Wait for the request, which there must be."""
        assert self.building is not None
        try:
            return self.building.result()[self.place]
        except HelperLost as lost:
            return Unbuilt(str(lost), None)


def runs_of(group: EngineGroup) -> Iterator[Run]:
    """Yield the points, each control again after the first of its points; the second value says that it is again."""
    waiting: PlannedPoint | None = None
    for planned in group.points:
        if planned.point.is_control:
            if waiting is not None:
                yield waiting, True
            yield planned, False
            waiting = planned if planned.runs > 1 else None
        else:
            yield planned, False
            if waiting is not None:
                yield waiting, True
                waiting = None
    if waiting is not None:
        yield waiting, True


def steps_ahead(runs: Sequence[Run], known: Callable[[int], Known], helpers: Helpers, most: int) -> Iterator[Step]:
    """Yield the steps of all runs, some of them later than their requests are begun.

    Args:
        known: returns what is known of a run, by number; asked once for each.
        helpers: build.
        most: the most rows of a prompt that leave room for an answer.
    """
    taken: deque[Step] = deque()
    entries = 0
    for step in _steps(runs, known, helpers, most):
        taken.append(step)
        entries += step.entries
        while len(taken) > AHEAD or (entries > AHEAD_ENTRIES and len(taken) > 1):
            entries -= taken[0].entries
            yield taken.popleft()
    yield from taken


def _steps(runs: Sequence[Run], known: Callable[[int], Known], helpers: Helpers, most: int) -> Iterator[Step]:
    for number, (planned, is_floor) in enumerate(runs):
        recalled, kind = known(number), FLOOR if is_floor else ANSWER
        prompts = range(len(planned.prompts))
        width = planned.corpus.table.hidden_size
        for chunk in _chunks(reversed(prompts) if is_floor else prompts, planned.prompts, width):
            before = {j: recalled.get((kind, planned.prompts[j].prompt.id)) for j in chunk}
            # What is known need not be asked again, but what the transform did is not in the journal.
            needed = [j for j in chunk if before[j] is None or not (planned.done or is_floor)]
            unsent = frozenset(j for j in needed if before[j] is not None)
            config = planned.point.config
            building = helpers.build(planned.corpus, config, needed, unsent, most) if needed else None
            places = {j: place for place, j in enumerate(needed)}
            for j in chunk:
                own = building if j in places else None
                entries = len(planned.prompts[j].token_ids) * width
                yield Step(number, j, before[j], own, places.get(j, 0), entries)


def _chunks(order: Iterable[int], prompts: Sequence[EncodedPrompt], width: int) -> Iterator[list[int]]:
    """Cut prompts, by number and in that order, into those whose requests are built in one go."""
    chunk: list[int] = []
    entries = 0
    for j in order:
        own = len(prompts[j].token_ids) * width
        if chunk and (len(chunk) == CHUNK or entries + own > CHUNK_ENTRIES):
            yield chunk
            chunk, entries = [], 0
        chunk.append(j)
        entries += own
    if chunk:
        yield chunk
