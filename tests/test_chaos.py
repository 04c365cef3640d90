"""Chaos in short form: a sweep that is killed at random comes to its end, complete and with nothing twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_sweep_killed_at_random_completes(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "scripts/bench/chaos.py",
        "process",
        "--scripted",
        "--kills=1",
        "--points=4",
        "--prompts=2",
    ]
    done = subprocess.run([*command, f"--folder={tmp_path}"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 sweeps" in done.stdout and "5 points, 10 generations compared" in done.stdout
    assert ", 0 problems, " in done.stdout
