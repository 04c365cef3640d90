"""What the engine is asked for a group of points: their prompts, the control's once more, and what answers lead to.

The second run of the control, in other company of the batch, is the noise floor: what its answers differ by from the
first's means nothing in any other point.  Teacher forcing asks how probable one point's answer is under another's
prompt, which can be asked once both answers are there.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import cast

import torch

from sweep.engines.base import Generation, Request, Sampling
from sweep.helpers.base import Helpers, Unbuilt
from sweep.identity import Identity
from sweep.inputs.encoding import EncodedPrompt
from sweep.outcome import CONTROL, OWN, Answers, Progress
from sweep.plan import EngineGroup, PlannedPoint
from sweep.request import build
from sweep.steps import ANSWER, FLOOR, Known, Step, runs_of, steps_ahead

Embedded = tuple[tuple[int, ...], torch.Tensor]  # a prompt's token ids and rows
Recall = Callable[[PlannedPoint], Known]


@dataclass(frozen=True, slots=True)
class Key:
    """What a request is for: a point's prompt, by their numbers.

    Attributes:
        forced: whose answer's probability is asked for; None: an answer is.
        sample: which of the samples that answer is.
    """

    point: int
    prompt: int
    forced: str | None = None
    sample: int = 0


class Workload(Iterator[Request]):
    """The requests of a group of points, built as the engine asks for them, and the answers to them.

    It may run out and have more later: what answers lead to comes first, then the points in their order.  What is
    recalled is not asked again.

    Attributes:
        active: the points that have been begun and are neither finished nor failed, by number.
        finished: those whose last answer is in, until they are taken.
        failed: those that cannot be finished, with the reason and a traceback if there is one, until they are taken.
    """

    def __init__(self, group: EngineGroup, controls: Mapping[str, Answers], recall: Recall, helpers: Helpers) -> None:
        self.active: dict[int, Progress] = {}
        self.finished: deque[Progress] = deque()
        self.failed: deque[tuple[Progress, str, str | None]] = deque()
        self._runs = list(runs_of(group))
        self._group, self._recall = group, recall
        self._controls = dict(controls)
        self._recalled: dict[int, Known] = {}
        self._ready: deque[Request] = deque()
        self._answered_all: set[int] = set()
        self._recalls = 0
        self._without_control: list[int] = []
        self._helpers = helpers
        self._points = self._begin_points()

    def __next__(self) -> Request:
        """Return the next request; StopIteration: there is none for now."""
        while self.has_request():
            request = self._ready.popleft()
            progress = self.active.get(cast(Key, request.key).point)
            if progress is None:  # its point has failed since it was made
                continue
            progress.costs.requests += 1
            progress.costs.prompt_tokens += len(request.token_ids)
            return request
        raise StopIteration

    def has_request(self) -> bool:
        """Whether there is a next request for now; what is known of earlier points is taken in on the way to it."""
        while not self._ready:
            try:
                self._ready.append(next(self._points))
            except StopIteration:
                break  # what was known may have led to requests none the less
        return bool(self._ready)

    def take_recalled(self) -> int:
        """Return how many answers were recalled since the last call."""
        recalled, self._recalls = self._recalls, 0
        return recalled

    def journaled(self, key: Key) -> tuple[Identity, str, str]:
        """Return an answer's place in the journal: the point that it is for, the kind, and the prompt's id."""
        planned, is_floor = self._runs[key.point]
        kind = FLOOR if is_floor else ANSWER if key.forced is None else self._kind(planned, key.forced, key.sample)
        return planned.identity, kind, planned.prompts[key.prompt].prompt.id

    def receive(self, generation: Generation) -> None:
        """Take an answer."""
        key = generation.key
        assert isinstance(key, Key)
        progress = self.active.get(key.point)
        if progress is None:  # the point has failed meanwhile
            return
        costs = progress.costs
        costs.cached_tokens += generation.cached_tokens
        if key.forced is None:
            costs.output_tokens += sum(len(completion.token_ids) for completion in generation.completions)
            progress.answers[key.prompt] = generation.completions
            if progress.answered:
                self._answered(key.point)
        else:
            progress.forced[key.prompt, key.forced, key.sample] = sum(generation.scored) / len(generation.scored)
            progress.awaited -= 1
            self._finish([key.point])

    def reject(self, key: Key, reason: str, trace: str | None = None) -> None:
        """Take a request that cannot be answered: its point fails, and no other; `trace` says where."""
        if (progress := self.active.pop(key.point, None)) is not None:
            if key.point in self._without_control:
                self._without_control.remove(key.point)
            self._recalled.pop(key.point, None)
            prompt_id = progress.planned.prompts[key.prompt].prompt.id
            self.failed.append((progress, f"prompt {prompt_id!r}: {reason}", trace))

    def _answered(self, number: int) -> None:
        if number not in self._answered_all:
            self._answered_all.add(number)
            self._finish(self._ask_about(number, self.active[number]))

    def _finish(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            if not self.active[number].awaited and number not in self._without_control:
                self.finished.append(self.active.pop(number))
                self._recalled.pop(number, None)

    def _ask_about(self, number: int, progress: Progress) -> list[int]:
        """Queue the questions that a point's answers lead to; return the points that may have none left to wait for."""
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

    def _kind(self, planned: PlannedPoint, forced: str, sample: int) -> str:
        """Return what a forced answer is called in the journal: whose it is, the control's by what it says."""
        number = f" #{sample + 1}" * bool(sample)
        if forced == OWN:
            return OWN + number
        said = [answer[sample].token_ids for answer in self._controls[planned.point.control_key]]
        return f"{CONTROL} {hashlib.sha256(repr(said).encode()).hexdigest()[:16]}{number}"

    def _force(self, number: int, kind: str, answers: Answers) -> None:
        """Ask how probable answers are: to untransformed prompts for `OWN`, to the point's prompts for `CONTROL`.

        An empty answer is left out, and one for which there is no room.
        """
        progress = self.active[number]
        planned, recalled = progress.planned, self._recalled[number]
        kinds = [self._kind(planned, kind, k) for k in range(planned.point.config.sampling.n)]
        for j, encoded in enumerate(planned.prompts):
            prompt: Embedded | None = None
            for k, (journaled, completion) in enumerate(zip(kinds, answers[j], strict=True)):
                if (known := recalled.get((journaled, encoded.prompt.id))) is not None:
                    progress.forced[j, kind, k] = sum(known.scored) / len(known.scored)
                elif completion.token_ids and not (planned.done and kind == CONTROL):
                    prompt = prompt or self._forcing(planned, encoded, kind)
                    self._ask_probability(Key(number, j, kind, k), prompt, completion.token_ids, progress)

    def _forcing(self, planned: PlannedPoint, encoded: EncodedPrompt, kind: str) -> Embedded:
        """Return the token ids and the rows of the prompt to which an answer is forced."""
        if kind == OWN:
            table = planned.corpus.table
            return encoded.token_ids, table.rows(encoded.token_ids).to(table.dtype)
        built = build(None, planned.point.config, encoded, planned.corpus).request
        assert built.embeds is not None
        return built.token_ids, built.embeds

    def _ask_probability(self, key: Key, prompt: Embedded, answer: tuple[int, ...], progress: Progress) -> None:
        (ids, rows), table = prompt, progress.planned.corpus.table
        if len(ids) + len(answer) <= self._group.max_prompt_len:
            embeds = torch.cat([rows, table.rows(answer).to(rows.dtype)])
            self._ready.append(Request(key, ids + answer, embeds, Sampling(max_tokens=1), scored=len(answer)))
            progress.awaited += 1

    def _begin_points(self) -> Iterator[Request]:
        steps = steps_ahead(self._runs, self._know, self._helpers, self._group.max_prompt_len)
        for number, own in groupby(steps, lambda step: step.run):
            planned, is_floor = self._runs[number]
            progress = self.active[number] = Progress(planned, started=time.time(), is_floor=is_floor)
            for step in own:
                if number not in self.active:  # it was rejected meanwhile
                    continue
                if (before := step.before) is not None:
                    progress.answers[step.prompt] = before.completions
                    progress.costs.reused += not before.is_own
                    self._recalls += not planned.done
                request = None if step.building is None else self._built(step, progress)
                if before is None and request is not None:
                    yield request
            if progress.answered and number in self.active:
                self._answered(number)

    def _know(self, number: int) -> Known:
        known = self._recalled[number] = self._recall(self._runs[number][0])
        return known

    def _built(self, step: Step, progress: Progress) -> Request | None:
        """Return the request of a point's prompt; None: it cannot be made, and the point has failed."""
        key, built = Key(step.run, step.prompt), step.built()
        if isinstance(built, Unbuilt):
            self.reject(key, built.reason, built.traceback)
            return None
        progress.costs.build_seconds += built.seconds
        progress.costs.transform_seconds += built.transform_seconds
        progress.measured[step.prompt] = built.measured
        return replace(built.request, key=key)
