"""Sweeps at the same time on one store: none fails, none loses a row."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from mlflow import MlflowClient

from servers import postgresql

SWEEPS, POINTS, PROMPTS = 8, 3, 2


def run_all(tiny: Path, root: Path, uri: str, folder: Path) -> None:
    """Run the sweeps at once, in processes of their own."""
    running = []
    for number in range(SWEEPS):
        factors = ",".join(f"{number + i / 10:.1f}" for i in range(1, POINTS + 1))
        command = [sys.executable, "-m", "sweep", "transform=scale", f"transform.factor={factors}", f"model.id={tiny}"]
        command += ["prompts.items=[Hi,Ho]", "sampling.max_tokens=4", f"sweep.dir={root}", f"tracking.uri={uri}"]
        with (folder / f"{number}.txt").open("w") as output:
            running.append(subprocess.Popen(command, stdout=output, stderr=output, cwd=folder))
    codes = [process.wait(400) for process in running]
    assert codes == [0] * SWEEPS, [(folder / f"{i}.txt").read_text()[-800:] for i in range(SWEEPS) if codes[i]]


def check(uri: str, folder: Path) -> None:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("sweep")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    assert Counter(run.info.status for run in runs) == {"FINISHED": SWEEPS * (POINTS + 2)}
    assert Counter(Counter(run.data.tags["sweep.id"] for run in runs).values()) == {POINTS + 2: SWEEPS}
    for run in runs:
        if run.data.tags["sweep.role"] != "sweep":
            table = client.download_artifacts(run.info.run_id, "generations.json", str(folder))
            assert len(json.loads(Path(table).read_text())["data"]) == PROMPTS
            assert run.data.metrics["cost/requests"] >= 0 and run.data.params["transform"]


def test_eight_sweeps_at_once(tiny: Path, tmp_path: Path, subtests: pytest.Subtests) -> None:
    root = tmp_path / "outputs"
    with subtests.test("one new SQLite file"):
        uri = f"sqlite:///{tmp_path / 'store.db'}"
        run_all(tiny, root, uri, tmp_path)
        check(uri, tmp_path)
    # What was generated above is published, by all sweeps at the same time.
    with subtests.test("one new PostgreSQL database"), postgresql() as uri:
        run_all(tiny, root, uri, tmp_path)
        check(uri, tmp_path)
