"""Output streams: make control characters visible, and ignore closed pipes.

Names, prompts, messages of chat templates and replies of servers are not trusted. Escape sequences in them could
rewrite the screen, and bidirectional overrides could change how a line reads.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import re
import sys
from collections.abc import Iterator
from typing import TextIO

# Control characters except newline and tab, line separators, bidirectional controls, and lone surrogates (in file names
# that are not UTF-8).
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufff9-\ufffb]"
)


def visible(text: str) -> str:
    r"""Return a text with escapes such as `\x1b` and `\u202e` for control characters and invisible characters."""
    return _HIDDEN.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class EscapingFormatter(logging.Formatter):
    """Formatter that makes control characters in log records and tracebacks visible. Any thread may log."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's text without control characters."""
        return visible(super().format(record))


_logs: set[int] = set()  # descriptors that are redirected to a log


class _DroppingFile(io.FileIO):
    """File descriptor that drops output when its reader has gone, or when the disk of a log is full.

    Any thread may write, through the stream that holds it.
    """

    def write(self, data: object) -> int:
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT) and self.fileno() in _logs
            if not full and not isinstance(error, BrokenPipeError):
                raise
            return memoryview(data).nbytes  # type: ignore[arg-type]


@contextlib.contextmanager
def redirect_to_log(number: int, log: int) -> Iterator[None]:
    """Redirect the descriptor of a standard stream to an open log; drop output when the log's disk is full.

    Otherwise the stream's buffer would keep that output, and print it once the descriptor is restored.
    """
    saved = os.dup(number)
    os.dup2(log, number)
    _logs.add(number)
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            (sys.stdout, sys.stderr)[number - 1].flush()
        os.dup2(saved, number)
        os.close(saved)
        _logs.discard(number)


def open_stream(number: int, *, copy: bool = True) -> TextIO:
    """Return a text stream to a file descriptor that ignores a closed pipe.

    Args:
        number: The descriptor.
        copy: Write to a duplicate, which stays unchanged when the descriptor is redirected.
    """
    file = _DroppingFile(os.dup(number), "w") if copy else _DroppingFile(number, "w", closefd=False)
    return io.TextIOWrapper(io.BufferedWriter(file), "utf-8", errors="backslashreplace", line_buffering=True)


def install() -> None:
    """Replace `sys.stdout` and `sys.stderr` by streams that ignore a closed pipe."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        with contextlib.suppress(OSError):  # the descriptor is closed
            getattr(sys, name).flush()
            setattr(sys, name, open_stream(number, copy=False))


class _Escaping(io.TextIOBase):
    """Stream that makes control characters visible and writes to another stream. Any thread may write."""

    def __init__(self, target: TextIO) -> None:
        self._target = target

    def write(self, text: str) -> int:
        self._target.write(visible(text))
        return len(text)

    def flush(self) -> None:
        self._target.flush()

    def isatty(self) -> bool:
        return self._target.isatty()

    def fileno(self) -> int:
        return self._target.fileno()


@contextlib.contextmanager
def escaping() -> Iterator[None]:
    """Make control characters visible in everything that is printed in the block, also by libraries."""
    with (
        contextlib.redirect_stdout(_Escaping(sys.stdout)),
        contextlib.redirect_stderr(_Escaping(sys.stderr)),
    ):
        yield
