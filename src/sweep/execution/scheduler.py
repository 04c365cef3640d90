"""Request scheduler: the engine's requests for a group of points, and the bookkeeping of their answers.

A control can run twice, the second time batched with other requests. The differences between its two runs are the
noise floor: differences of this size mean nothing in any other point. Teacher forcing measures how probable one point's
answer is under another's prompt. It needs both answers, so its requests follow them. Answers that are given, such as
references, follow a prompt at once.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import cast

from sweep.engines.base import Generation, Origin, Request
from sweep.execution.forcing import EmbeddedPrompt, KeptPrompts, forced_request
from sweep.execution.prefetch import ANSWER, FLOOR, RecalledAnswers, Step, ordered_runs, prefetch_steps
from sweep.planning.plan import EngineGroup, PlannedPoint
from sweep.planning.results import CONTROL, GIVEN, OWN, Answers, Progress, given_kinds
from sweep.points.fingerprint import PointFingerprint
from sweep.workers.base import Unbuilt, WorkerPool

Recall = Callable[[PlannedPoint], RecalledAnswers]


@dataclass(frozen=True, slots=True)
class Key:
    """Identifies a request of a group.

    Attributes:
        run: index of the run.
        prompt: index of the prompt.
        forced: for teacher forcing, whose answer is scored: `OWN`, `CONTROL` or `GIVEN`. None: an answer is generated.
        sample: index of the sample that is scored; of a given answer, that of its sequence.
    """

    run: int
    prompt: int
    forced: str | None = None
    sample: int = 0


def digest_of(answers: Answers, sample: int) -> str:
    """Return a digest of the token ids of one sample of each answer."""
    token_ids = [answer[sample].token_ids for answer in answers]
    return hashlib.sha256(repr(token_ids).encode()).hexdigest()[:16]


class RequestScheduler(Iterator[Request]):
    """Iterator over the requests of a group of points, which also receives their answers.

    Teacher-forcing requests come first, then the points in their order, each prompt with its given answers. Recalled
    answers need no request. After StopIteration there can be further requests once more answers are received. Owned by
    the main thread.

    Attributes:
        active: points that have begun and are neither finished nor failed, by index of the run.
        finished: points whose last answer is in. The caller removes them.
        failed: points that cannot be finished, with the reason and a traceback or None. The caller removes them.
        origin: the origin of received answers. Set it once the engine is open.
    """

    def __init__(self, group: EngineGroup, controls: Mapping[str, Answers], recall: Recall, pool: WorkerPool) -> None:
        self.active: dict[int, Progress] = {}
        self.finished: deque[Progress] = deque()
        self.failed: deque[tuple[Progress, str, str | None]] = deque()
        self.origin: Origin | None = None
        self._runs = list(ordered_runs(group))
        self._group, self._recall = group, recall
        self._controls = dict(controls)
        self._control_digests: dict[tuple[str, int], str] = {}  # by `control_key` and sample
        self._recalled: dict[int, RecalledAnswers] = {}
        self._ready: deque[Request] = deque()
        self._answered: set[int] = set()
        self._recalled_count = 0
        self._awaiting_control: list[int] = []
        self._pool = pool
        self._kept = KeptPrompts(pool, group.max_prompt_len)
        self._known_controls = {p.point.control_key for p in group.points if p.point.is_control} | controls.keys()
        self._steps_left = sum(len(planned.prompts) for planned, _ in self._runs)
        self._requests_left = 0  # of the current step
        self._prompt_requests = self._iterate_prompts()

    def __next__(self) -> Request:
        """Return the next request.

        Raises:
            StopIteration: there is no request at the moment.
        """
        while self.has_request():
            request = self._ready.popleft()
            progress = self.active.get(cast(Key, request.key).run)
            if progress is None:  # the point has failed since
                continue
            progress.costs.requests += 1
            progress.costs.prompt_tokens += len(request.token_ids)
            return request
        raise StopIteration

    def has_request(self) -> bool:
        """Return whether there is a request at the moment. Handles recalled answers on the way to it."""
        # Recalled answers may queue teacher-forcing requests while the next prompt's request is looked for.
        if not self._ready and (request := next(self._prompt_requests, None)) is not None:
            self._ready.append(request)
        return bool(self._ready)

    def is_exhausted(self) -> bool:
        """Return whether no request is left, apart from those that answers lead to. Does not wait for one."""
        return not (self._steps_left or self._requests_left or self._ready)

    def take_recalled_count(self) -> int:
        """Return how many answers were recalled since the last call."""
        count, self._recalled_count = self._recalled_count, 0
        return count

    def journal_key(self, key: Key) -> tuple[PointFingerprint, str, str]:
        """Return where an answer belongs in the journal: its point, the kind of answer, and the prompt id."""
        planned, is_floor = self._runs[key.run]
        if is_floor:
            kind = FLOOR
        elif key.forced is None:
            kind = ANSWER
        else:
            kind = self._journal_kind(planned, key)
        return planned.point_fingerprint, kind, planned.prompts[key.prompt].prompt.id

    def receive(self, generation: Generation) -> None:
        """Record an answer. Finishes the point or queues its teacher-forcing requests if it was the last one."""
        key = generation.key
        assert isinstance(key, Key)
        progress = self.active.get(key.run)
        if progress is None:  # the point has failed since
            return
        if self.origin is not None:
            progress.origins[self.origin] = None
        costs = progress.costs
        costs.cached_tokens += generation.cached_tokens
        if key.forced is None:
            costs.output_tokens += sum(len(completion.token_ids) for completion in generation.completions)
            progress.answers[key.prompt] = generation.completions
            if progress.answered:
                self._on_answered(key.run)
        else:
            progress.forced[key.prompt, key.forced, key.sample] = sum(generation.scored) / len(generation.scored)
            progress.awaited -= 1
            self._finish_if_complete([key.run])

    def reject(self, key: Key, reason: str, trace: str | None = None) -> None:
        """Fail the point of a request that cannot be answered. Other points are not affected.

        Args:
            key: the request.
            reason: why it cannot be answered.
            trace: a traceback, if there is one.
        """
        if (progress := self.active.pop(key.run, None)) is not None:
            if key.run in self._awaiting_control:
                self._awaiting_control.remove(key.run)
            self._recalled.pop(key.run, None)
            self._kept.drop(key.run)
            prompt_id = progress.planned.prompts[key.prompt].prompt.id
            self.failed.append((progress, f"prompt {prompt_id!r}: {reason}", trace))

    def _on_answered(self, number: int) -> None:
        if number not in self._answered:
            self._answered.add(number)
            self._finish_if_complete(self._queue_forcing(number, self.active[number]))

    def _finish_if_complete(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            progress = self.active.get(number)  # None: a prompt could not be built again
            waits = number not in self._answered or number in self._awaiting_control
            if progress is not None and not progress.awaited and not waits:
                self.finished.append(self.active.pop(number))
                self._recalled.pop(number, None)

    def _queue_forcing(self, number: int, progress: Progress) -> list[int]:
        """Queue the teacher-forcing requests that a point's answers allow. Return the points that may be complete."""
        point = progress.planned.point
        if progress.is_floor or not point.config.scoring.teacher_forced:
            return [number]
        self._force_answers(number, OWN, progress.in_order())
        affected = [number]
        if point.is_control:
            self._controls[point.control_key] = progress.in_order()
            self._control_digests = {k: v for k, v in self._control_digests.items() if k[0] != point.control_key}
            waiting = [n for n in self._awaiting_control if self._control_key(n) == point.control_key]
            affected += waiting
        elif point.control_key in self._controls:
            waiting = [number]
        else:
            waiting = []
            self._awaiting_control.append(number)
        for other in waiting:
            self._force_answers(other, CONTROL, self._controls[point.control_key])
            if other in self._awaiting_control:
                self._awaiting_control.remove(other)
        return affected

    def _control_key(self, number: int) -> str:
        return self.active[number].planned.point.control_key

    def _journal_kind(self, planned: PlannedPoint, key: Key) -> str:
        """Return the journal's kind of a forced answer. Answers of a control, or given ones, are named by content."""
        if key.forced == GIVEN:
            return given_kinds(planned, key.prompt)[key.sample]
        suffix = f" #{key.sample + 1}" if key.sample else ""
        if key.forced == OWN:
            return f"{OWN}{suffix}"
        return f"{CONTROL} {self._control_digest(planned.point.control_key, key.sample)}{suffix}"

    def _control_digest(self, control_key: str, sample: int) -> str:
        """Return the digest of one sample of a control's answers. Cached: each forced request needs it."""
        if (control_key, sample) not in self._control_digests:
            self._control_digests[control_key, sample] = digest_of(self._controls[control_key], sample)
        return self._control_digests[control_key, sample]

    def _force_answers(self, number: int, forced: str, answers: Answers) -> None:
        """Queue requests that score answers, or recall their scores.

        `OWN` answers follow the untransformed prompts, `CONTROL` answers the point's own prompts. Empty answers and
        answers that do not fit are left out.
        """
        progress = self.active[number]
        planned, recalled = progress.planned, self._recalled[number]
        samples = range(planned.point.config.sampling.n)
        kinds = [self._journal_kind(planned, Key(number, 0, forced, k)) for k in samples]
        needed: dict[int, list[int]] = {}  # samples by prompt
        for j, encoded in enumerate(planned.prompts):
            for k, (kind, completion) in enumerate(zip(kinds, answers[j], strict=True)):
                if (match := recalled.get((kind, encoded.prompt.id))) is not None:
                    progress.forced[j, forced, k] = sum(match.scored) / len(match.scored)
                elif completion.token_ids and not (planned.done and forced == CONTROL):
                    needed.setdefault(j, []).append(k)
        transformed = self._kept.take(number, planned, list(needed)) if forced == CONTROL else {}
        for j, missing in needed.items():
            prompt = _untransformed(planned, j) if forced == OWN else transformed[j]
            if isinstance(prompt, Unbuilt):
                self.reject(Key(number, j, forced), prompt.reason, prompt.traceback)
                return
            for k in missing:
                self._queue_forced_request(Key(number, j, forced, k), prompt, answers[j][k].token_ids, progress)

    def _queue_forced_request(
        self, key: Key, prompt: EmbeddedPrompt, answer: tuple[int, ...], progress: Progress
    ) -> None:
        if len(prompt[0]) + len(answer) <= self._group.max_prompt_len:
            self._ready.append(forced_request(key, prompt, answer, progress.planned.corpus.table))
            progress.awaited += 1

    def _given_requests(self, step: Step, progress: Progress, request: Request) -> list[Request]:
        """Return the requests that score a prompt's given answers. Recalled scores need none."""
        planned, j = progress.planned, step.prompt
        if progress.is_floor or not planned.given:
            return []
        recalled, prompt_id = self._recalled[step.run], planned.prompts[j].prompt.id
        requests: list[Request] = []
        for k, (kind, tokens) in enumerate(zip(given_kinds(planned, j), planned.given[j].sequences, strict=True)):
            key = Key(step.run, j, GIVEN, k)
            if (match := recalled.get((kind, prompt_id))) is not None:
                progress.forced[j, GIVEN, k] = sum(match.scored) / len(match.scored)
                continue
            length = len(request.token_ids) + len(tokens)
            if length > self._group.max_prompt_len:
                limit = self._group.max_model_len
                self.reject(key, f"its {length} tokens with a given answer do not fit engine.max_model_len={limit}")
                return []
            assert request.embeds is not None
            requests.append(forced_request(key, (request.token_ids, request.embeds), tokens, planned.corpus.table))
        progress.awaited += len(requests)  # before the first answer can arrive, which may be the last one awaited
        return requests

    def _iterate_prompts(self) -> Iterator[Request]:
        """Begin the runs in order, take their recalled answers, and yield the requests of the other prompts."""
        all_steps = prefetch_steps(self._runs, self._recall_run, self._pool, self._group.max_prompt_len)
        for number, steps in groupby(all_steps, lambda step: step.run):
            planned, is_floor = self._runs[number]
            progress = self.active[number] = Progress(planned, started=time.time(), is_floor=is_floor)
            for step in steps:
                self._steps_left -= 1
                if number not in self.active:  # rejected since
                    continue
                if (recalled := step.recalled) is not None:
                    progress.answers[step.prompt] = recalled.completions
                    progress.origins[recalled.origin] = None
                    progress.costs.reused += not recalled.is_from_this_sweep
                    self._recalled_count += not planned.done
                request = None if step.building is None else self._built_request(step, progress)
                given = [] if request is None else self._given_requests(step, progress, request)
                requests = [request, *given] if recalled is None and request is not None else given
                for self._requests_left in range(len(requests) - 1, -1, -1):
                    yield requests[-1 - self._requests_left]
            if progress.answered and number in self.active:
                self._on_answered(number)

    def _recall_run(self, number: int) -> RecalledAnswers:
        answers = self._recalled[number] = self._recall(self._runs[number][0])
        return answers

    def _built_request(self, step: Step, progress: Progress) -> Request | None:
        """Return the request of a step, or None if it could not be built, in which case the point has failed."""
        key, built = Key(step.run, step.prompt), step.wait_for_request()
        if isinstance(built, Unbuilt):
            self.reject(key, built.reason, built.traceback)
            return None
        progress.costs.build_seconds += built.seconds
        progress.costs.transform_seconds += built.transform_seconds
        progress.measured[step.prompt] = built.measured
        if progress.planned.forces_control and progress.planned.point.control_key in self._known_controls:
            self._kept.keep(step.run, step.prompt, built.request)
        return replace(built.request, key=key)


def _untransformed(planned: PlannedPoint, prompt: int) -> EmbeddedPrompt:
    table, token_ids = planned.corpus.table, planned.prompts[prompt].token_ids
    return token_ids, table.rows(token_ids).to(table.dtype)
