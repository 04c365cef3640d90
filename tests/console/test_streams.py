"""Output cannot control a terminal, and a closed pipe does not end the program."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from small_disks import file_system
from sweep.console.streams import EscapingFormatter, open_stream, visible
from sweep.console.terminal import Terminal

COLOUR, SHOWN = "\x1b[31mred\x1b]0;title\x07\u202e\x9b", r"\x1b[31mred\x1b]0;title\x07\u202e\x9b"
Sweep = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (COLOUR, SHOWN),
        ("two\n\tlines", "two\n\tlines"),
        ("über 日本語 🙂 — …", "über 日本語 🙂 — …"),
        ("a\rb\x08\x00\x7f\x0b", r"a\x0db\x08\x00\x7f\x0b"),
        ("\u2066\u2069\u200f\u2028\u061c", r"\u2066\u2069\u200f\u2028\u061c"),
        (os.fsdecode(b"name-\xff"), r"name-\udcff"),
    ],
)
def test_control_characters_are_escaped(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_terminal_output_escapes_control_characters(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "stderr", open_stream(2, copy=False))
    terminal = Terminal()
    terminal.say(f"say {COLOUR}")
    terminal.result(f"result {COLOUR}")
    terminal.table(f"title {COLOUR}", ["a", f"column {COLOUR}"], [[f"cell {COLOUR}", "[red]1[/red]"]])
    with terminal.waiting(f"waiting {COLOUR}"):
        pass
    log = tmp_path / "sweep.log"
    with terminal.divert(log, verbose=False):
        try:
            raise ValueError(COLOUR)
        except ValueError:
            logging.getLogger("sweep.test").warning("warning %s", COLOUR, exc_info=True)
    out, err = capfd.readouterr()
    for part in ("result", "title", "column", "cell"):
        assert f"{part} {SHOWN}" in out
    for part in ("say", "waiting", "warning"):
        assert f"{part} {SHOWN}" in err
    assert "[red]1[/red]" in out
    logged = log.read_text()
    assert f"WARNING sweep.test: warning {SHOWN}\nTraceback" in logged and f"ValueError: {SHOWN}\n" in logged
    assert not {"\x1b", "\x9b", "\u202e", "\x07"} & set(out + err + logged)


def test_log_formatter_keeps_line_breaks() -> None:
    record = logging.LogRecord("name", logging.INFO, "path", 1, "two\nlines\x1b", None, None)
    assert EscapingFormatter("%(message)s").format(record) == "two\nlines\\x1b"


@pytest.mark.parametrize(
    "arguments",
    [
        ["transform=\x1b[31m"],
        ["transform=scale", "transform.fac\x1b[31m=1"],
        ["--wrong\x1b[31m"],
        ["plugins=['no\x1b[31m']"],
        ["sweep.name='a\x1b[31m"],
    ],
)
def test_error_messages_escape_control_characters(
    command_line: Sweep, no_engine: None, tmp_path: Path, arguments: list[str]
) -> None:
    code, out, err = command_line(*arguments, f"sweep.dir={tmp_path}/outputs")
    assert (code, out) == (2, "")
    assert "\x1b" not in err and r"\x1b[31m" in err and len(err.splitlines()) <= 3


def test_messages_of_hydra_escape_control_characters(command_line: Sweep) -> None:
    code, out, err = command_line("--cfg", "job", "--package", "no\x1b[31mne")
    assert (code, out, err) == (1, "", "package 'no\\x1b[31mne' not found in config\n")


def test_a_closed_pipe_is_not_an_error() -> None:
    read, write = os.pipe()
    stream = open_stream(write)
    os.close(write)
    os.close(read)
    for _ in range(3):
        assert stream.write("line\n" * 100_000) == 500_000
        stream.flush()
    stream.close()


def closed_pipe(*arguments: str) -> tuple[int, str]:
    """Run a command with a closed pipe as standard output; return its exit code and standard error."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "sweep", *arguments]
    try:
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, timeout=300, check=False)
    finally:
        os.close(write)
    return done.returncode, done.stderr


DIVERTED = """
import logging, sys
from pathlib import Path
from sweep.console import streams
from sweep.console.terminal import Terminal
streams.install()
with Terminal().divert(Path(sys.argv[1]), verbose=False):
    for number in range(100):
        print("a line of a library " * 50)
        logging.getLogger("library").error("a record of a library " * 50)
print("done")
"""


def test_log_output_that_a_full_disk_drops_is_not_shown_to_the_user(tmp_path: Path) -> None:
    with file_system(tmp_path / "disk", "64k") as disk:
        command = [sys.executable, "-c", DIVERTED, disk / "sweep.log"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
        assert (disk / "sweep.log").stat().st_size == 64 * 1024


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--help"], 0, ""),
        (["--hydra-help"], 0, ""),
        (["--version"], 0, ""),
        (["--cfg", "job"], 0, ""),
        (["--info", "config"], 0, ""),
        (["transform=scale", "transform.factor=1.2,1.5", "sweep.dry_run=true"], 0, "16 prompts, 15 with references\n"),
        (["transform=scael"], 2, "sweep: transform=scael: there is no such option. Did you mean 'scale'?"),
    ],
)
def test_a_closed_pipe_does_not_change_the_exit_code(
    tmp_path: Path, arguments: list[str], code: int, says: str
) -> None:
    folder = [] if arguments == ["--hydra-help"] else [f"sweep.dir={tmp_path}/outputs"]
    actual_code, err = closed_pipe(*arguments, *folder)
    assert actual_code == code
    assert err.startswith(says) if code else err == says


@pytest.mark.slow
def test_a_sweep_with_a_closed_pipe_continues(tiny: Path, tmp_path: Path) -> None:
    arguments = ["transform=scale", "transform.factor=1.5", "sampling.max_tokens=2"]
    arguments += ["plugins=[sweep.testing.scripted]", "engine=scripted"]
    arguments += [f"model.id={tiny}", "prompts.items=[Hi]", f"sweep.dir={tmp_path}/outputs", "sweep.helpers=0"]
    for _ in range(2):  # the second run has nothing to do
        code, err = closed_pipe(*arguments)
        assert code == 0, err
        assert "Traceback" not in err and "BrokenPipe" not in err
    [folder] = (tmp_path / "outputs" / "sweeps").iterdir()
    assert (folder / "summary.json").is_file()


VERSION = """
import sys
from sweep.__main__ import main
sys.argv = ["sweep", "--version"]
main()
print(sorted({"hydra", "torch", "omegaconf", "rich"} & sys.modules.keys()))
"""


def test_the_version_is_printed_without_heavy_imports() -> None:
    from importlib.metadata import version

    done = subprocess.run([sys.executable, "-c", VERSION], capture_output=True, text=True, timeout=60, check=True)
    version_line, imported = done.stdout.splitlines()
    assert (
        version_line.startswith(f"sweep {version('prompt-embedding-sweep')} (vllm ")
        and f"transformers {version('transformers')}" in version_line
    )
    assert imported == "[]"
