"""Signals end a sweep within seconds, with correct statuses and without leftover processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from scripted_sweeps import Sweeps, finished, heed_signals
from sweep.console.signals import PATIENCE

Run = Callable[..., tuple[int, str, str]]
WITHIN = 10.0  # seconds: more than twice PATIENCE, for busy machines
RESUMABLE = "Interrupted. Finished points are saved; run the same command to resume."
SIGNALS = [(signal.SIGTERM, 143), (signal.SIGUSR2, 143), (signal.SIGHUP, 129)]


def end(process: subprocess.Popen[bytes], number: signal.Signals) -> int:
    """Send a signal and return the exit code; the process must end within seconds."""
    began = time.monotonic()
    process.send_signal(number)
    code = process.wait(30)
    assert time.monotonic() - began < WITHIN
    return code


def test_an_interrupted_sweep_is_killed_and_its_finished_points_are_published(tiny: Path, tmp_path: Path) -> None:
    sweeps = Sweeps(tiny, tmp_path, hold_at=9)  # in the third point
    process = sweeps.start_held()
    sweeps.wait_for_published(3, process)
    assert end(process, signal.SIGINT) == 130, sweeps.output
    assert sweeps.statuses() == finished(2, "KILLED")
    assert sweeps.journaled().total() == 9
    assert "Traceback" not in sweeps.output and sweeps.output.count(RESUMABLE) == 1


@pytest.mark.slow
def test_each_signal_ends_a_sweep_that_then_resumes(command_line: Run, tiny: Path, tmp_path: Path) -> None:
    sweeps = Sweeps(tiny, tmp_path, hold_at=3)
    statuses = [Counter({("sweep", "KILLED"): 1}), finished(1, "KILLED"), finished(2, "KILLED")]
    for (number, code), expected in zip(SIGNALS, statuses, strict=True):
        process = sweeps.start_held()
        sweeps.wait_for_published(expected.total() - 1, process)
        assert end(process, number) == code, sweeps.output
        assert sweeps.statuses() == expected
    assert command_line(*sweeps.arguments())[0] == 0
    assert sweeps.statuses() == finished(4)
    assert set(sweeps.journaled().values()) == {1} and sweeps.journaled().total() == 12
    assert "Traceback" not in sweeps.output and sweeps.output.count(RESUMABLE) == 3


@pytest.mark.slow
def test_vllm_is_ended_within_seconds(tiny: Path, tmp_path: Path) -> None:
    sweeps = Sweeps(tiny, tmp_path, points=400)
    process = sweeps.start(engine=["engine=vllm"])
    sweeps.wait_for(lambda: bool(sweeps.journaled()), process)
    assert end(process, signal.SIGINT) == 130, sweeps.output
    statuses = sweeps.statuses()
    assert statuses.pop(("sweep", "KILLED")) == 1
    assert {status for _, status in statuses} <= {"FINISHED"}
    assert "Traceback" not in sweeps.output and sweeps.output.count(RESUMABLE) == 1


def test_second_process_of_a_running_sweep_exits_with_75(tiny: Path, tmp_path: Path) -> None:
    sweeps = Sweeps(tiny, tmp_path, hold_at=1)
    process = sweeps.start_held()
    assert sweeps.start().wait(60) == 75
    assert f"{process.pid}" in sweeps.output and "Traceback" not in sweeps.output
    assert end(process, signal.SIGINT) == 130


def test_no_process_outlives_a_killed_sweep(tiny: Path, tmp_path: Path) -> None:
    process = Sweeps(tiny, tmp_path, hold_at=1).start_held()
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 3  # two workers and the tracker
    assert survivors_of(process, children) == []


@pytest.mark.slow
def test_no_engine_outlives_a_killed_sweep(tiny: Path, tmp_path: Path) -> None:
    sweeps = Sweeps(tiny, tmp_path, points=400)
    process = sweeps.start(engine=["engine=vllm", "engine.in_process=false"])
    sweeps.wait_for(lambda: bool(sweeps.journaled()), process)
    children = psutil.Process(process.pid).children(recursive=True)
    assert any("EngineCore" in " ".join([child.name(), *child.cmdline()]) for child in children)
    assert survivors_of(process, children) == []


def survivors_of(process: subprocess.Popen[bytes], children: list[psutil.Process]) -> list[psutil.Process]:
    """Kill a process and return the children that are still running some seconds later."""
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=WITHIN)
    return [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]


BUSY = """
import sys, time
from sweep.console import signals
signals.PATIENCE = float(sys.argv[1])
signals.install()
try:
    print("ready", flush=True)
    time.sleep(60)
except SystemExit:
    print("asked to end", flush=True)
    for line in sys.stdin:
        print("still busy", flush=True)
"""


@contextmanager
def interrupted_process(patience: float) -> Iterator[subprocess.Popen[str]]:
    """Yield a busy process that was interrupted.

    Args:
        patience: Seconds until it is ended.
    """
    with subprocess.Popen(
        [sys.executable, "-c", BUSY, str(patience)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=heed_signals,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "asked to end\n"
        yield process


def test_a_second_interrupt_ends_a_busy_process_at_once_and_other_signals_do_not() -> None:
    with interrupted_process(patience=600) as process:
        assert process.stdin is not None and process.stdout is not None
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP):
            process.send_signal(number)
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == "still busy\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


def test_interrupted_busy_process_ends_after_the_patience() -> None:
    with interrupted_process(patience=0.1) as process:
        assert process.wait(30) == 130
    assert 2 * PATIENCE < WITHIN
