"""Background thread that processes queued items in order."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class _End:
    """Marker that ends the thread."""


class BackgroundThread(Generic[T]):
    """Calls `process(item)` for each queued item, in order, on a daemon thread.

    Owned by the thread that creates it. Other threads may call `put`. An exception of `process` stops processing; the
    next method call raises it.
    """

    def __init__(self, name: str, process: Callable[[T], None], limit: int = 0) -> None:
        """Start the thread.

        Args:
            name: name of the thread.
            process: called with each item.
            limit: number of items that can wait before `put` blocks; 0: unlimited.
        """
        self._process = process
        self._items: queue.Queue[T | _End] = queue.Queue(limit)
        self._error: BaseException | None = None
        self._abandoned, self._idle = threading.Event(), threading.Event()
        self._idle.set()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, item: T) -> None:
        """Queue an item; block while the queue is full."""
        while True:
            self._raise_error()
            try:
                return self._items.put(item, timeout=0.5)
            except queue.Full:
                continue

    def drain(self) -> None:
        """Wait until all items are processed."""
        with self._items.all_tasks_done:
            while self._items.unfinished_tasks and self._error is None and not self._abandoned.is_set():
                self._items.all_tasks_done.wait(0.5)
        self._raise_error()

    def close(self) -> None:
        """Wait until all items are processed, then end the thread. Closing twice is allowed."""
        self.drain()
        if self._thread.is_alive():
            self._items.put(_End())
            self._thread.join()

    def abandon(self, seconds: float) -> None:
        """Discard waiting items, and wait up to `seconds` for the current one."""
        self._abandoned.set()
        self._idle.wait(seconds)

    def _run(self) -> None:
        while True:
            item = self._items.get()
            if isinstance(item, _End):
                self._items.task_done()
                return
            # Before the check of `_abandoned`; otherwise `abandon` could return while an item is about to start.
            self._idle.clear()
            try:
                if self._error is None and not self._abandoned.is_set():
                    self._process(item)
            except BaseException as error:
                self._error = error
            finally:
                self._idle.set()
                self._items.task_done()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error
