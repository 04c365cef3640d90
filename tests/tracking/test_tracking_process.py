"""A tracker in a process of its own: what it does is what `Tracker` does, and its process is nobody's burden."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient

import point_records
from point_records import TABLE
from proxies import Door
from servers import free_port
from sweep.app.sweep_runner import SweepRunner
from sweep.config.schema import SweepConfig, TrackingConfig
from sweep.console.terminal import Terminal
from sweep.engines.base import Engine
from sweep.errors import ConfigError, TrackerUnreachable, TrackingError
from sweep.points.point import Point
from sweep.tracking import Tracker, open_tracker, template
from sweep.tracking.process import TrackerProcess

RECORD = replace(
    point_records.RECORD,
    parameters={"transform.factor": 2.0},
    axes=(("transform.factor", 2.0),),
    metrics={"cost/requests": 3.0},
)


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """Folder with a new store, which tests of processes need not see made."""
    template.create(tmp_path / "mlflow.db", (tmp_path / "artifacts").as_uri())
    return tmp_path


@pytest.fixture
def tracker(ready: Path) -> Iterator[TrackerProcess]:
    tracker = TrackerProcess(TrackingConfig(), ready, "some")
    yield tracker
    tracker.end()


def process_of(tracker: TrackerProcess) -> psutil.Process:
    return psutil.Process(tracker.remote.process.pid)


def test_tracker_kind_follows_in_process(tmp_path: Path) -> None:
    assert isinstance(open_tracker(TrackingConfig(in_process=True), tmp_path, "some"), Tracker)
    apart = open_tracker(TrackingConfig(), tmp_path, "some")
    assert isinstance(apart, TrackerProcess) and not any(tmp_path.iterdir())
    apart.end()
    assert apart.remote.process.returncode == -signal.SIGKILL  # nothing was asked of it, so nothing is waited for


def test_publication_equals_that_from_this_process(
    configure: Callable[..., SweepConfig], on_shared_engine: Engine
) -> None:
    told = []
    for in_process in (True, False):
        changes = {"tracking": {"in_process": in_process}}
        points = [
            Point(configure(transform={"name": "scale", "factor": f}, **changes), (("factor", f),)) for f in (2.0, 3.0)
        ]
        with SweepRunner(configure(**changes), f"apart-{in_process}", "sweep …", Terminal()) as runner:
            runner.run(points)
            assert isinstance(runner.tracker, Tracker if in_process else TrackerProcess)
        assert not runner.problems
        assert runner.tracker is not None and runner.tracker.links is not None and runner.tracker.is_local
        client = MlflowClient(f"sqlite:///{configure().sweep.root / 'mlflow.db'}")
        runs = client.search_runs([runner.tracker.links.experiment], f"tags.`sweep.id` = 'apart-{in_process}'")
        shown = {}
        for run in runs:
            files = {file.path for file in client.list_artifacts(run.info.run_id)}
            metrics = {k: v for k, v in run.data.metrics.items() if not k.startswith("cost/")}
            shown[run.data.tags["sweep.role"], run.info.run_name.partition("-")[0]] = (
                run.info.status,
                run.data.params,
                metrics,
                files,
            )
        told.append(shown)
    assert told[0] == told[1] and len(told[0]) == 4


def test_errors_keep_their_type_and_cause(tmp_path: Path) -> None:
    away = TrackerProcess(TrackingConfig(uri=f"http://127.0.0.1:{free_port()}"), tmp_path, "some")
    with pytest.raises(TrackerUnreachable, match="cannot be used") as raised:
        away.connect()
    assert "Traceback" in raised.value.__notes__[0] and "Caused by" not in str(raised.value)
    with pytest.raises(TrackingError) as failed:
        away.parent_status()
    assert failed.value.reason and failed.value.reason != str(failed.value)
    away.end()
    none = TrackerProcess(TrackingConfig(uri="nonsense://there"), tmp_path, "some")
    with pytest.raises(ConfigError, match=r"^tracking\.uri: nonsense://there cannot be used"):
        none.connect()
    none.end()


def test_killed_process_fails_one_call_and_is_replaced(
    tracker: TrackerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker.connect()
    tracker.start("name", "sweep …", "seed: 0\n")
    parent, place = tracker.parent, tracker.place
    process, send = process_of(tracker), tracker.remote.call
    process.suspend()

    def ask_and_kill(*call: Any) -> Future[Any]:
        asked = send(*call)
        process.kill()  # in the middle of the call
        return asked

    with monkeypatch.context() as patch:
        patch.setattr(tracker.remote, "call", ask_and_kill)
        with pytest.raises(TrackingError, match=r"the process that publishes has ended \(exit code -9\)"):
            tracker.publish(RECORD, TABLE, retry=False)
    run_id = tracker.publish(RECORD, TABLE, retry=True)
    assert (tracker.parent, tracker.place) == (parent, place)
    tracker.finish("FINISHED", {})
    assert tracker.links is not None
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert client.get_run(run_id).data.tags["mlflow.parentRunId"] == parent
    runs = client.search_runs([tracker.links.experiment])
    assert sorted(run.data.tags["sweep.role"] for run in runs) == ["point", "sweep"]


@pytest.mark.slow
def test_parent_run_is_kept_if_it_cannot_be_found_again(tracking_server: str, experiment: str, tmp_path: Path) -> None:
    """The process dies while the server is away: points are published as the run's children when both are back."""
    with closing(Door(tracking_server)) as door:
        door.open()
        tracker = TrackerProcess(TrackingConfig(uri=door.url, experiment=experiment), tmp_path, "some")
        tracker.connect()
        tracker.start("name", "sweep …", "seed: 0\n")
        parent = tracker.parent
        process_of(tracker).kill()
        door.close()
        for _ in range(2):
            with pytest.raises(TrackingError):
                tracker.publish(RECORD, TABLE, retry=True)
        assert tracker.parent == parent
        door.open()
        run_id = tracker.publish(RECORD, TABLE, retry=True)
        tracker.finish("FINISHED", {})
        tracker.end()
    client = MlflowClient(tracking_server)
    assert client.get_run(run_id).data.tags["mlflow.parentRunId"] == parent
    assert parent is not None and client.get_run(parent).info.status == "FINISHED"


def test_unpicklable_call_fails_alone(tracker: TrackerProcess) -> None:
    tracker.connect()
    tracker.start("name", "sweep …", "seed: 0\n")
    pid = process_of(tracker).pid
    unsent = replace(RECORD, parameters={"transform.factor": lambda: 2.0})
    with pytest.raises(TrackingError, match="cannot be reached: Can't pickle"):
        tracker.publish(unsent, TABLE, retry=False)
    unread = replace(RECORD, parameters={"transform.factor": Unreadable()})
    with pytest.raises(TrackingError, match="The call to MLflow failed: ValueError: not here"):
        tracker.publish(unread, TABLE, retry=False)
    tracker.publish(RECORD, TABLE, retry=False)
    assert process_of(tracker).pid == pid
    tracker.end()
    with pytest.raises(TrackingError, match="the sweep has ended"):
        tracker.publish(RECORD, TABLE, retry=False)


class Unreadable:
    """Can be pickled, and not read again."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return _refuse, ("not here",)


def _refuse(reason: str) -> None:
    raise ValueError(reason)


def test_interrupted_call_does_not_disturb_later_calls(tracker: TrackerProcess) -> None:
    tracker.connect()
    process_of(tracker).suspend()
    asked = tracker.remote.call(
        "call", "parent_status", (), {}
    )  # whoever asked has been interrupted, and waits no more
    process_of(tracker).resume()
    assert tracker.start("name", "sweep …", "seed: 0\n") is False
    assert asked.result()[0] is None and tracker.parent is not None
    tracker.finish("KILLED", {})


def test_tracker_process_ignores_group_signals(tracker: TrackerProcess) -> None:
    tracker.connect()
    process = process_of(tracker)
    for asked in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2):
        process.send_signal(asked)
    tracker.start("name", "sweep …", "seed: 0\n")
    tracker.finish("KILLED", {})
    assert process.is_running() and tracker.parent_status() == "KILLED"
    tracker.end()
    assert not process.is_running()


ORPHAN = """
import sys, time
from pathlib import Path
from sweep.config.schema import TrackingConfig
from sweep.tracking.process import TrackerProcess

tracker = TrackerProcess(TrackingConfig(), Path(sys.argv[1]), "some")
if sys.argv[2] == "used":
    tracker.connect()
print(tracker.remote.process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("used", ["used", "importing"])
def test_tracker_process_ends_with_its_parent(used: str, ready: Path) -> None:
    command = [sys.executable, "-c", ORPHAN, str(ready), used]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        process = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
    until = time.monotonic() + 30
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE and time.monotonic() < until:
        time.sleep(0.05)
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
