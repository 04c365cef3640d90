"""What the engine is asked for a group of points: their prompts, the control's once more, and what answers lead to.

The second run of the control, in other company of the batch, is the noise floor: what its answers differ by from the
first's means nothing in any other point.  Teacher forcing asks how probable one point's answer is under another's
prompt, which can be asked once both answers are there.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from sweep.engines.base import Generation, Request, Sampling
from sweep.errors import TransformError
from sweep.outcome import CONTROL, OWN, Answers, Progress
from sweep.plan import EngineGroup, PlannedPoint
from sweep.request import build


@dataclass(frozen=True, slots=True)
class Key:
    """What a request is for: a point's prompt, by their numbers; if `forced`, the probability of an answer to it."""

    point: int
    prompt: int
    forced: str | None = None


class Workload(Iterator[Request]):
    """The requests of a group of points, built as the engine asks for them, and the answers to them.

    It may run out and have more later: what answers lead to comes first, then the points in their order.

    Attributes:
        active: the points that have been begun and are neither finished nor failed, by number.
        failed: those that could not be built, with the reason, until they are taken.
    """

    def __init__(self, group: EngineGroup, first_index: int, controls: Mapping[str, Answers]) -> None:
        self.active: dict[int, Progress] = {}
        self.failed: deque[tuple[Progress, str]] = deque()
        self.begun = 0
        self._group = group
        self._controls = dict(controls)
        self._forced: deque[Request] = deque()
        self._without_control: list[int] = []
        self._points = self._begin_points(first_index)

    def __next__(self) -> Request:
        """Return the next request; StopIteration: there is none for now."""
        return self._forced.popleft() if self._forced else next(self._points)

    def receive(self, generation: Generation) -> list[Progress]:
        """Take an answer and return the points that it finishes."""
        key = generation.key
        assert isinstance(key, Key)
        progress = self.active.get(key.point)
        if progress is None:  # the point has failed meanwhile
            return []
        if key.forced is None:
            progress.answers[key.prompt] = generation.completions
            if not progress.answered:
                return []
            asked = self._ask_about(key.point, progress)
        else:
            progress.forced[key.prompt, key.forced] = sum(generation.scored) / len(generation.scored)
            progress.awaited -= 1
            asked = [key.point]
        finished = [number for number in asked if self._is_finished(number)]
        return [self.active.pop(number) for number in finished]

    def _is_finished(self, number: int) -> bool:
        return not self.active[number].awaited and number not in self._without_control

    def _ask_about(self, number: int, progress: Progress) -> list[int]:
        """Queue the questions that a point's answers lead to; return the points that have none left to wait for."""
        point = progress.planned.point
        if progress.is_floor or not point.config.scoring.teacher_forced:
            return [number]
        self._force(number, OWN, progress.in_order())
        touched = [number]
        if point.is_control:
            self._controls[point.control_key] = progress.in_order()
            waiting = [n for n in self._without_control if self._control_key(n) == point.control_key]
            touched += waiting
        elif point.control_key in self._controls:
            waiting = [number]
        else:
            waiting = []
            self._without_control.append(number)
        for other in waiting:
            self._force(other, CONTROL, self._controls[point.control_key])
            if other in self._without_control:
                self._without_control.remove(other)
        return touched

    def _control_key(self, number: int) -> str:
        return self.active[number].planned.point.control_key

    def _force(self, number: int, kind: str, answers: Answers) -> None:
        """Ask how probable answers are: to untransformed prompts for `OWN`, to the point's prompts for `CONTROL`.

        An empty answer is left out, and one for which there is no room.
        """
        progress = self.active[number]
        config, corpus = progress.planned.point.config, progress.planned.corpus
        for j, encoded in enumerate(progress.planned.prompts):
            key, answer = Key(number, j, kind), answers[j][0].token_ids
            ids, rows = encoded.token_ids, corpus.table.rows(encoded.token_ids).to(corpus.table.dtype)
            if kind == CONTROL:
                built = build(key, config, encoded, corpus).request
                assert built.embeds is not None
                ids, rows = built.token_ids, built.embeds
            if answer and len(ids) + len(answer) <= self._group.max_prompt_len:
                embeds = torch.cat([rows, corpus.table.rows(answer).to(rows.dtype)])
                self._forced.append(Request(key, ids + answer, embeds, Sampling(max_tokens=1), scored=len(answer)))
                progress.awaited += 1

    def _begin_points(self, first_index: int) -> Iterator[Request]:
        for i, (planned, is_floor) in enumerate(_with_floors(self._group)):
            index = first_index + self.begun
            self.begun += not is_floor
            progress = self.active[i] = Progress(index, planned, started=time.time(), is_floor=is_floor)
            prompts = list(enumerate(planned.prompts))
            for j, encoded in reversed(prompts) if is_floor else prompts:
                key = Key(i, j)
                try:
                    built = build(key, planned.point.config, encoded, planned.corpus, self._group.max_prompt_len)
                except TransformError as error:
                    self.failed.append((self.active.pop(i), f"prompt {encoded.prompt.id!r}: {error}"))
                    break
                progress.perturbations[j], progress.neighbours[j] = built.perturbation, built.neighbours
                yield built.request


def _with_floors(group: EngineGroup) -> Iterator[tuple[PlannedPoint, bool]]:
    """Yield the points, each control again after the first of its points; the second value says that it is again."""
    waiting: PlannedPoint | None = None
    for planned in group.points:
        if planned.point.is_control:
            if waiting is not None:
                yield waiting, True
            yield planned, False
            waiting = planned if planned.point.config.scoring.noise_floor else None
        else:
            yield planned, False
            if waiting is not None:
                yield waiting, True
                waiting = None
    if waiting is not None:
        yield waiting, True
