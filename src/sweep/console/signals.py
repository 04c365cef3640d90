"""Ending promptly when asked to, whatever the process is in the middle of."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType

PATIENCE = 4.5  # seconds until a process that has been asked to end is ended
# SIGUSR2 is what schedulers warn of preemption with; to its sender it is the same request.
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR2: 143, signal.SIGHUP: 129}

_asked: list[int] = []


class Interrupted(SystemExit):
    """The user or the scheduler wants an end."""


def install() -> None:
    """Have the signals end this process: with its things in order if that is soon, else without.

    The first one raises `Interrupted` in the main thread.  A second SIGINT ends the process at once.
    """
    for number in CODES:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as `nohup` has it
            signal.signal(number, _handle)


def check() -> None:
    """Raise `Interrupted` if an end was asked for: libraries may have swallowed the one that said so.

    To be called in the main thread, between one thing and the next.
    """
    if _asked:
        raise Interrupted(CODES[signal.Signals(_asked[0])])


def leave(code: int) -> None:
    """End the process without taking it to pieces first, which takes longer than an interrupted user waits."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _handle(number: int, frame: FrameType | None) -> None:
    code = CODES[signal.Signals(number)]
    if _asked:
        if number == signal.SIGINT:
            leave(130)
        return  # schedulers repeat themselves
    _asked.append(number)
    # A thread, as the main one may be busy in compiled code, where no exception reaches it.
    threading.Thread(target=_end, args=(code,), name="ending", daemon=True).start()
    raise Interrupted(code)


def _end(code: int) -> None:
    time.sleep(PATIENCE)
    leave(code)
