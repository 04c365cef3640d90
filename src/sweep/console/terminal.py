"""What the user sees: a few lines, a progress bar, a table.  Libraries' chatter goes to a log file meanwhile."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from sweep.redaction import Redact, redact_file

PLAIN_WIDTH = 200  # columns of a table that goes to a file or a pipe
OURS = ("sweep.", "hydra_plugins.sweep_")  # loggers whose warnings the user sees
PLAIN_PERIOD = 5.0  # seconds between progress lines there

Advance = Callable[[int], None]


class Terminal:
    """The user's standard streams, kept apart from those that libraries write to."""

    def __init__(self) -> None:
        # Copies of the streams: `divert` turns the originals away at the level where also C++ code writes.
        self._streams = [os.fdopen(os.dup(number), "w", encoding="utf-8", buffering=1) for number in (1, 2)]
        out, err = (Console(file=s, width=None if s.isatty() else PLAIN_WIDTH, highlight=False) for s in self._streams)
        self._outs, self._err = [out], err

    @contextmanager
    def divert(self, log_file: Path, verbose: bool) -> Iterator[None]:
        """Send what libraries print and log to `log_file`; warnings of ours also to the user.  Verbose: nothing is."""
        handlers: list[logging.Handler] = [_ToUser(self)]
        with ExitStack() as undo:
            if not verbose:
                log_file.parent.mkdir(parents=True, exist_ok=True)
                undo.callback(redact_file, log_file)  # for what libraries print past the handlers
                file = undo.enter_context(log_file.open("a", encoding="utf-8"))
                for number in (1, 2):
                    saved = os.dup(number)
                    os.dup2(file.fileno(), number)
                    undo.callback(_restore, saved, number)
            handlers.append(logging.StreamHandler())
            handlers[-1].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
            root = logging.getLogger()
            level = root.level
            root.setLevel(logging.INFO)
            undo.callback(root.setLevel, level)
            for handler in handlers:
                handler.addFilter(Redact())
                root.addHandler(handler)
                undo.callback(root.removeHandler, handler)
            yield

    def say(self, line: str) -> None:
        """Print a line about what is going on."""
        self._err.print(line, markup=False, soft_wrap=True)

    def result(self, line: str) -> None:
        """Print a line of results."""
        for console in self._outs:
            console.print(line, markup=False, soft_wrap=True)

    @contextmanager
    def copying(self, path: Path) -> Iterator[None]:
        """Write what results are printed to a file, too."""
        with path.open("w", encoding="utf-8") as file:
            self._outs.append(Console(file=file, width=PLAIN_WIDTH, highlight=False))
            try:
                yield
            finally:
                self._outs.pop()

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Show that something long goes on, and how long it took."""
        started = time.monotonic()
        if self._err.is_terminal:
            with self._err.status(what):
                yield
        else:
            self.say(f"{what} …")
            yield
        self.say(f"{what}: {time.monotonic() - started:.1f} s")

    @contextmanager
    def progress(self, total: int) -> Iterator[Advance]:
        """Show requests done of `total`, tokens per second and the time left; `advance(tokens)` counts one request."""
        with _bar(self._err, total) if self._err.is_terminal else _lines(self, total) as advance:
            yield advance

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print results as a table, the first column to the left, the others to the right."""
        table = Table(title=title, title_justify="left")
        for i, column in enumerate(columns):
            table.add_column(column, justify="right" if i else "left", no_wrap=i == 0)
        for row in rows:
            table.add_row(*map(Text, row))
        for console in self._outs:
            console.print(table)


class _ToUser(logging.Handler):
    """Shows this project's warnings to the user."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__(logging.WARNING)
        self._terminal = terminal
        self.addFilter(lambda record: record.name.startswith(OURS))

    def emit(self, record: logging.LogRecord) -> None:
        self._terminal.say(f"{record.levelname.lower()}: {record.getMessage()}")


def _restore(saved: int, number: int) -> None:
    os.dup2(saved, number)
    os.close(saved)


@contextmanager
def _bar(console: Console, total: int) -> Iterator[Advance]:
    speed = TextColumn("{task.fields[speed]:.0f} tokens/s")
    columns = (SpinnerColumn(), TextColumn("requests"), BarColumn(), MofNCompleteColumn(), speed, TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=total, speed=0.0)
        tokens, started = 0, time.monotonic()

        def advance(more: int) -> None:
            nonlocal tokens
            tokens += more
            progress.update(task, advance=1, speed=tokens / (time.monotonic() - started))

        yield advance


@contextmanager
def _lines(terminal: Terminal, total: int) -> Iterator[Advance]:
    done = tokens = 0
    started = last = time.monotonic()

    def advance(more: int) -> None:
        nonlocal done, tokens, last
        done, tokens, now = done + 1, tokens + more, time.monotonic()
        if now - last >= PLAIN_PERIOD or done == total:
            last, elapsed = now, now - started
            left = elapsed * (total - done) / done
            terminal.say(f"{done}/{total} requests, {tokens / elapsed:.0f} tokens/s, {left:.0f} s left")

    yield advance
