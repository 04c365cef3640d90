"""Tests of `hydra/launcher=plan` and `python -m sweep.shard`: shards that a scheduler starts."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from servers import mlflow_server
from shards import (
    SMOKE,
    Gate,
    SweepHere,
    begin_shard,
    expect_complete,
    generations,
    journaled,
    planning,
    runs_of,
    statuses_of,
    until,
)
from sweep import shard
from sweep.app import sweep_runner
from sweep.console import signals, streams
from sweep.launch import shard_run, shard_worker
from sweep.launch.backend import ShardBackend
from sweep.launch.shard_state import WAITING, StateFile
from sweep.storage.lock import SweepLock

ShardHere = Callable[..., str]


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


def test_shard_stops_if_another_worker_takes_it_over(
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


@pytest.mark.parametrize("when", ["after its last answer", "while it waits for the control"])
def test_shard_leaves_its_state_file_alone_once_its_lock_is_lost(
    sweep_here: SweepHere, shard_here: ShardHere, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """The shard without the control is run alone, so it waits for the control."""
    plan = tmp_path / "plan"
    sweep_here(*planning(plan, 2))
    state_file, of_another = plan / "shard-00001.state.json", '{"state": "working", "host": "another"}'
    acquire, advance, write = shard_worker._acquire_lock, StateFile.advance, StateFile.write
    locks: list[SweepLock] = []

    def lose() -> None:
        locks[0].lost.set()
        state_file.write_text(of_another)

    def acquire_and_keep(*arguments: Any) -> SweepLock:
        locks.append(acquire(*arguments))
        return locks[0]

    def advance_and_lose(self: StateFile, tokens: int) -> None:
        advance(self, tokens)
        if when == "after its last answer" and self.state.done == self.state.requests:
            lose()

    def write_and_lose(self: StateFile, *, now: bool = False) -> None:
        write(self, now=now)
        if self.state.state == WAITING and not locks[0].lost.is_set():
            lose()

    monkeypatch.setattr(shard_worker, "_acquire_lock", acquire_and_keep)
    monkeypatch.setattr(shard_run, "CONTROL_SECONDS", 3.0)
    monkeypatch.setattr(StateFile, "advance", advance_and_lose)
    monkeypatch.setattr(StateFile, "write", write_and_lose)
    assert "Shard 1: another worker has taken it over." in shard_here(plan, 1, code=75)
    assert locks[0].lost.is_set() and state_file.read_text() == of_another


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


def test_inputs_changed_after_planning_are_refused(
    sweep_here: SweepHere, shard_here: ShardHere, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("Hi\nHo\n")
    sweep_here("prompts.path=prompts.txt", "prompts.items=null", *planning(tmp_path / "plan", 1))
    (tmp_path / "prompts.txt").write_text("Hi\nHu\n")
    said = shard_here("plan", 0, code=2)
    assert "are different now. Run the sweep's command again." in said and "Traceback" not in said
    assert "cannot be read" in shard_here("nowhere", 0, code=2)


def test_sweep_is_held_while_a_shard_runs(
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


@pytest.mark.slow
def test_a_shard_of_a_plan_with_vllm(sweep_here: SweepHere, tmp_path: Path, vllm_whole: Path) -> None:
    plan = tmp_path / "plan"
    sweep_here(*SMOKE, *planning(plan, 1))
    assert begin_shard(plan, 0, tmp_path).wait(300) == 0, (plan / "shard-00000.log").read_text()
    assert "Engine" not in sweep_here(*SMOKE)
    assert generations(tmp_path / "outputs") == generations(vllm_whole)
    assert statuses_of(tmp_path / "outputs") == {"FINISHED": 3}
