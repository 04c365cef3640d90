"""Quarantine: find the requests that crash an engine, and repeat all others.

Requests in flight during one crash are repeated with all others, because a crash can have many causes. Requests in
flight during two crashes are suspects and run separately. After each further crash fewer suspects run at a time, down
to one. No search is needed if the engine names the requests that crashed it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto

from sweep.engines.base import Request

# After each further crash, 1/PARTS of the suspects in flight run at a time. Halving would take three times as many
# crashes, and each costs the start of an engine. With more than eight parts the batches become too small to be fast.
PARTS = 8
CRASHES_OF_A_SUSPECT = 2
CRASHES_OF_A_CULPRIT = 2  # alone in flight, or named by the engine


class Finding(Enum):
    """Finding from a crash: unknown cause, suspects, or requests that crashed the engine twice."""

    UNEXPLAINED = auto()
    SUSPECTS = auto()
    CULPRITS = auto()


@dataclass(slots=True)
class _Group:
    """Requests that run separately from others, at most `concurrency` at a time; None: no limit.

    Owned by its `Quarantine`.
    """

    waiting: deque[Request]
    concurrency: int | None = None


class Quarantine(Iterator[Request]):
    """Iterator over the requests that an engine draws, across restarts. Suspects come first.

    Owned by the supervisor that feeds the engine, for one call of `generate`.

    Attributes:
        failed: requests that crashed the engine twice, until the supervisor reports them.
    """

    def __init__(self, requests: Iterable[Request], still_needed: Callable[[Hashable], bool]) -> None:
        self.failed: deque[Request] = deque()
        self._stream, self._still_needed = iter(requests), still_needed
        self._groups = [_Group(deque())]
        self._in_flight: dict[Hashable, Request] = {}
        self._crashes: Counter[Hashable] = Counter()
        self._blamed: Counter[Hashable] = Counter()

    def __next__(self) -> Request:
        """Return the next request for the running engine.

        Raises:
            StopIteration: there is none for now; more may follow.
        """
        group = self._groups[-1]
        if group.concurrency is not None and len(self._in_flight) >= group.concurrency:
            raise StopIteration
        request = self._draw(group)
        while not self._still_needed(request.key):
            self._forget(request.key)
            request = self._draw(group)
        self._in_flight[request.key] = request
        return request

    def pending(self) -> bool:
        """Return whether requests are left. Call it only when none are in flight."""
        assert not self._in_flight, "the engine left requests unanswered"
        while True:
            try:
                next(self)
            except StopIteration:
                if len(self._groups) == 1:
                    return False
                self._groups.pop()
                continue
            self._requeue(self._take_in_flight())
            return True

    def describe(self) -> str:
        """Return a phrase that says what runs next after a crash."""
        group = next((group for group in reversed(self._groups) if group.waiting), self._groups[0])
        if group.concurrency is None:
            return f"requests to repeat: {len(group.waiting)}"
        return f"suspect requests, run {group.concurrency} at a time: {len(group.waiting)}"

    def mark_answered(self, key: Hashable) -> Request:
        """Remove a finished request from those in flight and return it."""
        self._forget(key)
        return self._in_flight.pop(key)

    def repeat_in_flight(self) -> int:
        """Queue all requests in flight again and return their number."""
        requests = self._take_in_flight()
        self._requeue(requests)
        return len(requests)

    def engine_crashed(self, culprits: Collection[Hashable]) -> Finding:
        """Queue the requests in flight again, suspects separately. Move those that crashed it twice to `failed`.

        Args:
            culprits: keys of the requests that the engine named as the cause of the crash.
        """
        in_flight = self._take_in_flight()
        if not in_flight:
            return Finding.UNEXPLAINED
        keys = {request.key for request in in_flight if request.key in culprits or len(in_flight) == 1}
        if keys:
            self._requeue([request for request in in_flight if request.key not in keys])
            return self._blame([request for request in in_flight if request.key in keys])
        if len(self._groups) > 1:
            self._isolate(in_flight)
            return Finding.SUSPECTS
        self._crashes.update(request.key for request in in_flight)
        suspects = [request for request in in_flight if self._crashes[request.key] >= CRASHES_OF_A_SUSPECT]
        self._requeue([request for request in in_flight if self._crashes[request.key] < CRASHES_OF_A_SUSPECT])
        if not suspects:
            return Finding.UNEXPLAINED
        self._isolate(suspects)
        return Finding.SUSPECTS

    def _draw(self, group: _Group) -> Request:
        if group.waiting:
            return group.waiting.popleft()
        if group is not self._groups[0]:
            raise StopIteration
        return next(self._stream)

    def _blame(self, blamed: list[Request]) -> Finding:
        self._blamed.update(request.key for request in blamed)
        culprits = [request for request in blamed if self._blamed[request.key] >= CRASHES_OF_A_CULPRIT]
        suspects = [request for request in blamed if self._blamed[request.key] < CRASHES_OF_A_CULPRIT]
        for request in culprits:
            self._forget(request.key)
        self.failed += culprits
        if suspects:  # together, because the engine can name them again
            self._groups.append(_Group(deque(suspects), len(suspects)))
        return Finding.CULPRITS if culprits else Finding.SUSPECTS

    def _isolate(self, suspects: list[Request]) -> None:
        self._groups.append(_Group(deque(suspects), -(-len(suspects) // PARTS)))

    def _requeue(self, requests: list[Request]) -> None:
        self._groups[-1].waiting.extendleft(reversed(requests))

    def _take_in_flight(self) -> list[Request]:
        requests = list(self._in_flight.values())
        self._in_flight.clear()
        return requests

    def _forget(self, key: Hashable) -> None:
        self._crashes.pop(key, None)
        self._blamed.pop(key, None)
