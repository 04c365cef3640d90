"""Child process: one object in a separate process, whose methods are called from this process.

Python's executors are not used for two reasons: their processes import the caller's main module again, and they outlive
a caller that is killed.
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

from sweep.processes import framing
from sweep.processes.framing import Frame
from sweep.util.redaction import Redact

log = logging.getLogger(__name__)

READY = 0  # message id of the child's ready signal; call ids start at 1
END_SECONDS = 5.0  # for a child process to finish its current call before it ends
IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2)  # sent to whole process groups


class CallLoss(Enum):
    """State of a call when it was lost, that is, when it can no longer be answered."""

    NOT_SENT = "it could not be sent"
    START_FAILED = "the process died before it had created its object"
    QUEUED = "the process died while it executed another call"
    RUNNING = "the process died while it executed this call"


class Served(Protocol):
    """Interface of an object that lives in a child process."""

    def on_caller_gone(self) -> float:
        """Return the seconds that remain for calls received so far, after the caller closed the connection or died.

        Called on another thread than the other methods, and only if the object has been created.
        """


class ChildProcess:
    """One object in one child process. If the process dies, its calls fail and the next call starts another process.

    Methods may be called from any thread. Calls are numbered and a daemon thread reads the answers, so an interrupt
    during one call does not affect the others. The child process ends when this process ends.
    """

    def __init__(
        self,
        factory: Callable[..., Served],
        factory_arguments: Callable[[], tuple[Any, ...]],
        call_lost: Callable[[str, CallLoss], Exception],
        *,
        nice: int = 0,
        variables: Mapping[str, str] | None = None,
    ) -> None:
        """Start the process.

        Args:
            factory: class or function that creates the object in the child; it must be importable.
            factory_arguments: returns the arguments for the factory; called each time a process is started.
            call_lost: returns the exception for a lost call, given the reason and the state of the call.
            nice: increment of the process's niceness, see nice(1).
            variables: additional environment variables.
        """
        self._factory, self._factory_arguments, self._call_lost = factory, factory_arguments, call_lost
        self._nice = nice
        self._environment = os.environ | dict(variables or {})
        self._lock = threading.Lock()  # guards the attributes below
        self._numbers = count(READY + 1)
        self._used = self._closed = False
        self._start()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process, which may have ended."""
        return self._process

    @property
    def pending(self) -> int:
        """Number of calls without an answer."""
        return len(self._pending)

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        """Call a method of the object; start another process if the last one has ended.

        Raises:
            Exception: the call cannot be sent; created by `call_lost`.
        """
        try:
            message = framing.pack((method, arguments))
            with self._lock:
                if self._closed:
                    raise RuntimeError("the sweep has ended")
                if not self._disconnected:
                    with suppress(OSError):  # the process died and did not receive the whole message
                        return self._send(message)
                self._start()
                return self._send(message)
        except Exception as error:  # arguments that cannot be pickled, or no memory for a process
            raise self._call_lost(f"cannot be reached: {error}", CallLoss.NOT_SENT) from error

    def close(self, seconds: float = END_SECONDS) -> None:
        """End the process; wait up to `seconds` for it. Later calls fail."""
        with self._lock:
            self._closed = True
            self._disconnect()
        if not self._used:
            self._process.kill()
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:  # it will end by itself
            log.info("The process of a %s is still running.", self._factory.__name__)

    def _start(self) -> None:
        connection, child_connection = socket.socketpair()
        with child_connection:
            code = f"import sys; sys.path[:] = {sys.path!r}; from sweep.processes.child import serve; "
            code += f"serve({child_connection.fileno()}, {self._nice})"
            name = f"{self._factory.__module__}.{self._factory.__qualname__}"  # shown in process lists
            self._process = subprocess.Popen(
                [sys.executable, "-c", code, name],
                stdin=subprocess.DEVNULL,
                pass_fds=[child_connection.fileno()],
                env=self._environment,
            )
        self._connection = connection
        framing.send(connection, 0, framing.pack((self._factory, self._factory_arguments())))
        self._disconnected, self._pending = False, dict[int, Future[Any]]()
        arguments = connection, self._pending, self._process
        threading.Thread(target=self._read_answers, args=arguments, name="remote answers", daemon=True).start()

    def _send(self, message: Frame) -> Future[Any]:
        self._used = True
        number, future = next(self._numbers), Future[Any]()
        self._pending[number] = future
        try:
            framing.send(self._connection, number, message)
        except BaseException:  # also an interrupt, after which the message may be incomplete
            self._pending.pop(number, None)
            self._disconnect()
            raise
        return future

    def _read_answers(
        self, connection: socket.socket, pending: dict[int, Future[Any]], process: subprocess.Popen[bytes]
    ) -> None:
        """Set the results of pending calls until the connection ends, then fail the remaining calls."""
        ready = False
        try:
            while True:
                number, answer = framing.receive(connection)
                if number == READY:
                    ready = True
                    continue
                error, value = framing.unpack(answer)
                future = pending.pop(number)
                if error is not None:
                    future.set_exception(error)
                else:
                    future.set_result(value)
                del answer, value, future  # they may be large, and the next answer may take long
        except Exception as error:
            log.info(
                "The process of a %s has closed the connection.",
                self._factory.__name__,
                exc_info=not isinstance(error, EOFError),
            )
        with self._lock:
            if connection is self._connection:
                self._disconnect()
        connection.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
        reason = f"has ended (exit code {process.returncode})"
        for position, future in enumerate(pending.values()):
            loss = CallLoss.START_FAILED if not ready else CallLoss.RUNNING if position == 0 else CallLoss.QUEUED
            future.set_exception(self._call_lost(reason, loss))

    def _disconnect(self) -> None:
        self._disconnected = True
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)


def serve(descriptor: int, nice: int) -> None:
    """Run the child process: execute calls until the caller closes the connection or dies.

    Args:
        descriptor: file descriptor of the socket to the caller.
        nice: see `ChildProcess`.
    """
    for number in IGNORED_SIGNALS:  # the caller receives them too, and still needs this process to finish the sweep
        signal.signal(number, signal.SIG_IGN)
    os.nice(nice)
    handler = logging.StreamHandler()
    handler.addFilter(Redact())
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", handlers=[handler]
    )
    connection = socket.socket(fileno=descriptor)
    calls: queue.SimpleQueue[tuple[int, Frame] | None] = queue.SimpleQueue()
    created: list[Served] = []
    _, first = framing.receive(connection)
    threading.Thread(target=_receive_calls, args=(connection, calls, created), daemon=True).start()
    factory, arguments = framing.unpack(first)
    created.append(factory(*arguments))
    with suppress(OSError):
        framing.send(connection, READY, [])
    while (call := calls.get()) is not None:
        answer = _execute(created[0], call[1])
        with suppress(OSError):  # the caller is gone
            framing.send(connection, call[0], answer)
        del call, answer
    os._exit(0)  # a normal exit unloads libraries for a second, and the sweep would wait for it


def _receive_calls(
    connection: socket.socket, calls: queue.SimpleQueue[tuple[int, Frame] | None], created: list[Served]
) -> None:
    """Queue received calls. After the connection ends, end the process even if a call is still running."""
    with suppress(Exception):
        while True:
            calls.put(framing.receive(connection))
    seconds = created[0].on_caller_gone() if created else END_SECONDS
    calls.put(None)
    time.sleep(seconds)
    os._exit(1)


def _execute(served: Served, call: Frame) -> Frame:
    """Return the error and the value of a call; one of them is None."""
    try:
        method, arguments = framing.unpack(call)
        return framing.pack((None, getattr(served, method)(*arguments)))
    except Exception as error:
        return framing.pack((_portable(error), None))


def _portable(error: Exception) -> Exception:
    """Return an exception that can be pickled, with the traceback as a note."""
    trace = "".join(traceback.format_exception(error))
    try:
        copy = framing.unpack(framing.pack(error))
    except Exception:
        copy = RuntimeError(f"{type(error).__name__}: {error}")
    copy.add_note(trace)
    return copy  # type: ignore[no-any-return]
