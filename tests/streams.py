"""Requests that come in the course of things."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from sweep.engines.base import Request


class Stream(Iterator[Request]):
    """Gives what waits; may run out and have more later."""

    def __init__(self, requests: Iterable[Request]) -> None:
        self.waiting = deque(requests)

    def __next__(self) -> Request:
        if not self.waiting:
            raise StopIteration
        return self.waiting.popleft()
