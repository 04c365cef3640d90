"""Processes that are tied to their parent end with it, whenever it is killed; each in a process tree of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import spawn
from pathlib import Path

import psutil
import pytest

from sweep.engines import lifeline

# A tree of parent, child and grandchild; the child imports for as long as it is told to, as an engine's core does.
TREE = """
import multiprocessing, os, sys, time
from pathlib import Path
from sweep.engines import lifeline

words = Path(sys.argv[1]) / "words"
if __name__ == "__mp_main__":
    time.sleep(float(sys.argv[2]))

def sleep():
    (words.parent / "grandchild").touch()
    time.sleep(60)

def child():
    grandchild = multiprocessing.get_context("spawn").Process(target=sleep)
    grandchild.start()
    grandchild.join()

if __name__ == "__main__":
    with lifeline.tied(words):
        multiprocessing.get_context("spawn").Process(target=child).start()
    print("spawned", flush=True)
    time.sleep(60)
"""


def test_a_killed_parents_descendants_end(tmp_path: Path) -> None:
    with subprocess.Popen(tree(tmp_path, importing=0)) as parent:
        wait_for(lambda: (tmp_path / "grandchild").exists())
        assert_all_end_with(parent)


def test_a_child_that_is_still_importing_ends_with_its_parent(tmp_path: Path) -> None:
    with subprocess.Popen(tree(tmp_path, importing=60), stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        assert_all_end_with(parent)


def test_a_parent_that_ended_before_its_child_looked_is_missed(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    code = f"from sweep.engines.lifeline import tie; tie({ended.pid}, {str(tmp_path / 'words')!r}); print('alive')"
    orphan = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert orphan.returncode == 1 and not orphan.stdout


def test_a_command_is_run_tied(tmp_path: Path) -> None:
    line = lifeline.command("import os; print(os.getppid())", tmp_path / "words")
    assert subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip() == str(os.getpid())


def test_the_first_fatal_exception_is_written_down(tmp_path: Path) -> None:
    """The core's logging is set up after it was tied, and other exceptions may be logged before the fatal one."""
    code = """
import logging, logging.config
log = logging.getLogger("vllm.v1.engine.core")
logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, "loggers": {"vllm": {"propagate": False}}})
for message in ("Unexpected error pre-processing request", "EngineCore encountered a fatal error.", "EngineCore failed"):
    try:
        raise MemoryError(message[-5:])
    except MemoryError:
        log.exception(message)
"""
    words = tmp_path / "words"
    subprocess.run(lifeline.command(code, words), check=True, capture_output=True)
    assert words.read_text() == "MemoryError: rror."


def test_spawning_is_as_before_afterwards(tmp_path: Path) -> None:
    before = spawn.get_command_line
    with pytest.raises(LookupError), lifeline.tied(tmp_path / "words"):
        assert "tie(" in str(spawn.get_command_line(tracker_fd=1, pipe_handle=2))
        raise LookupError
    assert spawn.get_command_line is before


def tree(folder: Path, importing: float) -> list[str]:
    script = folder / "tree.py"
    script.write_text(TREE)
    return [sys.executable, str(script), str(folder), str(importing)]


def assert_all_end_with(parent: subprocess.Popen[bytes]) -> None:
    family = psutil.Process(parent.pid).children(recursive=True)
    assert family
    os.kill(parent.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(family, timeout=2)
    for process in alive:
        process.kill()
    assert not alive


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
