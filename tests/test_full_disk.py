"""A disk that is full in mid-sweep: a clear error, nothing lost that was there, and the same command goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from small_disks import file_system

POINTS, PROMPTS = 60, 64


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for MLflow's database and some points."""
    with file_system(tmp_path / "disk", "4m") as disk:
        yield disk


def run(tiny: Path, root: Path) -> tuple[int, str]:
    factors = ",".join(f"{1 + i / 100:g}" for i in range(1, POINTS + 1))
    command = [sys.executable, "-m", "sweep", "transform=scale", f"transform.factor={factors}", f"model.id={tiny}"]
    command += [
        "prompts=demo_heldout",
        f"prompts.limit={PROMPTS}",
        "sampling.max_tokens=16",
        "sampling.ignore_eos=true",
    ]
    command += [f"sweep.dir={root}", "tracking.patience=2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stderr


def answers(root: Path) -> Counter[tuple[str, str, str]]:
    """Count what the journal has of each request; a torn last line is none."""
    found: Counter[tuple[str, str, str]] = Counter()
    for file in (root / "journal").glob("*/*/*.jsonl"):
        for line in file.read_bytes().split(b"\n")[:-1]:
            record = json.loads(line.partition(b" ")[2])
            if "kind" in record:
                found[file.parent.name, record["kind"], record["prompt"]] += 1
    return found


def test_a_disk_that_is_full_in_mid_sweep(tiny: Path, small_disk: Path) -> None:
    root = small_disk / "outputs"
    code, err = run(tiny, root)
    assert code == 1, err
    assert "No space left on device" in err
    assert "Traceback" not in err and str(root) in err, err
    kept = answers(root)
    assert kept

    subprocess.run(["mount", "-o", "remount,size=200m", small_disk], check=True)
    code, err = run(tiny, root)
    assert code == 0, err
    assert max(answers(root).values()) == 1  # nothing that was kept was generated again
    assert kept.keys() < answers(root).keys() and len(answers(root)) == (POINTS + 2) * PROMPTS
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    runs = client.search_runs(["1"], max_results=1000)
    assert Counter((run.info.status, run.data.tags["sweep.role"]) for run in runs) == {
        ("FINISHED", "sweep"): 1,
        ("FINISHED", "control"): 1,
        ("FINISHED", "point"): POINTS,
    }
