"""Processes tied to their parent end when it is killed. Each test uses a separate process tree."""

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

from sweep.processes import parent_death

# A tree of parent, child and grandchild. The import in the child takes a given time, like that of an engine's core.
TREE = """
import multiprocessing, os, sys, time
from pathlib import Path
from sweep.processes import parent_death

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
    with parent_death.tied_children(words):
        multiprocessing.get_context("spawn").Process(target=child).start()
    print("spawned", flush=True)
    time.sleep(60)
"""


def test_descendants_of_a_killed_parent_end(tmp_path: Path) -> None:
    with subprocess.Popen(tree(tmp_path, importing=0)) as parent:
        wait_for(lambda: (tmp_path / "grandchild").exists())
        assert_all_end_with(parent)


def test_a_child_that_is_still_importing_ends_with_its_parent(tmp_path: Path) -> None:
    with subprocess.Popen(tree(tmp_path, importing=60), stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        assert_all_end_with(parent)


def test_child_ends_if_its_parent_ended_before_setup(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    words = str(tmp_path / "words")
    code = "from sweep.processes.parent_death import tie_to_parent; "
    code += f"tie_to_parent({ended.pid}, {words!r}); print('alive')"
    orphan = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert orphan.returncode == 1 and not orphan.stdout


def test_tied_command_runs_its_code(tmp_path: Path) -> None:
    line = parent_death.tied_command("import os; print(os.getppid())", tmp_path / "words")
    assert subprocess.run(line, capture_output=True, text=True, check=True).stdout.strip() == str(os.getpid())


def test_the_first_fatal_exception_is_written_to_the_file(tmp_path: Path) -> None:
    """The core configures logging after it was tied, and may log other exceptions before the fatal one."""
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
    subprocess.run(parent_death.tied_command(code, words), check=True, capture_output=True)
    assert words.read_text() == "MemoryError: rror."


def test_spawn_command_line_is_restored_afterwards(tmp_path: Path) -> None:
    before = spawn.get_command_line
    with pytest.raises(LookupError), parent_death.tied_children(tmp_path / "words"):
        assert "tie_to_parent(" in str(spawn.get_command_line(tracker_fd=1, pipe_handle=2))
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
    try:
        wait_for(lambda: all(map(ended, family)))
    finally:
        for process in family:
            if not ended(process):
                process.kill()


def ended(process: psutil.Process) -> bool:
    """Return whether a process has ended; without a parent it stays a zombie until process 1 reaps it."""
    try:
        return not process.is_running() or bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
