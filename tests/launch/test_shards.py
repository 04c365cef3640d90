"""Tests of sweeps in shards on this machine: they give the same results as in one process.

Most shards run in this process, or in worker processes whose scripted engines wait where a test needs it. Plans are tested
in `test_planned_shards`, Slurm and Ray in `test_slurm` and `test_ray`.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from hydra_plugins.sweep_launchers import _local_backend
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
    start,
    statuses_of,
)
from sweep.console.terminal import Terminal
from sweep.errors import SweepError
from sweep.launch import coordinator
from sweep.launch.backend import ShardBackend, unfinished_shards
from sweep.launch.manifest import Manifest
from sweep.launch.shard_worker import ShardWorker


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


def in_shards(shards: int) -> tuple[str, ...]:
    """Return the overrides for two worker processes on this machine."""
    return "hydra.launcher.workers=2", f"hydra.launcher.shards={shards}"


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


def test_points_are_compared_with_a_control_whose_scoring_fails(
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
def test_workers_end_with_the_coordinator_and_the_sweep_resumes(
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
