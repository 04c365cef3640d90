"""Time and memory limits for code that comes with a model, such as chat templates."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SECONDS = 10.0
GROWTH = 2**30  # bytes

_DATA_COLUMN = 5  # of /proc/self/statm: pages of data and stack


class TooLong(BaseException):
    """Raised in the limited thread at its deadline. Not an `Exception`, so that the limited code does not catch it."""


@contextmanager
def bounded(seconds: float = SECONDS, growth: int = GROWTH) -> Iterator[None]:
    """Stop a block that takes too long or needs too much memory.

    Time is checked between Python instructions, so a single call of a C function is not interrupted. Memory is limited
    for the whole process while the block runs, on Linux only. Only one block runs at a time; other threads wait.

    Args:
        seconds: time limit of the block.
        growth: number of bytes by which the data of this process may grow.

    Raises:
        TimeoutError: the block exceeded the time limit.
        MemoryError: the block exceeded the memory limit.
    """
    with _lock, _memory_limit(growth):
        stopped = False
        try:
            _watchdog.begin(seconds)
            try:
                yield
            except TooLong:
                stopped = True
            if _watchdog.end() and not stopped:
                _await_exception()
        except TooLong:  # raised while the block was ending
            stopped = True
        except BaseException:
            stopped = _stop_watchdog()
            if not stopped:
                raise
    if stopped:
        raise TimeoutError(f"it took longer than {seconds:g} s")


def _stop_watchdog() -> bool:
    """Stop the watchdog after an error; return whether the deadline had passed as well."""
    try:
        if _watchdog.end():
            _await_exception()
    except TooLong:
        return True
    return False


def _await_exception() -> None:
    """Wait for an exception that was sent to this thread to arrive."""
    for _ in range(100):
        time.sleep(0.001)


@contextmanager
def _memory_limit(growth: int) -> Iterator[None]:
    if sys.platform != "linux":
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limits = [limit for limit in (soft, hard, _data_bytes() + growth) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _data_bytes() -> int:
    import resource

    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[_DATA_COLUMN]) * resource.getpagesize()


class _Watchdog:
    """Daemon thread that raises `TooLong` in the watched thread at its deadline.

    One per process, started by the first `begin`. Its state is guarded by a condition variable.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._deadline: float | None = None
        self._target = 0
        self._fired = False
        self._thread: threading.Thread | None = None

    def begin(self, seconds: float) -> None:
        """Start to watch the calling thread."""
        with self._changed:
            self._target, self._deadline, self._fired = threading.get_ident(), time.monotonic() + seconds, False
            if self._thread is None or not self._thread.is_alive():  # threads do not survive a fork
                self._thread = threading.Thread(target=self._run, name="time-limit", daemon=True)
                self._thread.start()
            self._changed.notify()

    def end(self) -> bool:
        """Stop watching; return whether the exception was sent."""
        with self._changed:
            self._deadline = None
            return self._fired

    def _run(self) -> None:
        with self._changed:
            while True:
                left = None if self._deadline is None else self._deadline - time.monotonic()
                if left is None or left > 0:
                    self._changed.wait(left)
                    continue
                self._deadline, self._fired = None, True
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._target), ctypes.py_object(TooLong))


_lock = threading.Lock()
_watchdog = _Watchdog()
