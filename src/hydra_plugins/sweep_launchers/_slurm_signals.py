"""Slurm warnings: handles the SIGUSR2 by which Slurm announces a task's time limit or preemption.

Reaching the time limit counts towards `requeues`, preemption does not. submitit 1.5 guesses which it is: a task that
has run for min(0.8 T, T - 10 minutes) has reached its limit T. With a limit of 10 minutes or less, every preemption
would thus count, and a task that is preempted more than `requeues` times would be given up.
"""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType

log = logging.getLogger(__name__)

PAUSES = (1.0, 5.0, 20.0)  # seconds between attempts to requeue
EARLY = 60.0  # seconds by which Slurm's signal may be early (`man sbatch`, --signal)


@dataclass(frozen=True, slots=True)
class TimeLimit:
    """The time limit of a task.

    Attributes:
        seconds: the limit.
        warning: requested seconds between Slurm's signal and the limit.
    """

    seconds: float
    warning: float

    def is_reached(self, started: float, now: float) -> bool:
        """Return whether a signal at `now` can announce the limit of a task that started at `started` (seconds)."""
        return now - started >= self.seconds - self.warning - EARLY


class RequeueError(RuntimeError):
    """Slurm did not requeue the task."""


def install(
    limit: TimeLimit,
    show_job: Callable[[], str | None],
    clock: Callable[[], float] = time.time,
    environment: Mapping[str, str] = os.environ,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Make submitit's installed signal handler use this module's rule.

    A task that Slurm does not requeue continues until Slurm ends it. Everything that it finishes until then is kept.

    Args:
        limit: the time limit of the task.
        show_job: returns the output of `scontrol show job -o` for the task, or None if there is none.
        clock: returns seconds since the epoch.
        environment: environment variables set by Slurm.
        sleep: waits for some seconds.
    """
    handler = getattr(signal.getsignal(signal.SIGUSR2), "__self__", None)
    if not hasattr(handler, "has_timed_out"):
        log.warning("This version of submitit is unknown. It may count preemptions towards hydra.launcher.requeues.")
        return
    start_time = environment.get("SLURM_JOB_START_TIME", "")  # since Slurm 22.05
    started = float(start_time) if start_time.isdecimal() else clock()

    def has_timed_out() -> bool:
        if is_preempted(show_job() or ""):
            return False
        return limit.is_reached(started, clock())

    def on_warning(number: int, frame: FrameType | None) -> None:
        try:
            handler.checkpoint_and_try_requeue(number, frame)  # type: ignore[union-attr]
        except RequeueError as error:
            log.warning("%s The task continues until Slurm ends it.", error)

    handler.has_timed_out = has_timed_out  # type: ignore[union-attr]
    job_environment = handler.env  # type: ignore[union-attr]
    job_environment._requeue = with_retries(job_environment._requeue, sleep)
    signal.signal(signal.SIGUSR2, on_warning)


def with_retries(requeue: Callable[[int], None], sleep: Callable[[float], None]) -> Callable[[int], None]:
    """Wrap submitit's `requeue` with retries, and ignore the death of `scontrol`.

    Slurm kills all processes of a task that it requeues. `scontrol`, which requested that, is one of them, and may be
    killed before it has received the answer.

    Raises (the returned function):
        RequeueError: Slurm has refused four times.
    """

    def requeue_with_retries(countdown: int) -> None:
        for pause in (*PAUSES, None):
            try:
                requeue(countdown)
                return
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired, OSError) as error:
                if isinstance(error, subprocess.CalledProcessError) and error.returncode < 0:
                    log.info("Requeued job: Slurm killed scontrol before it could answer.")
                    return
                if pause is None:
                    raise RequeueError(f"Slurm did not requeue this task: {error}") from error
                log.warning("Slurm did not requeue this task. Next attempt in %g s: %s", pause, error)
                sleep(pause)

    return requeue_with_retries


def is_preempted(job: str) -> bool:
    """Return whether the output of `scontrol show job` contains a preemption time."""
    return re.search(r"\bPreemptTime=\d", job) is not None
