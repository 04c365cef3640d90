"""A thread that does one thing after the other, so that whoever hands them over need not wait."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class _End:
    """The last item."""


class Worker(Generic[T]):
    """Does `do(item)` for each item put, in order, on a thread of its own that does not outlive the process.

    What `do` raises ends the worker, and is raised at the next call of a method.
    """

    def __init__(self, name: str, do: Callable[[T], None], limit: int = 0) -> None:
        """Start; at most `limit` items wait, then `put` does; 0: any number."""
        self._do = do
        self._items: queue.Queue[T | _End] = queue.Queue(limit)
        self._error: BaseException | None = None
        self._abandoned, self._idle = threading.Event(), threading.Event()
        self._idle.set()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def put(self, item: T) -> None:
        """Hand an item over."""
        while True:
            self._raise()
            try:
                return self._items.put(item, timeout=0.5)
            except queue.Full:
                continue

    def drain(self) -> None:
        """Wait until all items are done."""
        with self._items.all_tasks_done:
            while self._items.unfinished_tasks and self._error is None and not self._abandoned.is_set():
                self._items.all_tasks_done.wait(0.5)
        self._raise()

    def close(self) -> None:
        """Wait until all items are done, and end the thread; it takes no more.  Closing twice is allowed."""
        self.drain()
        if self._thread.is_alive():
            self._items.put(_End())
            self._thread.join()

    def abandon(self, seconds: float) -> None:
        """Leave what waits undone, and wait so long for what is being done."""
        self._abandoned.set()
        self._idle.wait(seconds)

    @property
    def waiting(self) -> int:
        """How many items wait."""
        return self._items.qsize()

    def _work(self) -> None:
        while True:
            item = self._items.get()
            if isinstance(item, _End):
                self._items.task_done()
                return
            try:
                if self._error is None and not self._abandoned.is_set():
                    self._idle.clear()
                    self._do(item)
            except BaseException as error:
                self._error = error
            finally:
                self._idle.set()
                self._items.task_done()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
