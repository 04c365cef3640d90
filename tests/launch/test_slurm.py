"""Tests of the Slurm launcher on a real cluster of two nodes, see `slurm`."""

from __future__ import annotations

import json
import os
import re
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from hydra_plugins.sweep_launchers import _slurm_backend
from shards import (
    SMOKE,
    Gate,
    SweepHere,
    arguments,
    expect_complete,
    expect_nothing_twice,
    generations,
    meanwhile,
    own_runs,
    start,
    statuses_of,
)
from slurm import Slurm, slurm

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture
def cluster(machines: Slurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slurm]:
    """The cluster, also for sweeps in this process, which query its queue often."""
    monkeypatch.setenv("SLURM_CONF", machines.environment["SLURM_CONF"])
    monkeypatch.setattr(_slurm_backend, "QUICK", 0.2)
    yield machines
    machines.clean()


def on_slurm(*options: str, shards: int = 2, linger: int = 0) -> tuple[str, ...]:
    """Return the overrides that run shards as Slurm tasks."""
    given = (f"hydra.launcher.shards={shards}", f"hydra.launcher.linger_seconds={linger}")
    return "hydra/launcher=slurm", *given, *(f"hydra.launcher.{option}" for option in options)


def task_of(outputs: Path, shard: int) -> tuple[str, int]:
    """Return the task that claimed a shard, and its process."""
    [claim] = outputs.glob(f"sweeps/*/shards/*/shard-{shard:05d}.claim")
    return claim.read_text(), json.loads(claim.with_suffix(".state.json").read_text())["pid"]


def test_slurm_with_vllm(
    cluster: Slurm, sweep_here: SweepHere, tmp_path: Path, vllm_whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", cluster.with_accounting["PATH"])
    sweep_here(*SMOKE, *on_slurm(shards=1))
    assert generations(tmp_path / "outputs") == generations(vllm_whole)
    assert statuses_of(tmp_path / "outputs") == {"FINISHED": 3}


def test_each_task_has_an_engine(cluster: Slurm, sweep_here: SweepHere, tmp_path: Path, whole: Path) -> None:
    gate = Gate(tmp_path, after=5)
    with meanwhile(lambda: gate.wait_for(2), gate):
        assert "submitted 2 tasks as job" in sweep_here(*gate.overrides, *on_slurm())
    parent, _ = own_runs(tmp_path / "outputs")
    assert parent.data.metrics["cost/engine_starts"] == 2
    assert generations(tmp_path / "outputs") == generations(whole)
    expect_complete(tmp_path / "outputs")


def test_submitting_without_waiting(cluster: Slurm, sweep_here: SweepHere, tmp_path: Path, whole: Path) -> None:
    assert "submitted 2 tasks as job" in sweep_here(*on_slurm("wait=false"))
    cluster.until(lambda: not cluster.jobs())
    assert "Slurm: submitted" not in sweep_here(*on_slurm("wait=false"))
    expect_complete(tmp_path / "outputs")
    assert generations(tmp_path / "outputs") == generations(whole)


def test_cancelled_task_is_reported_and_others_continue(cluster: Slurm, sweep_here: SweepHere, tmp_path: Path) -> None:
    outputs, gate = tmp_path / "outputs", Gate(tmp_path, after=5)
    given, cancelled = (*gate.overrides, *on_slurm()), list[str]()

    def cancel() -> None:
        gate.wait_for(2)
        task, process = task_of(outputs, 1)
        cluster.run("scancel", task)
        # submitit makes a task ignore SIGTERM. Slurm sends SIGKILL some seconds later.
        os.kill(process, signal.SIGKILL)
        cluster.until(lambda: task not in cluster.jobs())
        cancelled.append(task)

    with meanwhile(cancel, gate):
        said = sweep_here(*given, code=1)
    # The first shard has the control and 11 points. One of the other shard's 13 was answered.
    reason = f"shard 1: Slurm's task {cancelled[0]} ended: CANCELLED"
    assert len(re.findall(rf"^factor=\S+: {reason}$", said, re.MULTILINE)) == 12
    assert statuses_of(outputs) == {"FINISHED": 13, "FAILED": 12}
    assert own_runs(outputs)[0].info.status == "FAILED"
    sweep_here(*given)
    expect_complete(outputs)


def test_preempted_task_is_requeued_and_resumes(cluster: Slurm, sweep_here: SweepHere, tmp_path: Path) -> None:
    outputs, gate = tmp_path / "outputs", Gate(tmp_path, after=5)
    # With such a short limit, submitit alone would treat a preemption as a time-out, and none is allowed.
    given = (*gate.overrides, *on_slurm("partition=low", "timeout_min=10", "requeues=0"))
    tasks = set[str]()

    def preempt() -> None:
        gate.wait_for(2)
        tasks.update(cluster.jobs())
        cluster.run("sbatch", "-p", "main", "-N", "2", "--exclusive", "-o", "/dev/null", "--wrap", "true")
        cluster.restart_requeued(tasks)

    with meanwhile(preempt, gate):
        sweep_here(*given)
    assert [cluster.show(task)["Restarts"] for task in tasks] == ["1", "1"]
    logs = [path.read_text(errors="replace") for path in outputs.glob("sweeps/*/shards/*/task-*.log")]
    assert len(logs) == 2
    for log in logs:
        assert "Caught signal SIGUSR2" in log and "this job is preempted." in log and "timed-out" not in log
        assert "Requeued job" in log
    expect_complete(outputs)
    sweep_here(*given)
    expect_complete(outputs)


def test_task_of_a_failed_node_resumes_on_another(cluster: Slurm, sweep_here: SweepHere, tmp_path: Path) -> None:
    outputs, gate = tmp_path / "outputs", Gate(tmp_path, after=5)
    given = (*gate.overrides, *on_slurm("cpus_per_task=2"))  # a node for each

    def crash() -> None:
        gate.wait_for(2)
        task, _ = task_of(outputs, 1)
        cluster.crash(cluster.show(task)["NodeList"], task)
        cluster.restart_requeued({task})

    with meanwhile(crash, gate):
        sweep_here(*given)
    expect_complete(outputs)
    assert own_runs(outputs)[0].data.metrics["cost/engine_starts"] == 3
    sweep_here(*given)
    expect_complete(outputs)


def test_tasks_survive_a_killed_coordinator(cluster: Slurm, tiny: Path, sweep_here: SweepHere, tmp_path: Path) -> None:
    outputs, gate = tmp_path / "outputs", Gate(tmp_path, after=5)
    given = (*gate.overrides, *on_slurm())
    head = start(tmp_path, *arguments(tiny, outputs, *given), environment=cluster.environment)
    gate.wait_for(2, head)
    head.kill()
    head.wait()
    assert set(cluster.jobs().values()) == {"RUNNING"}
    assert "squeue -n sweep-" in sweep_here(*given, "hydra.launcher.wait=false", code=75)
    gate.open()
    assert "Slurm: submitted" not in sweep_here(*given)
    expect_complete(outputs)


def test_search_keeps_its_task_between_batches(cluster: Slurm, sweep_here: SweepHere, tmp_path: Path) -> None:
    search = ("n_trials=6", "n_jobs=2", "sampler=random")
    said = sweep_here(
        *("hydra/sweeper=optuna", *(f"hydra.sweeper.{option}" for option in search)),
        *("transform.factor=interval(1.1,2)", "sweep.objective=maximize:perturbation/relative_l2"),
        *on_slurm(shards=1, linger=120),
    )
    assert said.count("submitted") == 1
    parent, points = own_runs(tmp_path / "outputs")
    assert Counter(run.data.tags["sweep.role"] for run in points) == {"point": 6, "control": 1}
    assert {run.info.status for run in (parent, *points)} == {"FINISHED"}
    assert parent.data.metrics["cost/engine_starts"] == 1
    expect_nothing_twice(tmp_path / "outputs")


def test_rejected_submission_is_an_error(cluster: Slurm, sweep_here: SweepHere) -> None:
    said = sweep_here(*on_slurm("partition=nowhere"), code=2)
    assert "hydra.launcher: Slurm rejected the job: " in said and "Invalid partition" in said
    assert "Traceback" not in said
