"""Publication to a real MLflow server on loopback."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from mlflow import MlflowClient

from servers import free_port, losing_replies, mlflow_server
from sweep.config import SweepConfig, TrackingConfig
from sweep.engines import VLLMConfig
from sweep.engines.base import Engine
from sweep.errors import ConfigError
from sweep.point import Point
from sweep.runner import Runner
from sweep.terminal import Terminal
from sweep.tracking.store import Store


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with mlflow_server(tmp_path, tmp_path / "server.db", tmp_path / "files") as url:
        yield url


def test_a_sweep_on_a_server(
    server: str, configure: Callable[..., SweepConfig], on_shared_engine: Engine, tmp_path: Path
) -> None:
    changes = {"tracking": {"uri": server, "experiment": "remote"}}
    with Runner(configure(**changes), "on-server", "sweep …", Terminal()) as runner:
        runner.run([Point(configure(transform={"name": "scale", "factor": 2.0}, **changes), (("factor", 2.0),))])
        assert runner.tracker is not None and runner.tracker.links is not None
        url = runner.tracker.links.full(runner.tracker.links.side_by_side)
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


def test_a_server_that_goes_away_while_the_engine_starts_is_waited_for(
    configure: Callable[..., SweepConfig], on_shared_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, up, back = free_port(), ExitStack(), ThreadPoolExecutor(1)

    def serve() -> str:
        return up.enter_context(mlflow_server(tmp_path, tmp_path / "server.db", tmp_path / "files", port))

    def open_engine(*_: object) -> Engine:
        up.close()
        back.submit(serve)
        return on_shared_engine

    changes = {"tracking": {"uri": serve()}}
    monkeypatch.setattr(VLLMConfig, "open", open_engine)
    with up:
        with Runner(configure(**changes), "patient", "sweep …", Terminal()) as runner:
            runner.run([Point(configure(**changes))])
        runs = MlflowClient(f"http://127.0.0.1:{port}").search_runs(["1"])
    assert {run.info.run_name: run.info.status for run in runs} == dict.fromkeys(("patient", "control"), "FINISHED")
    assert not runner.problems


def test_a_sweep_that_has_begun_goes_on_without_its_server(
    configure: Callable[..., SweepConfig], on_shared_engine: Engine, tmp_path: Path
) -> None:
    port = free_port()
    changes = {"tracking": {"uri": f"http://127.0.0.1:{port}", "patience": 0.0}}
    points = [
        Point(configure(transform={"name": "scale", "factor": factor}, **changes), (("transform.factor", factor),))
        for factor in (2.0, 3.0)
    ]

    def sweep(points: list[Point]) -> Runner:
        with Runner(points[0].config, "on", "sweep …", Terminal()) as runner:
            runner.run(points)
        return runner

    with pytest.raises(ConfigError, match=r"tracking\.uri"):  # nothing is there to go on with: it may be mistyped
        sweep(points)
    with mlflow_server(tmp_path, tmp_path / "server.db", tmp_path / "files", port):
        assert not sweep(points[:1]).problems
    alone = sweep(points)
    assert {result.error for result in alone.results.values()} == {None}
    assert any("not published, kept" in line for line in alone.problems)
    assert alone.problems[-1].endswith("To publish what is done, later: sweep …")
    with mlflow_server(tmp_path, tmp_path / "server.db", tmp_path / "files", port):
        late = sweep(points)
        assert late.engine_starts == 0 and not late.problems
        runs = MlflowClient(f"http://127.0.0.1:{port}").search_runs(["1"])
    assert sorted((run.info.run_name, run.info.status) for run in runs) == [
        (name, "FINISHED") for name in ("control", "factor=2", "factor=3", "on")
    ]


def test_a_server_whose_replies_are_lost_has_nothing_twice(
    server: str, configure: Callable[..., SweepConfig], on_shared_engine: Engine
) -> None:
    """What was asked for is done, and the answer says 502: as proxies do when they lose patience."""
    lost = {"runs/create": 3, "runs/log-batch": 2, "runs/update": 2, "artifacts": 2}
    points = [(factor, {"name": "scale", "factor": factor}) for factor in (2.0, 3.0)]
    with losing_replies(server, lost) as proxy:
        changes = {"tracking": {"uri": proxy}}
        with Runner(configure(**changes), "lossy", "sweep …", Terminal()) as runner:
            runner.run([Point(configure(transform=t, **changes), (("transform.factor", f),)) for f, t in points])
    assert not any(lost.values()) and not runner.problems
    client = MlflowClient(server)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert sorted((run.info.run_name, run.info.status) for run in runs) == [
        (name, "FINISHED") for name in ("control", "factor=2", "factor=3", "lossy")
    ]


def test_a_store_whose_maker_died_is_made_again(tmp_path: Path) -> None:
    """SQLite does not undo MLflow's migrations: a file that is half of a store would stay so for good."""
    code = (
        "import os, sys; from pathlib import Path; from sqlalchemy import Engine, event; "
        "from sweep.config import TrackingConfig; from sweep.tracking.store import Store; "
        "event.listen(Engine, 'after_cursor_execute', "
        "lambda c, cursor, said, *_: os._exit(9) if 'CREATE INDEX index_metrics' in said else None); "
        "Store(TrackingConfig(), Path(sys.argv[1]))"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, timeout=120)
    assert killed.returncode == 9, killed.stderr
    assert Store(TrackingConfig(), tmp_path).experiment


def test_one_database_of_several_folders_is_made_once(tmp_path: Path) -> None:
    """MLflow's own migrations, run by several processes at a time, leave a SQLite file that no one can open."""
    code = (
        "import sys; from pathlib import Path; from sweep.config import TrackingConfig; "
        "from sweep.tracking.store import Store; Store(TrackingConfig(uri=sys.argv[1]), Path(sys.argv[2]))"
    )
    uri = f"sqlite:///{tmp_path / 'shared.db'}"
    commands = [[sys.executable, "-c", code, uri, str(tmp_path / str(number))] for number in range(3)]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    errors = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], errors
