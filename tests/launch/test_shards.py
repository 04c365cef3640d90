"""Sweeps in pieces: whoever works them off, they are what they are in one piece."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from servers import mlflow_server
from slurm import Slurm, slurm

FACTORS = ",".join(f"{1 + i / 10:.1f}" for i in range(1, 25))


def arguments(tiny: Path, outputs: Path, *more: str) -> list[str]:
    given = ["transform=scale", f"transform.factor={FACTORS}", "prompts.items=[Hi,Ho,He]", "sampling.max_tokens=8"]
    return [*given, f"model.id={tiny}", f"sweep.dir={outputs}", *more]


def sweep(
    folder: Path,
    *overrides: str,
    code: int = 0,
    module: str = "sweep",
    environment: Mapping[str, str] = os.environ,
) -> str:
    command = [sys.executable, "-m", module, *overrides]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def generations(outputs: Path) -> dict[str, list[tuple[str, list[int]]]]:
    """Return each point's answers by prompt, by the point's name."""
    found: dict[str, list[tuple[str, list[int]]]] = {}
    for path in (outputs / "sweeps").glob("*/points/*.parquet"):
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        assert rows, path
        found[rows[0]["name"]] = sorted((row["prompt_id"], row["token_ids"]) for row in rows)
    return found


def runs_of(uri: str) -> list[Run]:
    client = MlflowClient(uri)
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()], max_results=1000))


def expect_nothing_twice(outputs: Path) -> None:
    assert set(journaled(outputs).values()) == {1}


def expect_complete(outputs: Path, uri: str | None = None) -> None:
    """All 24 points and the control are there once, finished, as children of one finished run."""
    runs = runs_of(uri or f"sqlite:///{outputs / 'mlflow.db'}")
    assert Counter(run.data.tags["sweep.role"] for run in runs) == {"point": 24, "control": 1, "sweep": 1}
    assert {run.info.status for run in runs} == {"FINISHED"}
    [parent] = [run.info.run_id for run in runs if run.data.tags["sweep.role"] == "sweep"]
    assert {run.data.tags.get("mlflow.parentRunId", parent) for run in runs} == {parent}
    assert len({run.data.tags["sweep.result"] for run in runs if "sweep.result" in run.data.tags}) == 25


def journaled(outputs: Path) -> Counter[tuple[str, str, str]]:
    """Return how often each answer was generated, by fingerprint, kind and prompt."""
    found: Counter[tuple[str, str, str]] = Counter()
    for path in (outputs / "journal").glob("*/*/*.jsonl"):
        for line in path.read_bytes().split(b"\n")[1:]:
            with suppress(ValueError):  # a line that is not finished was never flushed
                entry = json.loads(line[line.index(b"{") :])
                found[path.parent.name, entry["kind"], entry["prompt"]] += 1
    return found


def working(outputs: Path) -> list[int]:
    """Return the processes that have shards in work."""
    states = [json.loads(path.read_text()) for path in outputs.glob("sweeps/*/shards/*/*.state.json")]
    return [state["pid"] for state in states if state["state"] == "working"]


@pytest.fixture(scope="module")
def whole(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[str, list[int]]]]:
    """The sweep's answers, generated in one piece."""
    folder = tmp_path_factory.mktemp("whole")
    sweep(folder, *arguments(tiny, folder / "outputs"))
    return generations(folder / "outputs")


def test_workers_of_this_machine(tiny: Path, tmp_path: Path, whole: dict[str, Any]) -> None:
    outputs = tmp_path / "outputs"
    sweep(tmp_path, *arguments(tiny, outputs, "hydra.launcher.workers=2", "hydra.launcher.shards=4"))
    assert generations(outputs) == whole
    expect_complete(outputs)
    expect_nothing_twice(outputs)
    [parent] = [run for run in runs_of(f"sqlite:///{outputs / 'mlflow.db'}") if run.data.tags["sweep.role"] == "sweep"]
    assert parent.data.metrics["cost/engine_starts"] == 2
    assert parent.data.metrics["cost/requests"] == 26 * 3  # 24 points, and the control twice
    own = [run for run in runs_of(f"sqlite:///{outputs / 'mlflow.db'}") if run.data.tags["sweep.role"] != "sweep"]
    assert {run.data.metrics["cost/requests"] for run in own} == {3}
    assert parent.data.metrics["cost/generate_seconds"] > 0


def test_shards_called_by_a_scheduler_publish_to_a_server(tiny: Path, tmp_path: Path, whole: dict[str, Any]) -> None:
    """Plan, work each shard, finish: as Kubernetes does it, the configuration changing after the plan."""
    outputs, plan = tmp_path / "outputs", tmp_path / "plan"
    (tmp_path / "prompts.txt").write_text("Hi\nHo\nHe\n")
    with mlflow_server(tmp_path, tmp_path / "server.db", tmp_path / "files") as uri:
        given = arguments(tiny, outputs, f"tracking.uri={uri}")
        planning = ("hydra/launcher=plan", f"hydra.launcher.folder={plan}", "hydra.launcher.shards=3")
        said = sweep(tmp_path, *given, *planning)
        assert f"3 shards: {plan / 'manifest.json'}" in said
        assert (plan / "manifest.json").stat().st_mode & 0o777 == 0o600
        for index in (2, 0, 1, 3):  # the control comes second
            if index == 2:  # waits for its control, and is interrupted: what it has generated stays
                waiting = subprocess.Popen(
                    [sys.executable, "-m", "sweep.shard", str(plan), "2"], cwd=tmp_path, stderr=subprocess.DEVNULL
                )
                until(lambda: "waiting" in (plan / "shard-00002.state.json").read_text(), waiting)
                waiting.terminate()
                assert waiting.wait(20) == 143
            else:
                sweep(tmp_path, str(plan), str(index), module="sweep.shard")
        [parent] = [run for run in runs_of(uri) if run.data.tags["sweep.role"] == "sweep"]
        assert parent.info.status == "RUNNING"
        published = [run for run in runs_of(uri) if run.info.status == "FINISHED"]
        assert len(published) > 10 and {run.data.tags["mlflow.parentRunId"] for run in published} == {
            parent.info.run_id
        }
        sweep(tmp_path, str(plan), "2", module="sweep.shard")
        said = sweep(tmp_path, *given)
        assert "Engine" not in said
        expect_complete(outputs, uri)
        assert "0 shards" in sweep(tmp_path, *given, *planning)  # nothing is left to be planned
        sweep(tmp_path, str(plan), "0", module="sweep.shard")
    assert generations(outputs) == whole
    expect_nothing_twice(outputs)


def test_what_changed_since_it_was_planned_is_refused(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("Hi\nHo\n")
    given = ["transform=scale", "transform.factor=2,3", "prompts.path=prompts.txt", f"model.id={tiny}"]
    sweep(tmp_path, *given, "hydra/launcher=plan", "hydra.launcher.folder=plan")
    (tmp_path / "prompts.txt").write_text("Hi\nHu\n")
    said = sweep(tmp_path, "plan", "0", module="sweep.shard", code=2)
    assert "have changed. Give the command again." in said and "Traceback" not in said
    assert "cannot be read" in sweep(tmp_path, "nowhere", "0", module="sweep.shard", code=2)


def test_nothing_is_planned_or_generated_beside_a_shard_at_work(tiny: Path, tmp_path: Path) -> None:
    """Whichever launcher is asked; and a plan whose place a later run has taken is not begun any more."""
    outputs, plan = tmp_path / "outputs", tmp_path / "plan"
    given = arguments(tiny, outputs, *LONG)
    planning = ("hydra/launcher=plan", f"hydra.launcher.folder={plan}", "hydra.launcher.shards=2")
    sweep(tmp_path, *given, *planning)
    shard = subprocess.Popen([sys.executable, "-m", "sweep.shard", str(plan), "0"], cwd=tmp_path)
    until(lambda: len(journaled(outputs)) > 5, shard)
    for launcher in ((), planning):
        said = sweep(tmp_path, *given, *launcher, code=75)
        assert f"Shard 0 of {plan}" in said and f"process {shard.pid}" in said
    assert shard.poll() is None
    shard.terminate()
    assert shard.wait(20) == 143
    sweep(tmp_path, *given)
    said = sweep(tmp_path, str(plan), "1", module="sweep.shard", code=75)
    assert "a later run of the sweep has taken the place of this plan" in said
    expect_complete(outputs)
    expect_nothing_twice(outputs)


def picky_scorer(tiny: Path, folder: Path, *, of_control: bool = True) -> tuple[str, ...]:
    """Return overrides with a scorer that fails on the control's answers, or on all others."""
    outputs = folder / "scorer"
    sweep(folder, "prompts.items=[Hi,Ho,He]", "sampling.max_tokens=8", f"model.id={tiny}", f"sweep.dir={outputs}")
    [path] = (outputs / "sweeps").glob("*/points/*.parquet")
    control = pq.read_table(path).column("generation").to_pylist()
    (folder / "strict.py").write_text(
        f"def same(answer):\n    if (answer in {control!r}) is {of_control}:\n        raise ValueError('no')\n    return 1.0\n"
    )
    return "plugins=[strict]", "scoring.quality=['strict:same']"


def test_the_failures_of_all_shards_count(tiny: Path, tmp_path: Path) -> None:
    """Those of each shard alone would be allowed."""
    outputs = tmp_path / "outputs"
    own = (*picky_scorer(tiny, tmp_path, of_control=False), "sweep.max_failures=6", "transform.factor=range(5,25)")
    workers = ("hydra.launcher.workers=2", "hydra.launcher.shards=5")
    said = sweep(tmp_path, *arguments(tiny, outputs, *own, *workers), code=1)
    assert "7 points failed, more than sweep.max_failures allows." in said and "Traceback" not in said
    statuses = Counter(run.info.status for run in runs_of(f"sqlite:///{outputs / 'mlflow.db'}"))
    assert not statuses["RUNNING"] and statuses["FAILED"] >= 7


def test_a_control_that_cannot_be_scored_is_compared_with_all_the_same(tiny: Path, tmp_path: Path) -> None:
    """In shards as in one piece: its answers are there."""
    own = picky_scorer(tiny, tmp_path)
    statuses = []
    for name, launcher in (("whole", ()), ("shards", ("hydra.launcher.workers=2", "hydra.launcher.shards=3"))):
        outputs = tmp_path / name
        sweep(tmp_path, *arguments(tiny, outputs, *own, *launcher), code=1)
        runs = runs_of(f"sqlite:///{outputs / 'mlflow.db'}")
        points = [run for run in runs if run.data.tags["sweep.role"] != "sweep"]
        statuses.append({run.data.tags["mlflow.runName"]: run.info.status for run in points})
    assert statuses[0]["control"] == "FAILED" and "FINISHED" in statuses[0].values()
    assert statuses[0] == statuses[1]
    expect_nothing_twice(tmp_path / "shards")


def test_a_worker_that_dies_is_replaced(tiny: Path, tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    given = arguments(tiny, outputs, *LONG, "hydra.launcher.workers=2", "hydra.launcher.shards=4")
    head = start(tmp_path, *given)
    until(lambda: len(journaled(outputs)) > 20, head)
    os.kill(working(outputs)[0], signal.SIGKILL)
    assert head.wait(300) == 0, (tmp_path / "head.log").read_text()
    expect_complete(outputs)
    expect_nothing_twice(outputs)
    assert "ended with -9" in (tmp_path / "head.log").read_text()


def test_workers_end_with_their_head_and_the_same_command_goes_on(tiny: Path, tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    given = arguments(tiny, outputs, *LONG, "hydra.launcher.workers=2", "hydra.launcher.shards=4")
    head = start(tmp_path, *given)
    until(lambda: len(journaled(outputs)) > 20, head)
    below = psutil.Process(head.pid).children(recursive=True)
    head.kill()
    head.wait()
    assert not psutil.wait_procs(below, 10)[1]
    kept = journaled(outputs)
    sweep(tmp_path, *given)
    expect_complete(outputs)
    expect_nothing_twice(outputs)
    assert kept.keys() <= journaled(outputs).keys()


# So that there is time to disturb it: few answers at a time, which are long.
MANY = ",".join(f"{first}{second}" for first in "BDF" for second in "aeio")
LONG = ("sampling.max_tokens=280", "sampling.ignore_eos=true", "engine.max_num_seqs=4", f"prompts.items=[{MANY}]")


def start(folder: Path, *overrides: str, environment: Mapping[str, str] = os.environ) -> subprocess.Popen[bytes]:
    with (folder / "head.log").open("ab") as log:
        command = [sys.executable, "-m", "sweep", *overrides]
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)


def until(holds: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 240) -> None:
    """Wait until something holds, while a process runs."""
    end = time.monotonic() + seconds
    while True:
        with suppress(FileNotFoundError):
            if holds():
                return
        assert process.poll() is None, "it ended too soon"
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.1)


SLURM = ("hydra/launcher=slurm", "hydra.launcher.shards=4", "hydra.launcher.linger_seconds=0")


def test_slurm(tiny: Path, tmp_path: Path, whole: dict[str, Any]) -> None:
    outputs = tmp_path / "outputs"
    with slurm(tmp_path / "slurm", sacct=True) as cluster:
        sweep(tmp_path, *arguments(tiny, outputs, *SLURM), environment=cluster.environment)
    [parent] = [run for run in runs_of(f"sqlite:///{outputs / 'mlflow.db'}") if run.data.tags["sweep.role"] == "sweep"]
    assert parent.data.metrics["cost/engine_starts"] == 4
    assert generations(outputs) == whole
    expect_complete(outputs)
    expect_nothing_twice(outputs)


@pytest.fixture
def busy(tiny: Path, tmp_path: Path) -> Iterator[tuple[Slurm, Path, list[str], subprocess.Popen[bytes]]]:
    """A cluster, and a sweep on it that has generated some of its answers."""
    outputs = tmp_path / "outputs"
    with slurm(tmp_path / "slurm", sacct=False) as cluster:
        given = arguments(tiny, outputs, *LONG, *SLURM, "hydra.launcher.partition=low")
        head = start(tmp_path, *given, environment=cluster.environment)
        until(lambda: len(journaled(outputs)) > 5, head)
        yield cluster, outputs, given, head
        if head.poll() is None:
            head.kill()
            head.wait()


Busy = tuple[Slurm, Path, list[str], subprocess.Popen[bytes]]


def finish(busy: Busy, tmp_path: Path) -> None:
    """Give the command again, and expect everything to be there once."""
    cluster, outputs, given, _ = busy
    sweep(tmp_path, *given, environment=cluster.environment)
    expect_complete(outputs)
    expect_nothing_twice(outputs)


def test_a_cancelled_task_is_noticed_and_the_others_go_on(busy: Busy, tmp_path: Path) -> None:
    cluster, outputs, _, head = busy
    task = next(name for name, state in cluster.jobs().items() if state == "RUNNING" and not name.endswith("_0"))
    [claim] = [path for path in outputs.glob("sweeps/*/shards/*/*.claim") if path.read_text() == task]
    cluster.run("scancel", task)
    # submitit has a task survive SIGTERM; Slurm itself sends SIGKILL some seconds later, when there may be nothing left.
    os.kill(json.loads(claim.with_suffix(".state.json").read_text())["pid"], signal.SIGKILL)
    assert head.wait(300) == 1
    said = (tmp_path / "head.log").read_text()
    assert f"Slurm's task {task} ended: CANCELLED" in said
    statuses = Counter(run.info.status for run in runs_of(f"sqlite:///{outputs / 'mlflow.db'}"))
    assert statuses["FINISHED"] >= 12 and statuses["FAILED"] >= 2 and not statuses["RUNNING"]
    finish(busy, tmp_path)


def test_a_preempted_task_goes_on_in_another_turn(busy: Busy, tmp_path: Path) -> None:
    cluster, outputs, _, head = busy
    cluster.run("sbatch", "-p", "main", "-N", "2", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 2")
    restarted: set[str] = set()

    def hurry() -> bool:
        """A job that was put back into the queue is held for two minutes."""
        for name, state in cluster.jobs().items():
            if state == "PENDING" and "Restarts=1" in cluster.attempt("scontrol", "show", "job", "-o", name):
                cluster.attempt("scontrol", "update", f"jobid={name}", "StartTime=now")
                restarted.add(name)
        return head.poll() is not None

    end = time.monotonic() + 300
    while not hurry() and time.monotonic() < end:
        time.sleep(1)
    assert restarted and head.wait(10) == 0, (tmp_path / "head.log").read_text()
    logs = "".join(path.read_text(errors="replace") for path in (outputs / "sweeps").glob("*/shards/*/task-*.log"))
    assert "Caught signal SIGUSR2" in logs and "Requeued job" in logs
    expect_complete(outputs)
    finish(busy, tmp_path)


def test_a_node_that_goes_down(busy: Busy, tmp_path: Path) -> None:
    cluster, _, _, head = busy
    cluster.run("scontrol", "update", "nodename=node1", "state=down", "reason=test")
    until(lambda: any(state == "PENDING" for state in cluster.jobs().values()) or not cluster.jobs(), head)
    cluster.attempt("scontrol", "update", "nodename=node1", "state=resume")  # it may have come back by itself
    end = time.monotonic() + 300
    while head.poll() is None and time.monotonic() < end:
        for name, state in cluster.jobs().items():
            if state == "PENDING":
                cluster.attempt("scontrol", "update", f"jobid={name}", "StartTime=now")
        time.sleep(1)
    assert head.poll() in (0, 1), (tmp_path / "head.log").read_text()
    finish(busy, tmp_path)


def test_a_head_that_is_killed(busy: Busy, tmp_path: Path) -> None:
    cluster, _, given, head = busy
    head.kill()
    head.wait()
    tasks = cluster.jobs()
    assert tasks  # they go on; were they not stopped, they would be done by the time the command is asked
    for task in tasks:
        cluster.run("scontrol", "suspend", task)
    without = (*given, "hydra.launcher.wait=false")
    assert "squeue -n sweep-" in sweep(tmp_path, *without, environment=cluster.environment, code=75)
    for task in tasks:
        cluster.run("scontrol", "resume", task)
    finish(busy, tmp_path)


def test_submitting_without_waiting(tiny: Path, tmp_path: Path, whole: dict[str, Any]) -> None:
    outputs = tmp_path / "outputs"
    with slurm(tmp_path / "slurm", sacct=True) as cluster:
        given = arguments(tiny, outputs, *SLURM, "hydra.launcher.wait=false")
        assert "submitted 4 tasks as job" in sweep(tmp_path, *given, environment=cluster.environment)
        end = time.monotonic() + 240
        while cluster.jobs():
            assert time.monotonic() < end
            time.sleep(0.5)
        assert "Slurm: submitted" not in sweep(tmp_path, *given, environment=cluster.environment)
        expect_complete(outputs)
    assert generations(outputs) == whole
    expect_nothing_twice(outputs)


def test_a_search_keeps_its_task_from_batch_to_batch(tiny: Path, tmp_path: Path) -> None:
    outputs = tmp_path / "outputs"
    search = (
        "hydra/sweeper=optuna",
        "hydra.sweeper.n_trials=6",
        "hydra.sweeper.n_jobs=2",
        "hydra.sweeper.sampler=random",
    )
    given = ("transform=scale", "transform.factor=interval(1.1,2)", "sweep.objective=maximize:perturbation/relative_l2")
    model = (f"model.id={tiny}", f"sweep.dir={outputs}", "prompts.items=[Hi,Ho]", "sampling.max_tokens=8")
    launcher = ("hydra/launcher=slurm", "hydra.launcher.shards=1", "hydra.launcher.linger_seconds=120")
    with slurm(tmp_path / "slurm", sacct=False) as cluster:
        said = sweep(tmp_path, *search, *given, *model, *launcher, environment=cluster.environment)
        assert said.count("submitted") == 1
    runs = runs_of(f"sqlite:///{outputs / 'mlflow.db'}")
    assert Counter(run.data.tags["sweep.role"] for run in runs) == {"point": 6, "control": 1, "sweep": 1}
    assert {run.info.status for run in runs} == {"FINISHED"}
    [parent] = [run for run in runs if run.data.tags["sweep.role"] == "sweep"]
    assert parent.data.metrics["cost/engine_starts"] == 1
    expect_nothing_twice(outputs)


def test_a_cluster_that_does_not_take_the_job(tiny: Path, tmp_path: Path) -> None:
    with slurm(tmp_path / "slurm", sacct=True) as cluster:
        given = arguments(tiny, tmp_path / "outputs", *SLURM, "hydra.launcher.partition=nowhere")
        said = sweep(tmp_path, *given, environment=cluster.environment, code=2)
        assert "hydra.launcher: Slurm did not take the job: " in said and "Invalid partition" in said
        assert "Traceback" not in said


def test_ray(tiny: Path, tmp_path: Path) -> None:
    """An actor is killed in the middle."""
    if importlib.util.find_spec("ray") is None and "CI" not in os.environ:
        pytest.skip("Ray is not installed (pip install .[ray])")
    outputs = tmp_path / "outputs"
    given = arguments(tiny, outputs, *LONG)
    on_ray = ("hydra/launcher=ray", "hydra.launcher.actors=2", "hydra.launcher.shards=4")
    head = start(tmp_path, *given, *on_ray)
    until(lambda: len(journaled(outputs)) > 20, head)
    listening = [
        c
        for p in [psutil.Process(head.pid), *psutil.Process(head.pid).children(recursive=True)]
        for c in p.net_connections("inet")
        if c.status == "LISTEN"
    ]
    os.kill(working(outputs)[0], signal.SIGKILL)
    assert head.wait(300) == 0, (tmp_path / "head.log").read_text()
    expect_complete(outputs)
    expect_nothing_twice(outputs)
    assert "its actor has died" in (tmp_path / "head.log").read_text()
    whole = tmp_path / "whole"
    sweep(tmp_path, *arguments(tiny, whole, *LONG))
    assert generations(outputs) == generations(whole)
    assert {c.laddr.ip.removeprefix("::ffff:") for c in listening} == {"127.0.0.1"}, listening
    assert not list(Path(tempfile.gettempdir()).glob("sweep-ray-*"))
