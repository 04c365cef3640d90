"""A sweep survives the death of its engine; the ways in which vLLM dies are in `engines/test_vllm_failures.py`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from scripted_sweeps import SCRIPTED
from tiny_models import make_model

Sweep = Callable[..., tuple[int, str, str]]


FACTORS = ["transform=scale", "transform.factor=1.5,2e38", "prompts.items=[Hi,Ho]"]
FAILED_ALONE = {"control": "FINISHED", "factor=1.5": "FINISHED", "factor=2e+38": "FAILED", "sweep": "FAILED"}


def statuses_of(outputs: Path) -> dict[str, str]:
    """Return MLflow's statuses of points by name, and of the sweep's own run."""
    runs = MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}").search_runs(["1"])
    return {"sweep" if run.data.tags["sweep.role"] == "sweep" else run.info.run_name: run.info.status for run in runs}


def test_point_that_kills_the_engine_fails_alone(command_line: Sweep, tiny: Path, tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    code, _, err = command_line(
        *SCRIPTED, "engine.die_above=1e30", f"model.id={tiny}", f"sweep.dir={outputs}", *FACTORS
    )
    assert code == 1 and "Traceback" not in err, err
    assert "The scripted engine crashed: a request has an entry above 1e+30" in err
    assert statuses_of(outputs) == FAILED_ALONE


@pytest.mark.slow
def test_point_that_kills_vllm_fails_alone(tmp_path: Path) -> None:
    """A mean over rows of this size overflows in GPT-2's layer norm, though every entry that is sent is finite."""
    model, outputs = make_model(tmp_path / "gpt2", "gpt2"), tmp_path / "outputs"
    done = subprocess.run(
        [sys.executable, "-m", "sweep", f"model.id={model}", "model.dtype=float32", f"sweep.dir={outputs}", *FACTORS],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "warning: The model computed non-finite logits" in done.stderr
    assert statuses_of(outputs) == FAILED_ALONE
