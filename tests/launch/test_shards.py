"""Tests of sweeps in shards on this machine: they give the same results as in one process.

Most shards run in this process, or in worker processes whose scripted engines wait where a test needs it. Slurm
and Ray are tested in `test_slurm` and `test_ray`.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from hydra_plugins.sweep_launchers import _local_backend
from servers import mlflow_server
from shards import (
    DEFAULT_PROCESSES,
    POINTS,
    PROMPTS,
    SMOKE,
    Gate,
    SweepHere,
    arguments,
    expect_complete,
    expect_nothing_twice,
    generations,
    journaled,
    meanwhile,
    own_runs,
    runs_of,
    start,
    statuses_of,
    until,
)
from sweep import shard
from sweep.app import sweep_runner
from sweep.console import signals, streams
from sweep.console.terminal import Terminal
from sweep.errors import SweepError
from sweep.launch import coordinator, shard_worker
from sweep.launch.backend import ShardBackend, unfinished_shards
from sweep.launch.manifest import Manifest
from sweep.launch.shard_state import StateFile
from sweep.launch.shard_worker import ShardWorker
from sweep.storage.lock import SweepLock

ShardHere = Callable[..., str]


class InTurn(ShardBackend):
    """Backend that runs shards in this process, one after the other."""

    def work(self, manifest: Manifest, watch: Callable[[], None]) -> Mapping[int, str]:
        reasons = {}
        with ShardWorker(Terminal()) as worker:
            for index in range(manifest.shards):
                try:
                    worker.work(manifest, index)
                except SweepError as error:
                    reasons[index] = str(error)
                watch()
        return unfinished_shards(manifest, reasons)


@pytest.fixture
def in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the local launcher run shards in this process and collect the results after each."""
    monkeypatch.setattr(_local_backend, "LocalBackend", lambda workers, shards, gpus: InTurn(shards))
    monkeypatch.setattr(coordinator, "PERIOD", 0.0)


@pytest.fixture
def shard_here(sweep_here: SweepHere, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> ShardHere:
    """Run `python -m sweep.shard` in this process and return what it printed."""
    monkeypatch.setattr(signals, "install", lambda: None)
    monkeypatch.setattr(streams, "install", lambda: None)

    def run(plan: Path | str, index: int, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["sweep.shard", str(plan), str(index)])
        try:
            shard.main()
            found = 0
        except SystemExit as end:
            found = int(end.code or 0)
        out, err = capfd.readouterr()
        assert found == code, out + err
        return out + err

    return run


def begin_shard(plan: Path, index: int, folder: Path) -> subprocess.Popen[bytes]:
    """Start `python -m sweep.shard`."""
    command = [sys.executable, "-m", "sweep.shard", str(plan), str(index)]
    return subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)


def in_shards(shards: int) -> tuple[str, ...]:
    """Return the overrides for two worker processes on this machine."""
    return "hydra.launcher.workers=2", f"hydra.launcher.shards={shards}"


def planning(plan: Path, shards: int) -> tuple[str, ...]:
    """Return the overrides that only write a plan."""
    return "hydra/launcher=plan", f"hydra.launcher.folder={plan}", f"hydra.launcher.shards={shards}"


@pytest.mark.slow
def test_workers_of_this_machine(sweep_here: SweepHere, tmp_path: Path, whole: Path) -> None:
    outputs = tmp_path / "outputs"
    sweep_here(*in_shards(4), *DEFAULT_PROCESSES)
    assert generations(outputs) == generations(whole)
    expect_complete(outputs)
    parent, points = own_runs(outputs)
    assert parent.data.metrics["cost/engine_starts"] == 2
    assert parent.data.metrics["cost/requests"] == (POINTS + 2) * PROMPTS  # the control runs twice
    assert {run.data.metrics["cost/requests"] for run in points} == {PROMPTS}
    assert parent.data.metrics["cost/generate_seconds"] > 0


def test_shards_in_turn(sweep_here: SweepHere, tmp_path: Path, whole: Path, in_turn: None) -> None:
    assert "25 points in 5 shards" in sweep_here(*in_shards(5), *DEFAULT_PROCESSES)
    assert generations(tmp_path / "outputs") == generations(whole)
    expect_complete(tmp_path / "outputs")


def test_a_shard_that_another_worker_takes_over_stops(
    sweep_here: SweepHere, shard_here: ShardHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Path
) -> None:
    plan = tmp_path / "plan"
    sweep_here(*planning(plan, 1))
    [state_file] = [json_file.with_name("shard-00000.state.json") for json_file in plan.glob("manifest.json")]
    acquire, advance, answers = shard_worker._acquire_lock, StateFile.advance, list[int]()
    with monkeypatch.context() as losing:

        def acquire_and_lose(*arguments: Any) -> SweepLock:
            lock = acquire(*arguments)

            def lose(self: StateFile, tokens: int) -> None:
                advance(self, tokens)
                answers.append(tokens)
                if len(answers) == 5:
                    lock.lost.set()

            losing.setattr(StateFile, "advance", lose)
            return lock

        losing.setattr(shard_worker, "_acquire_lock", acquire_and_lose)
        said = shard_here(plan, 0, code=75)
    assert "Shard 0: another worker has taken it over. Finished points are kept." in said and len(answers) == 5
    assert '"working"' in state_file.read_text()  # not failed: the other worker writes it
    shard_here(plan, 0)
    sweep_here()
    assert generations(tmp_path / "outputs") == generations(whole)


@pytest.mark.slow
def test_shards_called_by_a_scheduler_publish_to_a_server(
    tiny: Path, tmp_path: Path, sweep_here: SweepHere, shard_here: ShardHere, whole: Path
) -> None:
    """Plan, run each shard, finish, as the Kubernetes example does."""
    outputs, plan = tmp_path / "outputs", tmp_path / "plan"
    with mlflow_server(tmp_path, tmp_path / "server.db", tmp_path / "files") as uri:
        to_server, three = f"tracking.uri={uri}", planning(plan, 3)
        assert f"3 shards: {plan / 'manifest.json'}" in sweep_here(to_server, *three)
        assert (plan / "manifest.json").stat().st_mode & 0o777 == 0o600
        # It waits for its control and is interrupted. Its answers stay in the journal.
        waiting = begin_shard(plan, 2, tmp_path)
        until(lambda: "waiting" in (plan / "shard-00002.state.json").read_text(), waiting)
        waiting.terminate()
        assert waiting.wait(20) == 143
        for index in (0, 1, 3):
            shard_here(plan, index)
        [parent] = [run for run in runs_of(uri) if run.data.tags["sweep.role"] == "sweep"]
        assert parent.info.status == "RUNNING"
        published = [run for run in runs_of(uri) if run.info.status == "FINISHED"]
        assert {run.data.tags["mlflow.parentRunId"] for run in published} == {parent.info.run_id}
        assert len(published) == 17  # the control and 16 points
        shard_here(plan, 2)
        assert "Engine" not in sweep_here(to_server)
        expect_complete(outputs, uri)
        assert "0 shards" in sweep_here(to_server, *three)  # no points are left to plan
        shard_here(plan, 0)
    assert generations(outputs) == generations(whole)


def test_what_changed_since_it_was_planned_is_refused(
    sweep_here: SweepHere, shard_here: ShardHere, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("Hi\nHo\n")
    sweep_here("prompts.path=prompts.txt", "prompts.items=null", *planning(tmp_path / "plan", 1))
    (tmp_path / "prompts.txt").write_text("Hi\nHu\n")
    said = shard_here("plan", 0, code=2)
    assert "are different now. Run the sweep's command again." in said and "Traceback" not in said
    assert "cannot be read" in shard_here("nowhere", 0, code=2)


def test_nothing_is_planned_or_generated_beside_a_shard_at_work(
    sweep_here: SweepHere, shard_here: ShardHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every launcher. Shards of a replaced plan are not started any more."""
    monkeypatch.setattr(sweep_runner, "PATIENCE", 0.0)
    monkeypatch.setattr(ShardBackend, "patience", 0.0)
    outputs, plan, gate = tmp_path / "outputs", tmp_path / "plan", Gate(tmp_path, after=5)
    sweep_here(*gate.overrides, *planning(plan, 2))
    at_work = begin_shard(plan, 0, tmp_path)
    assert gate.wait_for(1, at_work) == [at_work.pid]
    assert len(journaled(outputs)) == 5
    for launcher in ((), planning(plan, 2)):
        said = sweep_here(*gate.overrides, *launcher, code=75)
        assert f"Shard 0 of {plan}" in said and f"process {at_work.pid}" in said
    assert at_work.poll() is None
    at_work.terminate()
    assert at_work.wait(20) == 143
    gate.open()
    sweep_here(*gate.overrides)
    said = shard_here(plan, 1, code=75)
    assert "a later run of the sweep has replaced this plan" in said
    expect_complete(outputs)


@pytest.fixture
def picky_scorer(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], tuple[str, ...]]:
    """Return overrides with a scorer that fails on the control's answers, or on those of all other points."""
    rows = [row for path in (whole / "sweeps").glob("*/points/*.parquet") for row in pq.read_table(path).to_pylist()]
    control = {row["generation"] for row in rows if row["name"] == "control"}
    assert not control & {row["generation"] for row in rows if row["name"] != "control"}
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "strict", raising=False)

    def write(of_control: bool) -> tuple[str, ...]:
        (tmp_path / "strict.py").write_text(
            "def same(answer):\n"
            f"    if (answer in {control!r}) is {of_control}:\n"
            "        raise ValueError('no')\n"
            "    return 1.0\n"
        )
        return "plugins=[sweep.testing.scripted,strict]", "scoring.quality=['strict:same']"

    return write


def test_the_failures_of_all_shards_count(
    sweep_here: SweepHere,
    tmp_path: Path,
    picky_scorer: Callable[[bool], tuple[str, ...]],
    in_turn: None,
) -> None:
    """Each shard alone stays below the limit. No point is published after the limit is exceeded."""
    scorer = picky_scorer(False)
    said = sweep_here(*scorer, "sweep.max_failures=6", *in_shards(5), code=1)
    assert "The sweep was stopped: 7 points failed (sweep.max_failures=6)." in said and "Traceback" not in said
    parent, _ = own_runs(tmp_path / "outputs")
    assert parent.info.status == "FAILED"
    assert statuses_of(tmp_path / "outputs") == {"FINISHED": 1, "FAILED": 7}


def test_a_control_that_cannot_be_scored_is_compared_with_all_the_same(
    sweep_here: SweepHere,
    tmp_path: Path,
    picky_scorer: Callable[[bool], tuple[str, ...]],
    in_turn: None,
) -> None:
    """As in a sweep in one process: the answers are in the journal."""
    scorer, in_one_piece = picky_scorer(True), tmp_path / "in one piece"
    sweep_here(*scorer, f"sweep.dir={in_one_piece}", code=1)
    sweep_here(*scorer, *in_shards(3), code=1)
    for outputs in (in_one_piece, tmp_path / "outputs"):
        _, points = own_runs(outputs)
        assert [run.info.run_name for run in points if run.info.status == "FAILED"] == ["control"]
        assert statuses_of(outputs) == {"FINISHED": POINTS, "FAILED": 1}
    expect_nothing_twice(tmp_path / "outputs")


def test_a_worker_that_dies_is_replaced(sweep_here: SweepHere, tmp_path: Path) -> None:
    gate = Gate(tmp_path, after=5)

    def kill() -> None:
        os.kill(gate.wait_for(2)[0], signal.SIGKILL)
        gate.wait_for(3)  # including the replacement worker

    with meanwhile(kill, gate):
        said = sweep_here(*gate.overrides, *in_shards(4))
    assert (
        len(
            re.findall(
                r"^warning: Shard \d: its worker process exited with code -9; see worker-\d\.log", said, re.MULTILINE
            )
        )
        == 1
    )
    expect_complete(tmp_path / "outputs")
    parent, _ = own_runs(tmp_path / "outputs")
    assert parent.data.metrics["cost/engine_starts"] == 3


@pytest.mark.slow
def test_workers_with_vllm(sweep_here: SweepHere, tmp_path: Path, vllm_whole: Path) -> None:
    sweep_here(*SMOKE, *in_shards(2))
    assert generations(tmp_path / "outputs") == generations(vllm_whole)
    assert statuses_of(tmp_path / "outputs") == {"FINISHED": 3}


@pytest.mark.slow
def test_a_shard_of_a_plan_with_vllm(sweep_here: SweepHere, tmp_path: Path, vllm_whole: Path) -> None:
    plan = tmp_path / "plan"
    sweep_here(*SMOKE, *planning(plan, 1))
    assert begin_shard(plan, 0, tmp_path).wait(300) == 0, (plan / "shard-00000.log").read_text()
    assert "Engine" not in sweep_here(*SMOKE)
    assert generations(tmp_path / "outputs") == generations(vllm_whole)
    assert statuses_of(tmp_path / "outputs") == {"FINISHED": 3}


@pytest.mark.slow
def test_workers_end_with_their_head_and_the_same_command_goes_on(
    tiny: Path, tmp_path: Path, sweep_here: SweepHere
) -> None:
    outputs, gate = tmp_path / "outputs", Gate(tmp_path, after=5)
    given = (*gate.overrides, *in_shards(4), *DEFAULT_PROCESSES)
    planned = start(tmp_path, *arguments(tiny, outputs, *given))
    workers = gate.wait_for(2, planned)
    below = psutil.Process(planned.pid).children(recursive=True)
    assert {process.pid for process in below} > set(workers)
    planned.kill()
    planned.wait()
    assert not psutil.wait_procs(below, 10)[1]
    kept = journaled(outputs)
    assert len(kept) == 10
    gate.open()
    sweep_here(*given)
    expect_complete(outputs)
    assert kept.keys() <= journaled(outputs).keys()
    assert len(journaled(outputs)) == (POINTS + 2) * PROMPTS
