"""Tests of parsing Slurm's queue, without a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from hydra_plugins.sweep_launchers import _slurm_backend
from sweep.errors import ConfigError


def test_task_that_cannot_start_is_cancelled(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    asked = list[tuple[str, ...]]()

    def ask(*command: str) -> str:
        asked.append(command)
        return "7_0 RUNNING None\n7_1 PENDING launch failed requeued held\n" if command[0] == "squeue" else ""

    monkeypatch.setattr(_slurm_backend, "_run", ask)
    assert _slurm_backend._queued_tasks("sweep-1") == {"7_0": "RUNNING"}
    assert asked[1:] == [("scancel", "7_1")]
    assert "Slurm cannot start task 7_1 (launch failed requeued held). It is cancelled." in caplog.text


def test_unreachable_controller_is_queried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [None, None, "7_0 PENDING Resources\n"]
    monkeypatch.setattr(_slurm_backend, "SLOW", 0.0)
    monkeypatch.setattr(_slurm_backend, "_run", lambda *command: answers.pop(0))
    assert _slurm_backend._queued_tasks("sweep-1") == {"7_0": "PENDING"} and not answers


def test_missing_slurm_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="hydra/launcher=slurm: squeue is not installed"):
        _slurm_backend._queued_tasks("sweep-1")


@pytest.mark.parametrize(
    ("shown", "listed", "state"),
    [
        ("JobId=8 JobState=CANCELLED Reason=None\n", None, "CANCELLED"),
        (None, "NODE_FAIL\nNODE_FAIL\n", "NODE_FAIL"),  # no longer in the controller, but in accounting
        (None, None, "its state is no longer available"),
    ],
)
def test_the_state_of_a_task_that_has_ended(
    monkeypatch: pytest.MonkeyPatch, shown: str | None, listed: str | None, state: str
) -> None:
    answers = {"scontrol": shown, "sacct": listed}
    monkeypatch.setattr(_slurm_backend, "_run", lambda *command: answers[command[0]])
    assert _slurm_backend._final_state("7_1") == state
