"""Parent death: processes that end when their parent ends, and that write their fatal exception to a file.

It is for processes with an engine, which hold a GPU: the kernel kills them, whatever they execute. A `ChildProcess`
ends with its connection instead, so that it can finish a call, and so that any thread may start it.

The code runs before a child process imports anything else. Importing an engine's library takes ten seconds, in which
the parent may be killed. So this module uses only the standard library.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing.spawn
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

PR_SET_PDEATHSIG = 1  # linux/prctl.h
ROOT = Path(__file__).resolve().parents[2]

# Messages with which vLLM logs the exception that ends a process. Its parent learns only that the process ended.
FATAL = {
    "vllm.v1.engine.core": ("EngineCore encountered a fatal error", "EngineCore failed to start"),
    "vllm.v1.executor.multiproc_executor": ("WorkerProc failed to start",),
}


@contextmanager
def tied_children(error_file: Path) -> Iterator[None]:
    """Tie processes that `multiprocessing` spawns in this context, and all their descendants, to their parent.

    On Linux the kernel kills a tied process when its parent ends for any reason. On other systems, nothing is done.
    For the kernel, the parent is the thread that spawned the process. That thread has to live as long as the process
    is needed.

    Args:
        error_file: path that does not exist yet. The first tied process that fails writes its exception there.
    """
    original = multiprocessing.spawn.get_command_line
    _tie_children(original, error_file)
    try:
        yield
    finally:
        multiprocessing.spawn.get_command_line = original


def tied_command(code: str, error_file: Path) -> list[str]:
    """Return the command line that runs Python code in a process tied to this one."""
    return [sys.executable, "-c", _preamble(error_file) + code]


def tie_to_parent(parent: int, error_file: str) -> None:
    """Tie this process and its children to its parent. Called first in a child process.

    Args:
        parent: process id of the parent.
        error_file: see `tied_children`.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent ended before the call of prctl
            os._exit(1)
    for logger, messages in FATAL.items():
        # Not a handler, which vLLM would remove when it sets up its logging.
        logging.getLogger(logger).addFilter(partial(_write_fatal_error, Path(error_file), messages))
    _tie_children(multiprocessing.spawn.get_command_line, Path(error_file))


def _tie_children(get_command_line: Callable[..., list[str]], error_file: Path) -> None:
    def tied_command_line(**arguments: object) -> list[str]:
        line = get_command_line(**arguments)
        if "-c" in line:
            code = line.index("-c") + 1
            line[code] = _preamble(error_file) + line[code]
        return line

    multiprocessing.spawn.get_command_line = tied_command_line


def _preamble(error_file: Path) -> str:
    # A child gets the parent's sys.path only after this code has run.
    return (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from sweep.processes.parent_death import tie_to_parent; "
        f"del sys.path[0]; tie_to_parent({os.getpid()}, {str(error_file)!r}); "
    )


def _write_fatal_error(error_file: Path, messages: tuple[str, ...], record: logging.LogRecord) -> bool:
    """Logging filter that passes every record and writes the first fatal exception to a file."""
    error = record.exc_info[1] if record.exc_info else None
    if error is not None and record.getMessage().startswith(messages):
        with suppress(OSError), error_file.open("x", encoding="utf-8") as file:
            file.write(f"{type(error).__name__}: {error}")
    return True
