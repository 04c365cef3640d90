"""Slurm backend: runs shards as tasks of Slurm arrays that submitit submits.

submitit writes the batch script. It also requeues a task that Slurm warns by SIGUSR2 of its time limit or preemption.
The requeued task resumes from the journal. The tasks' states come from one `squeue` call for all tasks. submitit would
call `sacct`, which not every cluster has, and without it would wait forever for a cancelled task.
"""

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import sweep.util.environment  # noqa: F401 - sets variables before other libraries are imported
from hydra_plugins.sweep_launchers import _slurm_signals as slurm_signals
from hydra_plugins.sweep_launchers._slurm_signals import TimeLimit
from sweep.console import signals
from sweep.errors import ConfigError, SweepError, SweepHeld
from sweep.launch import plans as sweep_plans
from sweep.launch.backend import LOCK_EXPIRY_SECONDS, ShardBackend, unfinished_shards
from sweep.launch.claims import Claims, owner_of
from sweep.launch.manifest import Manifest, read
from sweep.launch.shard_state import read_state
from sweep.util.counts import counted
from sweep.util.redaction import redact

log = logging.getLogger(__name__)

QUICK, SLOW = 1.0, 10.0  # seconds between queries of the controller, in the first minute and later
# Consecutive queries without tasks before the files that they wrote are considered complete. On a shared file system,
# files can appear later than the news of the queue.
SETTLE = 5
ARRAY = 1000  # tasks per array. Slurm's default limit is 1001


class SlurmBackend(ShardBackend):
    """Runs shards as tasks of Slurm arrays, one task per shard with an engine each.

    A task that has finished its shard claims other free ones. It then lingers for the next plan, because a sweeper may
    run several batches. Owned by the coordinator's main thread.

    Args:
        parameters: parameters of submitit's executor, such as `slurm_partition`.
        requeues: how often a task that reaches its time limit is requeued.
        linger_seconds: how long an idle task waits for more shards.
        shards: number of shards per plan. None: as many as are worth an engine start.
        waits: whether to wait until the tasks have ended.
        say: prints a message to the user.
    """

    patience = LOCK_EXPIRY_SECONDS

    def __init__(
        self,
        parameters: Mapping[str, Any],
        *,
        requeues: int,
        linger_seconds: float,
        shards: int | None,
        waits: bool,
        say: Callable[[str], None],
    ) -> None:
        super().__init__(shards)
        self._parameters, self._requeues, self._linger = dict(parameters), requeues, linger_seconds
        self._limit = TimeLimit(60 * parameters.get("timeout_min", 0), parameters.get("slurm_signal_delay_s", 0))
        self.waits, self._say = waits, say
        self._plans: Path | None = None

    def attach(self, plans: Path) -> None:
        """Wait for the tasks of an earlier run of the sweep.

        Raises:
            SweepHeld: there are tasks, and this backend does not wait.
        """
        notified = False
        while _has_open_plan(plans) and (tasks := _queued_tasks(_job_name(plans))):
            summary = f"tasks of this sweep: {_count_states(tasks)} (squeue -n {_job_name(plans)})"
            if not self.waits:
                raise SweepHeld(f"Slurm still has {summary}. Wait for them or cancel them.")
            if not notified:
                self._say(f"Slurm: waiting for {summary}.")
            notified = True
            signals.check()
            time.sleep(QUICK)

    def work(self, manifest: Manifest, watch: Callable[[], None]) -> Mapping[int, str]:
        """See `ShardBackend`. If `waits` is False, return once the tasks are submitted."""
        self._plans = plans = manifest.folder.parent
        sweep_plans.reopen(plans)
        # Lingering tasks of the last batch claim shards of this one.
        self._submit(manifest, len(_queued_tasks(_job_name(plans))) if self.waits else 0)
        started, shown, empty = time.monotonic(), "", 0
        while self.waits:
            signals.check()
            watch()
            if empty:
                os.listdir(manifest.folder)  # makes an NFS client refresh its cache of the folder
            if _has_ended(manifest):
                break
            tasks = _queued_tasks(_job_name(plans))
            empty = 0 if tasks else empty + 1
            if empty == SETTLE:
                if _submitted(manifest) or any(owner_of(manifest, i) is not None for i in range(manifest.shards)):
                    break  # the unfinished shards were cancelled or have failed
                self._submit(manifest, 0)  # the last batch's tasks ended before they saw this plan
                empty = 0
            if (summary := _count_states(tasks)) != shown:
                shown = summary
                self._say(f"Slurm: {summary}" if summary else "Slurm: no tasks are left in the queue")
            time.sleep(QUICK if empty or time.monotonic() - started < 60 else SLOW)
        return unfinished_shards(manifest, _reasons(manifest)) if self.waits else {}

    def close(self) -> None:
        """Let lingering tasks end."""
        if self._plans is not None and self.waits:
            sweep_plans.close(self._plans)

    def _submit(self, manifest: Manifest, lingering: int) -> None:
        """Submit one task per shard, less the number of lingering tasks."""
        import submitit

        folder = manifest.folder / "slurm"
        try:
            executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=self._requeues)
            executor.update_parameters(name=_job_name(manifest.folder.parent), **self._parameters)
            missing = range(lingering, manifest.shards)
            arrays = [missing[first : first + ARRAY] for first in range(0, len(missing), ARRAY)]
            if (limit := self._parameters.get("slurm_array_parallelism")) and len(arrays) > 1:
                executor.update_parameters(slurm_array_parallelism=max(1, limit // len(arrays)))
            for indices in arrays:
                linger = self._linger if self.waits else 0.0
                tasks = [ShardTask(str(manifest.path), index, linger, self._limit) for index in indices]
                jobs = executor.map_array(ShardTask.__call__, tasks)
                ids = [str(job.job_id) for job in jobs]
                with (manifest.folder / "submitted").open("a") as file:
                    file.write("".join(f"{index} {job}\n" for index, job in zip(indices, ids, strict=True)))
                self._say(f"Slurm: submitted {counted(len(ids), 'task')} as job {ids[0].partition('_')[0]}")
        except (RuntimeError, ValueError, OSError, subprocess.CalledProcessError) as error:
            reason = _error_line(error)
            raise ConfigError(f"hydra.launcher: Slurm rejected the job: {reason}") from error


class ShardTask:
    """The callable that submitit runs in a task, and runs again after a requeue.

    The coordinator makes and pickles it. The task's main thread runs its own copy.
    """

    def __init__(self, path: str, index: int, linger_seconds: float, limit: TimeLimit) -> None:
        self._path, self._index, self._linger, self._limit = path, index, linger_seconds, limit

    def __call__(self) -> None:
        """Run the shard, then other free shards, and linger for further plans."""
        from sweep.console.terminal import Terminal
        from sweep.launch.shard_worker import ShardWorker

        slurm_signals.install(self._limit, lambda: _run("scontrol", "show", "job", "-o", _task_id()))
        claims = Claims(_task_id())
        manifest, terminal, failure = read(Path(self._path)), Terminal(), None
        manifest.enter_workdir()
        with terminal.divert(manifest.log(f"task-{_task_id()}"), verbose=False), ShardWorker(terminal) as worker:
            deadline = time.monotonic() + self._linger
            # Checked only once, for a requeue: later, an unfinished claim is a shard that failed without a state.
            all_plans = (manifest, *sweep_plans.later_plans(manifest))
            unfinished = [(plan, index) for plan in all_plans if (index := claims.unfinished(plan)) is not None]
            while True:
                shard = unfinished.pop() if unfinished else _claim_next(manifest, claims, self._index)
                if shard is None:
                    if time.monotonic() > deadline or sweep_plans.is_closed(manifest.folder.parent):
                        break
                    time.sleep(QUICK)
                    continue
                try:
                    worker.work(*shard, patience=LOCK_EXPIRY_SECONDS)
                except SweepError as error:
                    log.error("%s", redact(str(error)))
                    failure = error
                deadline = time.monotonic() + self._linger
        if failure is not None:
            raise failure

    def checkpoint(self) -> Any:
        """Return the submission for a requeue. It needs no state, because the journal has the answers."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _claim_next(manifest: Manifest, claims: Claims, first: int) -> tuple[Manifest, int] | None:
    """Claim a free shard of this plan or else of a later one."""
    for plan in (manifest, *sweep_plans.later_plans(manifest)):
        if not plan.is_replaced and (index := claims.claim(plan, first)) is not None:
            return plan, index
    return None


def _task_id() -> str:
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]


def _has_open_plan(plans: Path) -> bool:
    """Return whether a plan has unfinished shards. Without one, queued tasks find nothing to do."""
    return any(not plan.is_replaced and not _has_ended(plan) for plan in sweep_plans.all_plans(plans))


def _has_ended(manifest: Manifest) -> bool:
    states = sweep_plans.states(manifest)
    return len(states) == manifest.shards and all(state.ended for state in states)


def _job_name(plans: Path) -> str:
    """Return the name of a sweep's Slurm jobs."""
    return f"sweep-{plans.parent.name}"


def _queued_tasks(name: str) -> dict[str, str]:
    """Return the states of a job name's unfinished tasks by task id. Waits for an unreachable controller.

    Cancels a task that Slurm failed to launch, which Slurm would hold until an administrator releases it.
    """
    while True:
        output = _run("squeue", "-h", "-a", "-r", "--me", "-n", name, "-o", "%i %T %r")
        if output is not None:
            tasks = {}
            for task, state, reason in (line.split(maxsplit=2) for line in output.splitlines() if line.strip()):
                if "launch failed" in reason:
                    log.warning("Slurm cannot start task %s (%s). It is cancelled.", task, reason.strip())
                    _run("scancel", task)
                else:
                    tasks[task] = state
            return tasks
        log.warning("Slurm does not answer. Next attempt in %g s.", SLOW)
        signals.check()
        time.sleep(SLOW)


def _reasons(manifest: Manifest) -> dict[int, str]:
    """Return the final Slurm state of the task of each unfinished shard, as a reason."""
    ids = _submitted(manifest)
    reasons = {}
    for index in range(manifest.shards):
        state = read_state(manifest.state(index))
        if state is not None and state.ended:
            continue
        owner = owner_of(manifest, index) or ids.get(index)
        if owner is not None:
            reasons[index] = f"Slurm's task {owner} ended: {_final_state(owner)}"
    return reasons


def _final_state(task: str) -> str:
    """Return the state of a finished task, from the controller if it still has it, else from accounting."""
    job = _run("scontrol", "show", "job", "-o", task)
    if job and "JobState=" in job:
        return job.split("JobState=")[1].split()[0]
    states = _run("sacct", "-n", "-X", "-P", "-o", "State", "-j", task)
    return states.splitlines()[0] if states and states.strip() else "its state is no longer available"


def _run(*command: str) -> str | None:
    """Return the output of a Slurm command, or None if it fails."""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError as error:
        if command[0] == "squeue":
            raise ConfigError(
                "hydra/launcher=slurm: squeue is not installed. Run the command on a machine of the Slurm cluster."
            ) from error
        return None
    except subprocess.TimeoutExpired:
        return None
    return result.stdout if result.returncode == 0 else None


def _submitted(manifest: Manifest) -> dict[int, str]:
    """Return the ids of the tasks that were submitted for a plan's shards."""
    try:
        lines = (manifest.folder / "submitted").read_text().splitlines()
    except FileNotFoundError:
        return {}
    return {int(index): task for index, task in map(str.split, lines)}


def _count_states(tasks: Mapping[str, str]) -> str:
    """Return a summary such as `2 pending, 1 running`."""
    return ", ".join(f"{count} {state.lower()}" for state, count in sorted(Counter(tasks.values()).items()))


def _error_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if "error:" in line] or str(error).splitlines()
    return lines[-1][:200] if lines else type(error).__name__


def slurm_parameters(
    options: Mapping[str, Any], additional: Mapping[str, Any], setup: Sequence[str] | None
) -> dict[str, Any]:
    """Return the launcher's options as parameters of submitit's executor.

    Args:
        options: options of `sbatch` that are listed in `SLURM`.
        additional: further options of `sbatch` by their long names.
        setup: shell lines that run before each task.
    """
    unprefixed = ("timeout_min", "cpus_per_task", "mem_gb")
    parameters = {k if k in unprefixed else f"slurm_{k}": v for k, v in options.items() if v is not None}
    if additional:
        parameters["slurm_additional_parameters"] = dict(additional)
    return parameters | ({"slurm_setup": list(setup)} if setup else {})
