"""What a process that an engine starts does first: it ties its life to its parent's and promises last words.

It runs before the process imports anything else, which takes an engine's library ten seconds in which the parent may be
killed.  Hence nothing but the standard library here.
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

# Where vLLM logs the exception that ends a process, of which the parent is told no more than that it happened.
FATAL = {
    "vllm.v1.engine.core": ("EngineCore encountered a fatal error", "EngineCore failed to start"),
    "vllm.v1.executor.multiproc_executor": ("WorkerProc failed to start",),
}


@contextmanager
def tied(last_words: Path) -> Iterator[None]:
    """Processes spawned by `multiprocessing` meanwhile, and all that they spawn, end when their parent does.

    On Linux the kernel kills them, whatever happened to the parent; elsewhere nothing is done.  To the kernel the
    parent is the thread that spawned them, so that is to be one that lives as long as they are needed.

    Args:
        last_words: a file that does not exist yet; the first of them that dies of an exception writes it there.
    """
    original = multiprocessing.spawn.get_command_line
    _tie_children(original, last_words)
    try:
        yield
    finally:
        multiprocessing.spawn.get_command_line = original


def command(code: str, last_words: Path) -> list[str]:
    """Return the command that runs Python code in a process that ends when this one does."""
    return [sys.executable, "-c", _preamble(last_words) + code]


def tie(parent: int, last_words: str) -> None:
    """Have the kernel kill this process when its parent, the process of that id, ends; what it spawns is tied to it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before it could have been noticed
            os._exit(1)
    for logger, messages in FATAL.items():
        # Not a handler, which vLLM would remove when it sets up its logging.
        logging.getLogger(logger).addFilter(partial(_note, Path(last_words), messages))
    _tie_children(multiprocessing.spawn.get_command_line, Path(last_words))


def _tie_children(get_command_line: Callable[..., list[str]], last_words: Path) -> None:
    def tied_command_line(**arguments: object) -> list[str]:
        line = get_command_line(**arguments)
        if "-c" in line:
            code = line.index("-c") + 1
            line[code] = _preamble(last_words) + line[code]
        return line

    multiprocessing.spawn.get_command_line = tied_command_line


def _preamble(last_words: Path) -> str:
    # The parent's own sys.path reaches a child only later.
    return (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from sweep.engines.lifeline import tie; del sys.path[0]; "
        f"tie({os.getpid()}, {str(last_words)!r}); "
    )


def _note(last_words: Path, messages: tuple[str, ...], record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if error is not None and record.getMessage().startswith(messages):
        with suppress(OSError), last_words.open("x", encoding="utf-8") as file:
            file.write(f"{type(error).__name__}: {error}")
    return True
