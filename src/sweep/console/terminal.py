"""Terminal output: messages, results, a progress bar and tables. Output of libraries goes to a log file."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from sweep.console.streams import EscapingFormatter, open_stream, redirect_to_log, visible
from sweep.console.text import one_line
from sweep.util.redaction import Redact, redact_file

PLAIN_WIDTH = 200  # columns of a table in a file or pipe
SHOWN_LOGGERS = ("sweep.", "hydra_plugins.sweep_")  # prefixes of the loggers whose warnings the user sees
PLAIN_PERIOD = 5.0  # seconds between progress lines in a file or pipe
SPAN_STYLES = ("black on green", "black on cyan", "black on yellow", "black on magenta")

Advance = Callable[[int], None]


class Terminal:
    """The user's standard streams, separate from those that libraries write to. Any thread may print."""

    def __init__(self) -> None:
        # Duplicated descriptors, because `divert` redirects the originals, to which C++ code writes too.
        self._streams = [open_stream(number) for number in (1, 2)]
        out, err = (Console(file=s, width=None if s.isatty() else PLAIN_WIDTH, highlight=False) for s in self._streams)
        self._out, self._err = out, err

    @contextmanager
    def divert(self, log_file: Path, verbose: bool) -> Iterator[None]:
        """Send output and log records of libraries to a file, and show this project's warnings to the user.

        Args:
            log_file: File to append to.
            verbose: Leave everything on the standard streams instead.
        """
        handlers: list[logging.Handler] = [_ToUser(self)]
        with ExitStack() as undo:
            if not verbose:
                log_file.parent.mkdir(parents=True, exist_ok=True)
                undo.callback(redact_file, log_file)  # libraries also print without the handlers that redact
                file = undo.enter_context(log_file.open("a", encoding="utf-8"))
                for number in (1, 2):
                    undo.enter_context(redirect_to_log(number, file.fileno()))
            handlers.append(logging.StreamHandler())
            handlers[-1].setFormatter(EscapingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
            root = logging.getLogger()
            level = root.level
            root.setLevel(logging.INFO)
            undo.callback(root.setLevel, level)
            undo.enter_context(_logging_to(handlers))
            yield

    @contextmanager
    def showing_warnings(self) -> Iterator[None]:
        """Show this project's warnings to the user, without `divert`."""
        with _logging_to([_ToUser(self)]):
            yield

    def say(self, line: str) -> None:
        """Print a status line to standard error."""
        self._err.print(visible(line), markup=False, soft_wrap=True)

    def result(self, line: str) -> None:
        """Print a line of results to standard output."""
        self._out.print(visible(line), markup=False, soft_wrap=True)

    def marked(self, title: str, pieces: Sequence[tuple[str, tuple[int, ...]]]) -> None:
        """Print a text whose pieces belong to numbered spans: in colour, or between ⟦ and ⟧ in a file or pipe.

        Several spans are also numbered there, from 1.

        Args:
            title: Line before the text.
            pieces: Text of each piece, and the numbers of its spans.
        """
        self.result(title)
        text, several = Text(), any(number for _, numbers in pieces for number in numbers)
        for piece, numbers in pieces:
            shown = visible(piece)
            if not numbers or (self._out.is_terminal and not self._out.no_color):
                text.append(shown, SPAN_STYLES[numbers[-1] % len(SPAN_STYLES)] if numbers else "")
            else:
                names = "+".join(str(number + 1) for number in numbers) + ":" if several else ""
                text.append(f"⟦{names}{shown}⟧")
        self._out.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def waiting(self, label: str) -> Iterator[None]:
        """Show that a long step is running, and afterwards how long it took."""
        started = time.monotonic()
        if self._err.is_terminal:
            with self._err.status(Text(visible(label))):
                yield
        else:
            self.say(f"{label} …")
            yield
        self.say(f"{label}: {time.monotonic() - started:.1f} s")

    @contextmanager
    def progress(self, total: int) -> Iterator[Advance]:
        """Show completed requests of `total`, tokens/s and the remaining time; `advance(tokens)` counts one request."""
        with _bar(self._err, total) if self._err.is_terminal else _lines(self, total) as advance:
            yield advance

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], elsewhere: str = "") -> None:
        """Print results as a table, with the first column left-aligned and the others right-aligned.

        A terminal shows the columns that fit, and the names of the omitted ones. A file or pipe has all columns.

        Args:
            title: Title of the table.
            columns: Headings.
            rows: Cells of each row, one for each column.
            elsewhere: Where to find omitted columns.
        """
        columns, rows = [one_line(column) for column in columns], [[one_line(cell) for cell in row] for row in rows]
        widths = [max(map(cell_len, cells)) for cells in zip(columns, *rows, strict=True)]
        if not self._out.is_terminal:
            self._out.width = max(PLAIN_WIDTH, sum(widths) + 3 * len(columns) + 1)
        fitting = [n for n in range(2, len(columns) + 1) if sum(widths[:n]) + 3 * n + 1 <= self._out.width]
        shown = max(fitting, default=min(2, len(columns)))
        table = Table(title=Text(one_line(title)), title_justify="left")
        for i, column in enumerate(columns[:shown]):
            table.add_column(Text(column), justify="right" if i else "left", no_wrap=i == 0)
        for row in rows:
            table.add_row(*map(Text, row[:shown]))
        self._out.print(table)
        if shown < len(columns):
            self.result(f"Omitted columns: {', '.join(columns[shown:])}. Widen the terminal, or see {elsewhere}")


class _ToUser(logging.Handler):
    """Handler that shows this project's warnings to the user. Any thread may log."""

    def __init__(self, terminal: Terminal) -> None:
        super().__init__(logging.WARNING)
        self._terminal = terminal
        self.addFilter(lambda record: record.name.startswith(SHOWN_LOGGERS))

    def emit(self, record: logging.LogRecord) -> None:
        self._terminal.say(f"{record.levelname.lower()}: {record.getMessage()}")


@contextmanager
def _logging_to(handlers: Sequence[logging.Handler]) -> Iterator[None]:
    root = logging.getLogger()
    with ExitStack() as undo:
        for handler in handlers:
            handler.addFilter(Redact())
            root.addHandler(handler)
            undo.callback(root.removeHandler, handler)
        yield


@contextmanager
def _bar(console: Console, total: int) -> Iterator[Advance]:
    speed = TextColumn("{task.fields[speed]:.0f} tokens/s")
    columns = (SpinnerColumn(), TextColumn("requests"), BarColumn(), MofNCompleteColumn(), speed, TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=total, speed=0.0)
        tokens, started = 0, time.monotonic()

        def advance(new_tokens: int) -> None:
            nonlocal tokens
            tokens += new_tokens
            progress.update(task, advance=1, speed=tokens / (time.monotonic() - started))

        yield advance


@contextmanager
def _lines(terminal: Terminal, total: int) -> Iterator[Advance]:
    done = tokens = 0
    started = last = time.monotonic()

    def advance(new_tokens: int) -> None:
        nonlocal done, tokens, last
        done, tokens, now = done + 1, tokens + new_tokens, time.monotonic()
        if now - last >= PLAIN_PERIOD or done == total:
            last, elapsed = now, now - started
            remaining = elapsed * (total - done) / done
            terminal.say(f"{done}/{total} requests, {tokens / elapsed:.0f} tokens/s, {remaining:.0f} s left")

    yield advance
