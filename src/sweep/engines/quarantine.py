"""Which requests an engine is given again after it died, and which of them it died of.

What was in flight at one death is repeated with everything else, for a death may have many causes.  What was in flight
at two is suspect and is run apart from the others, fewer at a time after each further death, down to one.  An engine
that can name the requests it dies of saves that search.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto

from sweep.engines.base import Request

# At each further death the suspects are those that were in flight, of which only this part is run at a time.  With
# halves it would take three times as many deaths, each of which costs the start of an engine; with more parts than
# eight the batches between the deaths would become too small to be fast.
PARTS = 8
DEATHS_OF_A_SUSPECT = 2
DEATHS_OF_A_KILLER = 2  # alone, or named by the engine


class Finding(Enum):
    """What a death told."""

    NOTHING = auto()
    SUSPECTS = auto()
    KILLERS = auto()


@dataclass(slots=True)
class _Group:
    """Requests that are run together, apart from others: at most `at_once` at a time, if that is given."""

    waiting: deque[Request]
    at_once: int | None = None


class Triage(Iterator[Request]):
    """The requests as an engine is to draw them, innermost suspects first, over any number of engines' lives.

    Attributes:
        condemned: the requests that killed the engine twice, until they are taken.
    """

    def __init__(self, requests: Iterable[Request], wanted: Callable[[Hashable], bool]) -> None:
        self.condemned: deque[Request] = deque()
        self._stream, self._wanted = iter(requests), wanted
        self._groups = [_Group(deque())]
        self._in_flight: dict[Hashable, Request] = {}
        self._deaths: Counter[Hashable] = Counter()
        self._guilt: Counter[Hashable] = Counter()

    def __next__(self) -> Request:
        """Return the next request for the engine that is running; StopIteration: there is none for now."""
        group = self._groups[-1]
        if group.at_once is not None and len(self._in_flight) >= group.at_once:
            raise StopIteration
        request = self._draw(group)
        while not self._wanted(request.key):
            self._forget(request.key)
            request = self._draw(group)
        self._in_flight[request.key] = request
        return request

    def pending(self) -> bool:
        """Whether an engine is needed; to be asked when nothing is in flight."""
        assert not self._in_flight, "the engine left requests without an answer"
        while True:
            try:
                next(self)
            except StopIteration:
                if len(self._groups) == 1:
                    return False
                self._groups.pop()
                continue
            self._run_again(self._end_flight())
            return True

    def describe(self) -> str:
        """Say what is to be run next, after a death."""
        group = next((group for group in reversed(self._groups) if group.waiting), self._groups[0])
        if group.at_once is None:
            return f"requests to repeat: {len(group.waiting)}"
        return f"requests suspected, and run apart by {group.at_once}: {len(group.waiting)}"

    def answered(self, key: Hashable) -> Request:
        """Take note that a request is done with, and return it."""
        self._forget(key)
        return self._in_flight.pop(key)

    def repeat(self) -> int:
        """Have everything that was in flight run again; return how much that is."""
        flight = self._end_flight()
        self._run_again(flight)
        return len(flight)

    def died(self, named: Collection[Hashable]) -> Finding:
        """Have what was in flight run again, suspects apart from the others, except for what is condemned.

        Args:
            named: the keys of requests that the engine itself says it died of.
        """
        flight = self._end_flight()
        if not flight:
            return Finding.NOTHING
        keys = {request.key for request in flight if request.key in named or len(flight) == 1}
        if keys:
            self._run_again([request for request in flight if request.key not in keys])
            return self._blame([request for request in flight if request.key in keys])
        if len(self._groups) > 1:
            self._set_apart(flight)
            return Finding.SUSPECTS
        self._deaths.update(request.key for request in flight)
        suspects = [request for request in flight if self._deaths[request.key] >= DEATHS_OF_A_SUSPECT]
        self._run_again([request for request in flight if self._deaths[request.key] < DEATHS_OF_A_SUSPECT])
        if not suspects:
            return Finding.NOTHING
        self._set_apart(suspects)
        return Finding.SUSPECTS

    def _draw(self, group: _Group) -> Request:
        if group.waiting:
            return group.waiting.popleft()
        if group is not self._groups[0]:
            raise StopIteration
        return next(self._stream)

    def _blame(self, guilty: list[Request]) -> Finding:
        self._guilt.update(request.key for request in guilty)
        killers = [request for request in guilty if self._guilt[request.key] >= DEATHS_OF_A_KILLER]
        accused = [request for request in guilty if self._guilt[request.key] < DEATHS_OF_A_KILLER]
        for request in killers:
            self._forget(request.key)
        self.condemned += killers
        if accused:  # together: whichever are named again need not be alone
            self._groups.append(_Group(deque(accused), len(accused)))
        return Finding.KILLERS if killers else Finding.SUSPECTS

    def _set_apart(self, suspects: list[Request]) -> None:
        self._groups.append(_Group(deque(suspects), -(-len(suspects) // PARTS)))

    def _run_again(self, requests: list[Request]) -> None:
        self._groups[-1].waiting.extendleft(reversed(requests))

    def _end_flight(self) -> list[Request]:
        flight = list(self._in_flight.values())
        self._in_flight.clear()
        return flight

    def _forget(self, key: Hashable) -> None:
        self._deaths.pop(key, None)
        self._guilt.pop(key, None)
