"""An object in a process of its own, whose methods are called from this one.

Python's own executors would do, but for two things: their processes import the caller's main module anew, and they
outlive a caller that is killed.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from enum import Enum
from itertools import count
from typing import Any, Protocol

from sweep import frames
from sweep.frames import Frame
from sweep.redaction import Redact

log = logging.getLogger(__name__)

READY = 0  # the number of what a process says when it has made its object; those of calls are larger
END_SECONDS = 5.0  # in which a process that nobody needs any more may finish what it is in the middle of
ASKED_TO_END = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)  # which groups of processes are sent


class Loss(Enum):
    """What becomes of a call to which there will be no answer."""

    UNSENT = "it could not be sent"
    STILLBORN = "the process died before it had its object"
    WAITING = "the process died while it was at work on another one"
    AT_WORK = "the process died while it was at work on it"


class Served(Protocol):
    """What may live in a process of its own."""

    def left_alone(self) -> float:
        """Take note, on another thread, that nobody calls any more; return the seconds that the current call may have.

        What was called before is called still, in that time.  An object that is still being made is not told.
        """


class Remote:
    """One object in one process.  A process that dies fails the calls that it was given; the next call starts another.

    Calls are numbered and answers are read on a thread of their own, so that an interrupt in the middle of a call
    leaves the others as they are.
    """

    def __init__(
        self,
        make: Callable[..., Served],
        given: Callable[[], tuple[Any, ...]],
        lost: Callable[[str, Loss], Exception],
        *,
        nice: int = 0,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Start the process.

        Args:
            make: makes the object there; a class or function that can be imported.
            given: returns what it is made of, whenever a process is started.
            lost: makes the error of a call to which there will be no answer, from why and what became of it.
            nice: how much less urgent it is than this process, as of nice(1).
            variables: of the environment, beside this process's own.
        """
        self._make, self._given, self._lost = make, given, lost
        self._nice = nice
        self._environment = os.environ | dict(variables or {})
        self._lock = threading.Lock()  # of what follows
        self._numbers = count(READY + 1)
        self._used = self._ended = False
        self._start()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process, which may have ended."""
        return self._process

    @property
    def pending(self) -> int:
        """How many calls have no answer yet."""
        return len(self._asked)

    def ask(self, method: str, *arguments: Any) -> Future[Any]:
        """Call a method; to another process if the one before is gone.

        Raises:
            Exception: as `lost` makes it; the call cannot be sent.
        """
        try:
            call = frames.pack((method, arguments))
            with self._lock:
                if self._ended:
                    raise RuntimeError("the sweep has ended")
                if not self._gone:
                    with suppress(OSError):  # it has just died, and has not heard all of it
                        return self._send(call)
                self._start()
                return self._send(call)
        except Exception as error:  # what cannot be pickled, no memory for a process
            raise self._lost(f"cannot be reached: {error}", Loss.UNSENT) from error

    def end(self, seconds: float = END_SECONDS) -> None:
        """End the process, which may have so long for what it is in the middle of; it takes no more."""
        with self._lock:
            self._ended = True
            self._hang_up()
        if not self._used:
            self._process.kill()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:  # it ends by itself, soon
            log.info("The process of a %s is still at it.", self._make.__name__)

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            code = f"import sys; sys.path[:] = {sys.path!r}; from sweep.remote import serve; "
            code += f"serve({theirs.fileno()}, {self._nice})"
            name = f"{self._make.__module__}.{self._make.__qualname__}"  # for those who list processes
            self._process = subprocess.Popen(
                [sys.executable, "-c", code, name],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=self._environment,
            )
        self._socket = ours
        frames.send(ours, 0, frames.pack((self._make, self._given())))
        self._gone, self._asked = False, dict[int, Future[Any]]()
        arguments = ours, self._asked, self._process
        threading.Thread(target=self._read, args=arguments, name="remote answers", daemon=True).start()

    def _send(self, call: Frame) -> Future[Any]:
        self._used = True
        number, asked = next(self._numbers), Future[Any]()
        self._asked[number] = asked
        try:
            frames.send(self._socket, number, call)
        except BaseException:  # also an interrupt, which may have come in the middle of it
            self._asked.pop(number, None)
            self._hang_up()
            raise
        return asked

    def _read(self, ours: socket.socket, waiting: dict[int, Future[Any]], process: subprocess.Popen[bytes]) -> None:
        """Give answers to those who wait for them, as long as there are any."""
        ready = False
        try:
            while True:
                number, answer = frames.receive(ours)
                if number == READY:
                    ready = True
                    continue
                error, value = frames.unpack(answer)
                asked = waiting.pop(number)
                if error is not None:
                    asked.set_exception(error)
                else:
                    asked.set_result(value)
                del answer, value, asked  # which may be large, and the next one may be long in coming
        except Exception as error:
            log.info("The process of a %s says no more.", self._make.__name__, exc_info=not isinstance(error, EOFError))
        with self._lock:
            if ours is self._socket:
                self._hang_up()
        ours.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
        reason = f"has ended (exit code {process.returncode})"
        for place, asked in enumerate(waiting.values()):
            loss = Loss.STILLBORN if not ready else Loss.AT_WORK if place == 0 else Loss.WAITING
            asked.set_exception(self._lost(reason, loss))

    def _hang_up(self) -> None:
        """Have both sides notice that nothing more is said here."""
        self._gone = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)


def serve(number: int, nice: int) -> None:
    """Be the process: answer calls until whoever makes them has closed the socket of that number, or is gone."""
    for asked in ASKED_TO_END:  # the sweep's own process is too, and wants its run ended
        signal.signal(asked, signal.SIG_IGN)
    os.nice(nice)
    handler = logging.StreamHandler()
    handler.addFilter(Redact())
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", handlers=[handler]
    )
    caller = socket.socket(fileno=number)
    calls: queue.SimpleQueue[tuple[int, Frame] | None] = queue.SimpleQueue()
    made: list[Served] = []
    _, first = frames.receive(caller)
    threading.Thread(target=_take, args=(caller, calls, made), daemon=True).start()
    make, given = frames.unpack(first)
    made.append(make(*given))
    with suppress(OSError):
        frames.send(caller, READY, [])
    while (call := calls.get()) is not None:
        answer = _answer(made[0], call[1])
        with suppress(OSError):  # nobody waits for it
            frames.send(caller, call[0], answer)
        del call, answer
    os._exit(0)  # taking libraries to pieces takes a second, for which the sweep would wait


def _take(caller: socket.socket, calls: queue.SimpleQueue[tuple[int, Frame] | None], made: list[Served]) -> None:
    """Hand calls on; once there will be none any more, end the process whatever it is in the middle of."""
    with suppress(Exception):
        while True:
            calls.put(frames.receive(caller))
    seconds = made[0].left_alone() if made else END_SECONDS
    calls.put(None)
    time.sleep(seconds)
    os._exit(1)


def _answer(served: Served, call: Frame) -> Frame:
    """Return what a call comes to: an error or a value."""
    try:
        method, arguments = frames.unpack(call)
        return frames.pack((None, getattr(served, method)(*arguments)))
    except Exception as error:
        return frames.pack((_sent(error), None))


def _sent(error: Exception) -> Exception:
    """Return an error as it gets through the socket: with its traceback in a note."""
    trace = "".join(traceback.format_exception(error))
    try:
        told = frames.unpack(frames.pack(error))
    except Exception:
        told = RuntimeError(f"{type(error).__name__}: {error}")
    told.add_note(trace)
    return told  # type: ignore[no-any-return]
