"""The main job as a user starts it: a process of its own, the embedded model, MLflow's SQLite store."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from mlflow import MlflowClient


def test_the_first_command_of_the_readme(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW_", "VLLM_"))}
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "sweep", "transform=scale", "transform.factor=1.2,1.5"],
        cwd=tmp_path,
        env=environment | {"HOME": str(home), "MLFLOW_RUN_ID": "0" * 32},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "INFO" not in done.stderr, done.stderr
    assert re.search(r"control .*factor=1\.2 .*factor=1\.5 ", done.stdout, re.DOTALL), done.stdout
    assert "Compare: run scripts/ui, then open http://127.0.0.1:5000/#/experiments/1/runs?" in done.stdout

    outputs = tmp_path / "outputs"
    assert {path.name for path in tmp_path.iterdir()} == {"home", "outputs"}
    assert not [path for path in home.rglob("*") if path.is_file()], "files were written outside sweep.dir"

    client = MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}")
    runs = client.search_runs(["1"])
    roles = {run.info.run_name: run.data.tags["sweep.role"] for run in runs}
    assert sorted(roles.values()) == ["control", "point", "point", "sweep"]
    assert {"control", "factor=1.2", "factor=1.5"} < set(roles)
    assert {run.info.status for run in runs} == {"FINISHED"}
    points = {run.info.run_name: run for run in runs}
    assert points["control"].data.metrics["quality/exact_match"] >= 0.9
    assert points["factor=1.5"].data.params["transform.factor"] == "1.5"
    assert points["factor=1.5"].data.metrics["perturbation/relative_l2"] > 0.49
    table = json.loads(Path(client.download_artifacts(points["control"].info.run_id, "generations.json")).read_text())
    answers = {
        row[table["columns"].index("prompt")]: row[table["columns"].index("generation")] for row in table["data"]
    }
    assert "Paris" in answers["Please tell me about the capital of France."]
    assert "summer" in answers["When is the day longest during the year?"].lower()
    assert "sun" in answers["Where is bigger, the moon or the sun?"].lower()
    assert len(answers["Tell me a creative story."].split()) > 10
