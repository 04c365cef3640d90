"""A sweep that is asked to end does so promptly, tells the truth about itself, and leaves nobody behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

WITHIN = 5.0  # seconds


def start(root: Path, *more: str) -> subprocess.Popen[bytes]:
    factors = ",".join(f"{1 + i / 100:g}" for i in range(1, 41))
    command = [sys.executable, "-m", "sweep", "transform=scale", f"transform.factor={factors}", f"sweep.dir={root}"]
    command += ["prompts=demo_heldout", "prompts.limit=64", "sampling.max_tokens=64", "sampling.ignore_eos=true", *more]
    root.mkdir(exist_ok=True)
    with (root / "output.txt").open("ab") as output:
        return subprocess.Popen(
            command, stdout=output, stderr=output, cwd=root, start_new_session=True, preexec_fn=_heed_interrupts
        )


def _heed_interrupts() -> None:
    """Undo what a shell does to what it runs in the background, such as these tests."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def journal_size(root: Path) -> int:
    return sum(file.stat().st_size for file in (root / "journal").glob("*/*/*.jsonl"))


def wait_for_answers(process: subprocess.Popen[bytes], root: Path, more_than: int = 0) -> None:
    """Wait until the journal has more bytes than that."""
    for _ in range(1200):
        if journal_size(root) > more_than:
            return
        if process.poll() is not None:
            break
        time.sleep(0.1)
    pytest.fail((root / "output.txt").read_text())


def test_signals_end_a_sweep_within_seconds(tmp_path: Path, subtests: pytest.Subtests) -> None:
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR2, 143)):
        with subtests.test(number.name):
            before = journal_size(tmp_path)
            process = start(tmp_path)
            wait_for_answers(process, tmp_path, before)
            began = time.monotonic()
            process.send_signal(number)
            assert process.wait(30) == code, (tmp_path / "output.txt").read_text()
            assert time.monotonic() - began < WITHIN
            client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
            statuses = {
                run.data.tags["sweep.role"]: run.info.status for run in client.search_runs(["1"]) if run.info.status
            }
            assert statuses.pop("sweep") == "KILLED"
            assert set(statuses.values()) <= {"FINISHED"}
    output = (tmp_path / "output.txt").read_text()
    assert "Traceback" not in output
    assert output.count("what is finished is kept, and the same command goes on from there") == 3


def test_a_second_interrupt_ends_at_once_and_another_process_may_not_join(tmp_path: Path) -> None:
    process = start(tmp_path)
    wait_for_answers(process, tmp_path)
    second = start(tmp_path)
    assert second.wait(60) == 75
    held = (tmp_path / "output.txt").read_text()
    assert f"{process.pid}" in held and "Traceback" not in held
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)  # two at once are one
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert process.wait(10) == 130 and time.monotonic() - began < 2


def test_no_child_outlives_a_killed_sweep(tmp_path: Path) -> None:
    process = start(tmp_path, "engine.in_process=false")
    wait_for_answers(process, tmp_path)
    children = psutil.Process(process.pid).children(recursive=True)
    assert any("EngineCore" in " ".join([child.name(), *child.cmdline()]) for child in children)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(children, timeout=WITHIN)
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
