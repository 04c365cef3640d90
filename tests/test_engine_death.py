"""A sweep outlives its engine, and no process outlives a sweep; how engines die is tried in `engines/test_vllm_death`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from mlflow import MlflowClient

from tiny_models import make_model


def test_a_point_that_kills_the_engine_fails_and_no_other(tmp_path: Path) -> None:
    """A mean over rows of this size overflows in GPT-2's layer norm, though every entry that is sent is finite."""
    model = make_model(tmp_path / "gpt2", "gpt2")
    outputs = tmp_path / "outputs"
    overrides = ["model.dtype=float32", "prompts.items=[Hi,Ho]", "transform=scale", "transform.factor=1.5,2e38"]
    done = subprocess.run(
        [sys.executable, "-m", "sweep", f"model.id={model}", f"sweep.dir={outputs}", *overrides],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "warning: The model computed non-finite logits" in done.stderr and "Traceback" not in done.stderr
    client = MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}")
    statuses = {run.info.run_name: run.info.status for run in client.search_runs(["1"])}
    assert statuses["factor=2e+38"] == "FAILED" and statuses["factor=1.5"] == statuses["control"] == "FINISHED"
    assert "RUNNING" not in statuses.values()
