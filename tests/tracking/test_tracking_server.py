"""Publication to a real MLflow server on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from mlflow import MlflowClient

from proxies import Door, losing_replies
from servers import free_port, mlflow_server
from sweep.app.sweep_runner import SweepRunner
from sweep.config.schema import SweepConfig, TrackingConfig
from sweep.console.terminal import Terminal
from sweep.engines import VLLMConfig
from sweep.engines.base import Engine
from sweep.errors import ConfigError
from sweep.points.point import Point
from sweep.tracking import template
from sweep.tracking.store import Store

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut the pauses between attempts short."""
    monkeypatch.setattr("sweep.util.retry.FIRST_WAIT", 0.05)
    monkeypatch.setattr("sweep.util.retry.LONGEST_WAIT", 0.5)
    monkeypatch.setattr("sweep.tracking.store.PROBE_SECONDS", 0.05)


def statuses(server: str, experiment: str) -> dict[str, str]:
    """Return the status of each run of an experiment by its name, which no two have."""
    client = MlflowClient(server)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    runs = client.search_runs([found.experiment_id])
    assert len({run.info.run_name for run in runs}) == len(runs)
    return {run.info.run_name: run.info.status for run in runs}


def test_a_sweep_on_a_server(
    tracking_server: str,
    experiment: str,
    configure: Callable[..., SweepConfig],
    on_shared_engine: Engine,
    tmp_path: Path,
) -> None:
    changes = {"tracking": {"uri": tracking_server, "experiment": experiment}}
    with SweepRunner(configure(**changes), "on-server", "sweep …", Terminal()) as runner:
        runner.run([Point(configure(transform={"name": "scale", "factor": 2.0}, **changes), (("factor", 2.0),))])
        assert runner.tracker is not None and runner.tracker.links is not None
        url = runner.tracker.links.full(runner.tracker.links.side_by_side)
    assert statuses(tracking_server, experiment) == dict.fromkeys(("on-server", "control", "factor=2"), "FINISHED")
    client = MlflowClient(tracking_server)
    found = client.get_experiment_by_name(experiment)
    assert found is not None and url.startswith(f"{tracking_server}/#/experiments/{found.experiment_id}/runs?")
    [point] = client.search_runs([found.experiment_id], "attributes.run_name = 'factor=2'")
    table = client.download_artifacts(point.info.run_id, "generations.json", str(tmp_path))
    assert "Why is the sky blue?" in Path(table).read_text()
    assert not (configure().sweep.root / "mlflow.db").exists()


def test_server_lost_during_engine_start_is_retried(
    store_template: Callable[[], Path],
    configure: Callable[..., SweepConfig],
    on_shared_engine: Engine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server of its own, which really ends: the client keeps connections to it."""
    port, up, back = free_port(), ExitStack(), ThreadPoolExecutor(1)
    template.create(tmp_path / "server.db", "mlflow-artifacts:")

    def serve() -> str:
        return up.enter_context(mlflow_server(tmp_path, tmp_path / "server.db", tmp_path / "files", port))

    def open_engine(*_: object) -> Engine:
        up.close()
        back.submit(serve)
        return on_shared_engine

    changes = {"tracking": {"uri": serve()}}
    monkeypatch.setattr(VLLMConfig, "open", open_engine)
    with up:
        with SweepRunner(configure(**changes), "patient", "sweep …", Terminal()) as runner:
            runner.run([Point(configure(**changes))])
        published = statuses(f"http://127.0.0.1:{port}", "sweep")
    assert published == dict.fromkeys(("patient", "control"), "FINISHED")
    assert not runner.problems


def test_started_sweep_continues_without_its_server(
    tracking_server: str, experiment: str, configure: Callable[..., SweepConfig], on_shared_engine: Engine
) -> None:
    def sweep(points: list[Point]) -> SweepRunner:
        with SweepRunner(points[0].config, "on", "sweep …", Terminal()) as runner:
            runner.run(points)
        return runner

    with closing(Door(tracking_server)) as door:
        changes = {"tracking": {"uri": door.url, "experiment": experiment, "patience": 0.0}}
        points = [
            Point(configure(transform={"name": "scale", "factor": factor}, **changes), (("transform.factor", factor),))
            for factor in (2.0, 3.0)
        ]
        with pytest.raises(ConfigError, match=r"tracking\.uri"):  # nothing is there to go on with: it may be mistyped
            sweep(points)
        door.open()
        assert not sweep(points[:1]).problems
        door.close()
        alone = sweep(points)
        assert {result.error for result in alone.results.values()} == {None}
        assert any("not published, kept" in line for line in alone.problems)
        assert alone.problems[-1].endswith("To publish finished points later, run: sweep …")
        door.open()
        late = sweep(points)
        assert late.engine_starts == 0 and not late.problems
    names = ("control", "factor=2", "factor=3", "on")
    assert statuses(tracking_server, experiment) == dict.fromkeys(names, "FINISHED")


def test_lost_replies_cause_no_duplicates(
    tracking_server: str, experiment: str, configure: Callable[..., SweepConfig], on_shared_engine: Engine
) -> None:
    """What was asked for is done, and the answer says 502: as proxies do when they lose patience."""
    lost = {"runs/create": 3, "runs/log-batch": 2, "runs/update": 2, "artifacts": 2}
    points = [(factor, {"name": "scale", "factor": factor}) for factor in (2.0, 3.0)]
    with losing_replies(tracking_server, lost) as proxy:
        changes = {"tracking": {"uri": proxy, "experiment": experiment}}
        with SweepRunner(configure(**changes), "lossy", "sweep …", Terminal()) as runner:
            runner.run([Point(configure(transform=t, **changes), (("transform.factor", f),)) for f, t in points])
    assert not any(lost.values()) and not runner.problems
    names = ("control", "factor=2", "factor=3", "lossy")
    assert statuses(tracking_server, experiment) == dict.fromkeys(names, "FINISHED")


def test_store_of_a_killed_creator_is_created_again(tmp_path: Path) -> None:
    """SQLite does not undo MLflow's migrations: a file that is half of a store would stay so for good."""
    code = (
        "import os, sys; from pathlib import Path; from sqlalchemy import Engine, event; "
        "from sweep.config.schema import TrackingConfig; from sweep.tracking.store import Store; "
        "event.listen(Engine, 'after_cursor_execute', "
        "lambda c, cursor, said, *_: os._exit(9) if 'CREATE INDEX index_metrics' in said else None); "
        "Store(TrackingConfig(), Path(sys.argv[1]))"
    )
    cold = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}  # without a template to copy
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=cold, capture_output=True, timeout=120)
    assert killed.returncode == 9, killed.stderr
    assert Store(TrackingConfig(), tmp_path).experiment


def test_shared_database_is_created_once(tmp_path: Path) -> None:
    """MLflow's own migrations, run by several processes at a time, leave a SQLite file that no one can open."""
    code = (
        "import sys; from pathlib import Path; from sweep.config.schema import TrackingConfig; "
        "from sweep.tracking.store import Store; Store(TrackingConfig(uri=sys.argv[1]), Path(sys.argv[2]))"
    )
    uri = f"sqlite:///{tmp_path / 'shared.db'}"
    commands = [[sys.executable, "-c", code, uri, str(tmp_path / str(number))] for number in range(3)]
    cold = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}  # without a template to copy
    running = [subprocess.Popen(command, env=cold, stderr=subprocess.PIPE, text=True) for command in commands]
    errors = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0], errors
