"""Tests of the handling of Slurm's warnings, with submitit's real handler and a fake clock."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hydra_plugins.sweep_launchers import _slurm_signals as slurm_signals
from hydra_plugins.sweep_launchers._slurm_signals import TimeLimit, is_preempted

submitit = pytest.importorskip("submitit")

BEGAN = 1_000_000.0


@pytest.mark.parametrize(
    ("minutes", "warned", "after", "up"),
    [
        (10, 90, 60, False),
        (10, 90, 449, False),
        (10, 90, 450, True),  # 600 - 90, and up to 60 s earlier
        (10, 90, 509, True),
        (60, 90, 48 * 60 + 1, False),  # submitit alone would say True
        (60, 90, 3450, True),
        (1, 40, 0, True),  # a warning is always within the window before the limit
    ],
)
def test_warning_near_the_time_limit_is_a_time_out(minutes: int, warned: int, after: int, up: bool) -> None:
    assert TimeLimit(60 * minutes, warned).is_reached(BEGAN, BEGAN + after) is up


def test_preemption_is_read_from_the_job_description() -> None:
    assert is_preempted("JobId=3 JobState=RUNNING PreemptTime=2026-11-29T07:00:00 SuspendTime=None")
    assert not is_preempted("JobId=3 PreemptEligibleTime=2026-11-29T06:00:00 PreemptTime=None")
    assert not is_preempted("")


class Task:
    """Called by submitit."""

    def checkpoint(self) -> Any:
        return submitit.helpers.DelayedSubmission(self)


@pytest.fixture
def handler(tmp_path: Path) -> Iterator[Any]:
    """submitit's installed handler for a task with a limit of 10 minutes and no requeues left."""
    from submitit.core import job_environment, utils

    class Environment(job_environment.JobEnvironment):
        global_rank, requeued = 0, None

        def __new__(cls, *_: Any) -> Any:
            return object.__new__(cls)

        def _requeue(self, countdown: int) -> None:
            self.requeued = countdown

    class Paths:
        submitted_pickle = tmp_path / "submitted.pkl"

    delayed = utils.DelayedSubmission(Task())
    delayed.set_timeout(10, 0)
    handler = job_environment.SignalHandler(Environment(), Paths(), delayed)  # type: ignore[arg-type]
    before = signal.signal(signal.SIGUSR2, handler.checkpoint_and_try_requeue)
    yield handler
    signal.signal(signal.SIGUSR2, before)


@pytest.mark.parametrize(
    ("after", "shown", "requeued"),
    [(60.0, None, True), (595.0, "PreemptTime=2026-11-29T07:00:00", True), (595.0, "PreemptTime=None", False)],
)
def test_preempted_task_is_requeued(handler: Any, after: float, shown: str | None, requeued: bool) -> None:
    now = [BEGAN]
    start = {"SLURM_JOB_START_TIME": str(int(BEGAN))}
    slurm_signals.install(TimeLimit(600, 90), lambda: shown, lambda: now[0], start)
    now[0] += after
    if requeued:
        with pytest.raises(SystemExit):
            handler.checkpoint_and_try_requeue(signal.SIGUSR2)
        assert handler.env.requeued == 0
    else:
        with pytest.raises(submitit.core.utils.UncompletedJobError, match="timed-out too many times"):
            handler.checkpoint_and_try_requeue(signal.SIGUSR2)
        assert handler.env.requeued is None


def test_submitits_rule_still_takes_preemptions_for_time_outs(handler: Any) -> None:
    """If this fails, submitit's own rule is right and `_slurm_signals` can be removed."""
    assert handler.has_timed_out()  # although it has just started


def test_without_slurms_start_time_the_limit_counts_from_now(handler: Any) -> None:
    now = [BEGAN]
    slurm_signals.install(TimeLimit(600, 90), lambda: None, lambda: now[0], {})
    now[0] += 449
    assert not handler.has_timed_out()
    now[0] += 1
    assert handler.has_timed_out()


def requeue_by(handler: Any, outcomes: list[Any]) -> tuple[list[float], int]:
    """Warn a task whose requeue attempts have these outcomes. Return the pauses and the number of unused outcomes."""
    pauses: list[float] = []

    def requeue(_: int) -> None:
        if (outcome := outcomes.pop(0)) is not None:
            raise outcome

    handler.env._requeue = requeue
    now = [BEGAN]
    slurm_signals.install(TimeLimit(600, 90), lambda: None, lambda: now[0], {}, pauses.append)
    os.kill(os.getpid(), signal.SIGUSR2)
    return pauses, len(outcomes)


def refused(code: int) -> subprocess.CalledProcessError:
    return subprocess.CalledProcessError(code, ["scontrol", "requeue", "10_0"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_requeue_counts_as_done_if_scontrol_is_killed(handler: Any, number: signal.Signals) -> None:
    with pytest.raises(SystemExit):
        requeue_by(handler, [refused(-number)])


def test_requeue_is_repeated_if_the_controller_does_not_answer(handler: Any) -> None:
    outcomes = [refused(1), subprocess.TimeoutExpired("scontrol", 60), FileNotFoundError("scontrol"), None]
    with pytest.raises(SystemExit):
        requeue_by(handler, outcomes)
    assert not outcomes


def test_task_continues_if_its_requeue_is_refused(handler: Any, caplog: pytest.LogCaptureFixture) -> None:
    pauses, left = requeue_by(handler, [refused(1) for _ in range(5)])
    assert pauses == list(slurm_signals.PAUSES) and left == 1
    assert "exit status 1. The task continues until Slurm ends it." in caplog.text
