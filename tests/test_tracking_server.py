"""Publication to a real MLflow server on loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from sweep.config import SweepConfig
from sweep.engines.base import Engine
from sweep.point import Point
from sweep.runner import Runner
from sweep.terminal import Terminal


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    store = [f"--backend-store-uri=sqlite:///{tmp_path / 'server.db'}", f"--artifacts-destination={tmp_path / 'files'}"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (tmp_path / "server.log").open("w") as log:
        process = subprocess.Popen([*command, *store], env=environment, stdout=log, stderr=log, cwd=tmp_path)
    try:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail((tmp_path / "server.log").read_text())
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def test_a_sweep_on_a_server(
    server: str, configure: Callable[..., SweepConfig], on_shared_engine: Engine, tmp_path: Path
) -> None:
    changes = {"tracking": {"uri": server, "experiment": "remote"}}
    with Runner(configure(**changes), "on-server", "sweep …", Terminal()) as runner:
        runner.run([Point(configure(transform={"name": "scale", "factor": 2.0}, **changes), (("factor", 2.0),))])
        assert runner.tracker is not None
        url = runner.tracker.comparison_url()
    client = MlflowClient(server)
    experiment = client.get_experiment_by_name("remote")
    assert experiment is not None and url.startswith(f"{server}/#/experiments/{experiment.experiment_id}/runs?")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert {name: run.info.status for name, run in runs.items()} == dict.fromkeys(
        ("on-server", "control", "factor=2"), "FINISHED"
    )
    table = client.download_artifacts(runs["factor=2"].info.run_id, "generations.json", str(tmp_path))
    assert "Why is the sky blue?" in Path(table).read_text()
    assert not (configure().sweep.root / "mlflow.db").exists()
