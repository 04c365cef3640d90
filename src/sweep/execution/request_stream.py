"""Request stream: the requests of engine groups as one stream.

A group begins while the last answers of the one before are generated. The engine's batch would otherwise empty between
them.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterator
from dataclasses import dataclass, field, replace

from sweep.console.terminal import Advance
from sweep.engines.base import Failure, Generation, Request
from sweep.errors import SweepError
from sweep.execution.scheduler import Key, RequestScheduler
from sweep.publishing.scoring_stage import ScoringStage
from sweep.storage.journal_writer import JournalWriter

log = logging.getLogger(__name__)

CONTROL_UNFINISHED = "its control was not finished"


@dataclass(eq=False, slots=True, kw_only=True)
class GroupRun:
    """A group of points while the engine answers its requests. Owned by the main thread.

    Attributes:
        scheduler: the group's requests.
        journal: receives each answer first.
        scoring: receives finished and failed points.
        external_controls: `control_key` of the controls that another process generates.
        advance: called with the number of tokens of each answer.
        on_end: called once, when the group has ended.
        is_submitted: whether the engine has drawn all requests that there are at the moment.
        ended: set once all points are finished or failed, or `error` is set. Other threads may wait for it.
        error: what ended the group early.
    """

    scheduler: RequestScheduler
    journal: JournalWriter
    scoring: ScoringStage
    external_controls: Collection[str]
    advance: Advance
    on_end: Callable[[], object]
    is_submitted: bool = False
    ended: threading.Event = field(default_factory=threading.Event)
    error: Exception | None = None
    _in_flight: Counter[int] = field(default_factory=Counter)  # requests by index of the run

    def next_request(self) -> Request:
        """Return the next request.

        Raises:
            StopIteration: there is no request at the moment, or `error` is set: the journal cannot be read.
        """
        try:
            request = next(self.scheduler)
        except StopIteration:
            self.is_submitted = True
            raise
        except SweepError as error:  # not raised in the engine's generator, which answers other groups, too
            self.error, self.is_submitted = error, True
            raise StopIteration from error
        assert isinstance(request.key, Key)
        self._in_flight[request.key.run] += 1
        self.is_submitted = self.scheduler.is_exhausted()
        return request

    def receive(self, answer: Generation | Failure) -> int:
        """Record an answer. Return the number of its tokens."""
        key, tokens = answer.key, 0
        assert isinstance(key, Key)
        if not (left := self._in_flight[key.run] - 1):
            del self._in_flight[key.run]
        else:
            self._in_flight[key.run] = left
        if isinstance(answer, Failure):
            self.scheduler.reject(key, answer.reason)
        else:
            tokens = sum(len(completion.token_ids) for completion in answer.completions)
            self.journal.append(*self.scheduler.journal_key(key), answer)
            self.scheduler.receive(answer)
        if key.forced is None:  # the total shown to the user excludes teacher forcing
            self.advance(tokens)
        return tokens

    def hand_over(self) -> int:
        """Count recalled answers, and pass finished and failed points to scoring.

        Returns:
            How many points have failed so far.
        """
        scheduler, scoring = self.scheduler, self.scoring
        for _ in range(scheduler.take_recalled_count()):
            self.advance(0)
        while scheduler.finished:
            progress = scheduler.finished.popleft()
            waits = progress.planned.point.control_key in self.external_controls
            (scoring.defer if waits else scoring.complete)(progress)
        while scheduler.failed:
            scoring.fail(*scheduler.failed.popleft())
        return scoring.failed

    def is_answered(self) -> bool:
        """Return whether no answer is missing. Points that have failed need none."""
        # An answer may have led to further requests since the last one was submitted.
        if not self.is_submitted or self.scheduler.has_request():
            return False
        return not any(run in self.scheduler.active for run in self._in_flight)

    def end(self, error: Exception | None = None) -> None:
        """End the group. Points that still wait for their control fail, but not after an error.

        Does not raise: an exception becomes `error`, unless there is one already.
        """
        try:
            self.journal.close()
            if error is None:
                for progress in self.scheduler.active.values():
                    if progress.planned.point.control_key not in self.external_controls:
                        self.scoring.fail(progress, CONTROL_UNFINISHED)
                self.scoring.end_waiting(CONTROL_UNFINISHED)
        except Exception as problem:
            error = error or problem
        try:
            self.on_end()
        except Exception as problem:
            error = error or problem
        self.error = error
        self.ended.set()

    def fail(self, error: Exception) -> None:
        """End the group after the engine failed permanently: complete points are scored, begun points fail."""
        try:
            self.hand_over()
            for progress in self.scheduler.active.values():
                if not progress.is_floor:
                    self.scoring.fail(progress, str(error))
            self.scoring.end_waiting(CONTROL_UNFINISHED, for_floors=False)
        except Exception:  # the engine's error is the one to report
            log.exception("Points cannot be handed to scoring.")
        self.end(error)


class RequestStream(Iterator[Request]):
    """Iterator over the requests of all groups that have not ended, the oldest group first. Owned by the main thread.

    A request's key is `(number of its group, key within the group)`.
    """

    def __init__(self) -> None:
        self._runs: dict[int, GroupRun] = {}
        self._count = 0

    @property
    def runs(self) -> list[GroupRun]:
        """The groups that have not ended."""
        return list(self._runs.values())

    def add(self, run: GroupRun) -> None:
        """Add a group."""
        self._runs[self._count] = run
        self._count += 1

    def remove(self, run: GroupRun) -> None:
        """Remove a group. Its requests are not needed any more."""
        self._runs = {number: other for number, other in self._runs.items() if other is not run}

    def __next__(self) -> Request:
        """Return the next request.

        Raises:
            StopIteration: there is no request at the moment.
        """
        for number, run in self._runs.items():
            try:
                request = run.next_request()
            except StopIteration:
                continue
            return replace(request, key=(number, request.key))
        raise StopIteration

    def needs(self, key: Hashable) -> bool:
        """Return whether a request still needs an answer."""
        number, inner = _split(key)
        run = self._runs.get(number)
        return run is not None and inner.run in run.scheduler.active

    def deliver(self, answer: Generation | Failure) -> tuple[GroupRun, Generation | Failure] | None:
        """Return an answer with its group, or None if the group has ended."""
        number, inner = _split(answer.key)
        run = self._runs.get(number)
        return None if run is None else (run, replace(answer, key=inner))


def _split(key: Hashable) -> tuple[int, Key]:
    assert isinstance(key, tuple)
    number, inner = key
    assert isinstance(inner, Key)
    return number, inner
