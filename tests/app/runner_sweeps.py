"""Sweeps of tests in this process, on one scripted engine, and their runs in MLflow."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from conftest import MAX_MODEL_LEN
from sweep.config.schema import SweepConfig
from sweep.engines.base import Engine
from sweep.inputs.checkpoint import Checkpoint
from sweep.points.point import Point
from sweep.testing import ScriptedConfig

Configure = Callable[..., SweepConfig]


def shared_scripted_engine(checkpoint: Checkpoint, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Return a scripted engine that all sweeps of a test share."""
    engine = ScriptedConfig().open(checkpoint.files, MAX_MODEL_LEN, folder)
    monkeypatch.setattr(ScriptedConfig, "open", lambda *_: engine)
    return engine


def scaled(configure: Configure, *factors: float, **changes: object) -> list[Point]:
    return [
        Point(configure(transform={"name": "scale", "factor": f}, **changes), (("transform.factor", f),))
        for f in factors
    ]


def runs_of(config: SweepConfig) -> dict[str, Run]:
    client = MlflowClient(f"sqlite:///{config.sweep.root / 'mlflow.db'}")
    [experiment] = client.search_experiments(filter_string="name = 'sweep'")
    runs = client.search_runs([experiment.experiment_id])
    return {run.info.run_name: run for run in runs}


def table_of(config: SweepConfig, run: Run) -> list[dict[str, object]]:
    client = MlflowClient(f"sqlite:///{config.sweep.root / 'mlflow.db'}")
    table = json.loads(Path(client.download_artifacts(run.info.run_id, "generations.json")).read_text())
    return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
