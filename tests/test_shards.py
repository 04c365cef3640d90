"""Sweeps in pieces: whoever works them off, they are what they are in one piece."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

FACTORS = ",".join(f"{1 + i / 10:.1f}" for i in range(1, 25))


def arguments(tiny: Path, outputs: Path, *more: str) -> list[str]:
    given = ["transform=scale", f"transform.factor={FACTORS}", "prompts.items=[Hi,Ho,He]", "sampling.max_tokens=8"]
    return [*given, f"model.id={tiny}", f"sweep.dir={outputs}", *more]


def sweep(folder: Path, *overrides: str, code: int = 0, module: str = "sweep") -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *overrides], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def generations(outputs: Path) -> dict[str, list[tuple[str, list[int]]]]:
    """Return each point's answers by prompt, by the point's name."""
    found: dict[str, list[tuple[str, list[int]]]] = {}
    for path in (outputs / "sweeps").glob("*/points/*.parquet"):
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        assert rows, path
        found[rows[0]["name"]] = sorted((row["prompt_id"], row["token_ids"]) for row in rows)
    return found


def runs_of(uri: str) -> list[Run]:
    client = MlflowClient(uri)
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()], max_results=1000))


def expect_complete(outputs: Path, uri: str | None = None) -> None:
    """All 24 points and the control are there once, finished, as children of one finished run."""
    runs = runs_of(uri or f"sqlite:///{outputs / 'mlflow.db'}")
    assert Counter(run.data.tags["sweep.role"] for run in runs) == {"point": 24, "control": 1, "sweep": 1}
    assert {run.info.status for run in runs} == {"FINISHED"}
    [parent] = [run.info.run_id for run in runs if run.data.tags["sweep.role"] == "sweep"]
    assert {run.data.tags.get("mlflow.parentRunId", parent) for run in runs} == {parent}
    assert len({run.data.tags["sweep.result"] for run in runs if "sweep.result" in run.data.tags}) == 25


def journaled(outputs: Path) -> Counter[tuple[str, str, str]]:
    """Return how often each answer was generated, by fingerprint, kind and prompt."""
    found: Counter[tuple[str, str, str]] = Counter()
    for path in (outputs / "journal").glob("*/*/*.jsonl"):
        for line in path.read_text().splitlines()[1:]:
            entry = json.loads(line[line.index("{") :])
            found[path.parent.name, entry["kind"], entry["prompt"]] += 1
    return found


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[str, list[int]]]]:
    """The sweep's answers, generated in one piece."""
    folder = tmp_path_factory.mktemp("whole")
    sweep(folder, *arguments(tiny, folder / "outputs"))
    return generations(folder / "outputs")


def test_workers_of_this_machine(tiny: Path, tmp_path: Path, whole: dict[str, Any]) -> None:
    outputs = tmp_path / "outputs"
    sweep(tmp_path, *arguments(tiny, outputs, "hydra.launcher.workers=2", "hydra.launcher.shards=4"))
    assert generations(outputs) == whole
    expect_complete(outputs)
    assert set(journaled(outputs).values()) == {1}
    [parent] = [run for run in runs_of(f"sqlite:///{outputs / 'mlflow.db'}") if run.data.tags["sweep.role"] == "sweep"]
    assert parent.data.metrics["cost/engine_starts"] == 2
