"""Chaos in short form: a sweep that is killed at random comes to its end, complete and with nothing twice."""

from __future__ import annotations

import re
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
    done = subprocess.run([*command, f"--folder={tmp_path}"], cwd=ROOT, capture_output=True, text=True, timeout=700)
    assert done.returncode == 0, done.stdout + done.stderr
    # Kills come at random times: a sweep may end before its kill, and then another one is started.
    found = re.fullmatch(
        r"process: (\d+) kills, (\d+) sweeps in (\d+) runs, (\d+) points, (\d+) generations compared, "
        r"(\d+) answers in the journal, 0 problems, \d+ s\n",
        done.stdout,
    )
    assert found, done.stdout
    kills, sweeps, runs, points, generations, answers = map(int, found.groups())
    assert kills >= 1 and runs == 1 + kills + sweeps, done.stdout
    assert (points, generations) == (5 * sweeps, 10 * sweeps) and answers == 12 * sweeps, done.stdout
