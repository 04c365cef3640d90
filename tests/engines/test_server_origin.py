"""Resumed sweeps detect a server that was upgraded or that serves another model under the same name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest
from mlflow import MlflowClient

from scripted_server import ScriptedServer, as_http, scripted_server
from servers import free_port
from sweep.app.dry_run import DryRun
from sweep.app.sweep_runner import SweepRunner
from sweep.config.schema import SweepConfig
from sweep.console.terminal import Terminal
from sweep.errors import ConfigError, EngineError, PointsFailed
from sweep.points.point import Point

Configure = Callable[..., SweepConfig]
COMPLETIONS = "/v1/completions"
OLD, NEW = (
    "vllm 0.32.0 (server) with /models/tiny, max_model_len 256",
    "vllm 0.33.0 (server) with /models/tiny, max_model_len 256",
)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    monkeypatch.setattr("sweep.engines.server.in_flight.FIRST_PAUSE", 0.01)
    monkeypatch.setattr("sweep.engines.server.handshake.PAUSE", 0.01)
    monkeypatch.setattr("sweep.engines.supervisor.RETRY_PAUSE", 0.01)
    with scripted_server() as running:
        yield running


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of one store for all sweeps of this module; creating it takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def points(configure: Configure, server: ScriptedServer, store: str) -> Callable[..., list[Point]]:
    def make(*factors: float, **settings: object) -> list[Point]:
        config = configure()
        changes: dict[str, Any] = {
            "engine": {"name": "server", "url": server.url, "connect_timeout": 2, "patience": 2, "max_in_flight": 1},
            "tracking": {"uri": store, "experiment": config.sweep.dir},
            "sweep": {"dir": config.sweep.dir} | settings,
        }
        return [
            Point(configure(transform={"name": "scale", "factor": f}, **changes), (("transform.factor", f),))
            for f in factors
        ]

    return make


def run(points: list[Point], name: str = "a") -> SweepRunner:
    with SweepRunner(points[0].config, name, "sweep …", Terminal()) as runner:
        runner.run(points)
    return runner


def refuse(server: ScriptedServer, number: int) -> None:
    """Reject a request by its number; requests of the identity check are not counted."""
    numbers = count(1)

    def reply(body: dict[str, Any]) -> list[bytes] | None:
        is_counted = body.get("ignore_eos") is False
        return [as_http({"error": "refused for the test"}, 400)] if is_counted and next(numbers) == number else None

    server.replies[COMPLETIONS] = reply


def headers(points: list[Point]) -> list[dict[str, str]]:
    files = sorted((points[0].config.sweep.root / "journal").rglob("*.jsonl"))
    return [json.loads(file.read_text().split("\n")[0].split(" ", 1)[1])["header"] for file in files]


def tags(points: list[Point]) -> dict[str, dict[str, str]]:
    tracking = points[0].config.tracking
    client = MlflowClient(tracking.uri)
    experiment = client.get_experiment_by_name(tracking.experiment)
    runs = client.search_runs([experiment.experiment_id]) if experiment else []
    return {run.info.run_name: run.data.tags for run in runs if run.info.status == "FINISHED"}


def test_the_version_and_the_model_are_recorded(server: ScriptedServer, points: Callable[..., list[Point]]) -> None:
    run(points(1.5))
    recorded = {"sweep": "a", "engine": "vllm 0.32.0 (server)", "served": "/models/tiny, max_model_len 256"}
    assert headers(points(1.5)) == [recorded] * 2
    assert tags(points(1.5))["control"]["sweep.engine"] == "vllm 0.32.0 (server)"
    assert tags(points(1.5))["control"]["sweep.served_model"] == "/models/tiny, max_model_len 256"


def begun(server: ScriptedServer, points: list[Point]) -> None:
    """Leave a sweep with one finished and one failed point."""
    refuse(server, 5)  # the control has three
    runner = run(points)
    failed = {result.point.role: bool(result.error) for result in runner.results.values()}
    assert failed == {"control": False, "point": True}
    server.replies.clear()


CHANGES: dict[str, tuple[dict[str, object], str]] = {
    "version": ({"version": "0.33.0"}, NEW),
    "model": ({"root": "/models/other"}, "vllm 0.32.0 (server) with /models/other, max_model_len 256"),
    "room": ({"room": 512}, "vllm 0.32.0 (server) with /models/tiny, max_model_len 512"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_resume_with_a_changed_server_is_refused(
    server: ScriptedServer, points: Callable[..., list[Point]], kind: str
) -> None:
    begun(server, points(1.5))
    changes, now = CHANGES[kind]
    for name, value in changes.items():
        setattr(server, name, value)
    requests = len(server.asked)
    with pytest.raises(ConfigError) as caught:
        run(points(1.5))
    assert str(caught.value) == (
        f"sweep.resume: this sweep was started with {OLD}, but the server now runs {now}. "
        "Set sweep.resume=force to continue with answers of both, or sweep.resume=false to start over."
    )
    assert len(server.asked) == requests


def test_forced_resume_continues_and_records_both_versions(
    server: ScriptedServer, points: Callable[..., list[Point]]
) -> None:
    begun(server, points(1.5))
    server.version = "0.33.0"
    runner = run(points(1.5, resume="force"))
    assert not any(result.error for result in runner.results.values())
    assert tags(points(1.5))["control"]["sweep.engine"] == "vllm 0.32.0 (server)"
    engines = {header["engine"] for header in headers(points(1.5))}
    assert engines == {"vllm 0.32.0 (server)", "vllm 0.33.0 (server)"}


def test_answers_of_another_server_version_are_not_reused(
    server: ScriptedServer, points: Callable[..., list[Point]]
) -> None:
    run(points(1.5))
    first = len(server.asked)
    run(points(1.5), "b")
    assert len(server.asked) == first  # all answers are reused
    server.version = "0.33.0"
    run(points(1.5), "c")
    assert len(server.asked) == 2 * first


def test_finished_point_of_another_server_version_is_refused_with_new_points(
    server: ScriptedServer, points: Callable[..., list[Point]]
) -> None:
    run(points(1.5))
    server.version = "0.33.0"
    with pytest.raises(ConfigError, match=r"started with vllm 0\.32\.0 \(server\) with"):
        run(points(1.5, 2.0))


def test_a_finished_sweep_and_a_dry_run_need_no_server(
    server: ScriptedServer, points: Callable[..., list[Point]], capfd: pytest.CaptureFixture[str]
) -> None:
    begun(server, points(1.5))
    here, there = server.url, f"http://127.0.0.1:{free_port()}"
    server.url = there
    DryRun(points(1.5)[0].config, "a", Terminal()).show(points(1.5))
    assert "1 engine start," in capfd.readouterr().out
    with pytest.raises(ConfigError, match=f"engine.url: {there}: no server answers at this address"):
        run(points(1.5))
    server.url = here
    run(points(1.5))
    server.url = there
    runner = run(points(1.5))
    assert len(runner.results) == 2 and runner.engine_starts == 0


def test_server_upgrade_during_a_run_ends_the_sweep(server: ScriptedServer, points: Callable[..., list[Point]]) -> None:
    numbers = count(1)

    def reply(body: dict[str, Any]) -> None:
        if body.get("ignore_eos") is False and next(numbers) == 5:
            server.version = "0.33.0"

    server.replies[COMPLETIONS] = reply
    with pytest.raises((EngineError, PointsFailed)) as caught:
        run(points(1.5, 2.0))
    assert f"engine.url: the server changed from {OLD} to {NEW}. Answers of both are not mixed." in str(caught.value)
    assert {header["engine"] for header in headers(points(1.5))} == {"vllm 0.32.0 (server)"}
