"""Signal handling: end the process promptly on SIGINT, SIGTERM, SIGUSR2 and SIGHUP."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType

PATIENCE = 4.5  # seconds that a process has for its own shutdown after the first signal
# Schedulers announce preemption with SIGUSR2, which ends the process like SIGTERM.
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR2: 143, signal.SIGHUP: 129}

_received: list[int] = []


class Interrupted(SystemExit):
    """The user or a scheduler has asked the process to end."""


def install() -> None:
    """Install the handlers. Call this in the main thread.

    The first signal raises `Interrupted` in the main thread. The process ends after `PATIENCE` seconds at the latest,
    or at once on a second SIGINT.
    """
    for number in CODES:
        if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup` ignores SIGHUP
            signal.signal(number, _handle)


def check() -> None:
    """Raise `Interrupted` if a signal was received, because a library may have swallowed the first exception.

    Call this in the main thread between steps of work.
    """
    if _received:
        raise Interrupted(CODES[signal.Signals(_received[0])])


def leave(code: int) -> None:
    """End the process at once, without the interpreter's shutdown, which would take seconds."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _handle(number: int, frame: FrameType | None) -> None:
    code = CODES[signal.Signals(number)]
    if _received:
        if number == signal.SIGINT:
            leave(130)
        return  # schedulers repeat their signals
    _received.append(number)
    # A thread, because the main thread may be in compiled code, where no exception reaches it.
    threading.Thread(target=_leave_later, args=(code,), name="ending", daemon=True).start()
    raise Interrupted(code)


def _leave_later(code: int) -> None:
    time.sleep(PATIENCE)
    leave(code)
