"""Shards as the tasks of a Slurm array, submitted by submitit.

submitit writes the batch script, and has a task that is warned (SIGUSR2, before its time is up or it is preempted) put
back into the queue, where it goes on by the journal.  Whether tasks live is asked of `squeue`, once for all: submitit
asks `sacct`, which not every cluster has, and without which it would wait for a cancelled task for ever.
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

import sweep._environment  # noqa: F401 - before the libraries that it is for
from sweep import signals
from sweep.errors import ConfigError, SweepError, SweepHeld
from sweep.redaction import redact
from sweep.shards import plans as sweep_plans
from sweep.shards.claims import Claims, owner_of
from sweep.shards.crew import LEASE_SECONDS, Crew, left_undone
from sweep.shards.manifest import Manifest, read
from sweep.shards.state import read_state

log = logging.getLogger(__name__)

QUICK, SLOW = 1.0, 10.0  # seconds between questions to the controller, of the first minute and later
SETTLE = 5  # questions in a row to which there are no tasks, before what tasks have written is taken for all: on a file
# system that machines share it may come later than the queue's news
ARRAY = 1000  # tasks of one array; Slurm's own limit is 1001 unless it is told otherwise


class SlurmCrew(Crew):
    """The tasks of Slurm arrays, as many as there are shards, each with an engine.

    A task that has done its shard takes others that are free, and waits a little for the next plan, of a sweeper that
    asks for points batch by batch.

    Args:
        parameters: of submitit's executor, such as `slurm_partition`.
        requeues: how often a task whose time is up is put back into the queue.
        linger_seconds: for which a task waits for more to do.
        shards: how many shards a plan is cut into; None: as many as are worth an engine's start.
        waits: whether to wait for the tasks' end.
        say: tells the user.
    """

    patience = LEASE_SECONDS

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
        self.waits, self._say = waits, say
        self._plans: Path | None = None

    def attach(self, plans: Path) -> None:
        """Wait for the tasks of an earlier process of the sweep.

        Raises:
            SweepHeld: there are some, and this one does not wait.
        """
        waited = False
        while _is_open(plans) and (tasks := _queue(_name(plans))):
            told = f"{_told(tasks)} of this sweep (squeue -n {_name(plans)})"
            if not self.waits:
                raise SweepHeld(f"There are tasks at work: {told}.")
            if not waited:
                self._say(f"Slurm: waiting for {told}.")
            waited = True
            signals.check()
            time.sleep(QUICK)

    def work(self, manifest: Manifest, watch: Callable[[], None]) -> Mapping[int, str]:
        """As of `Crew`; without waiting, return when the tasks are submitted."""
        self._plans = plans = manifest.folder.parent
        sweep_plans.reopen(plans)
        # Tasks of the last batch, if there are some, take up shards of this one.
        self._submit(manifest, len(_queue(_name(plans))) if self.waits else 0)
        began, told, empty = time.monotonic(), "", 0
        while self.waits:
            signals.check()
            watch()
            if empty:
                os.listdir(manifest.folder)  # a network file system's client looks anew what files there are
            if _has_ended(manifest):
                break
            tasks = _queue(_name(plans))
            empty = 0 if tasks else empty + 1
            if empty == SETTLE:
                if _submitted(manifest) or any(owner_of(manifest, i) is not None for i in range(manifest.shards)):
                    break  # what is not done was cancelled, or has failed
                self._submit(manifest, 0)  # the last batch's tasks have ended before they saw this one
                empty = 0
            if _told(tasks) != told:
                told = _told(tasks)
                self._say(f"Slurm: {told}" if told else "Slurm: no tasks are left in the queue")
            time.sleep(QUICK if empty or time.monotonic() - began < 60 else SLOW)
        return left_undone(manifest, _reasons(manifest)) if self.waits else {}

    def close(self) -> None:
        """Have the tasks end once nothing is left to do."""
        if self._plans is not None and self.waits:
            sweep_plans.close(self._plans)

    def _submit(self, manifest: Manifest, there: int) -> None:
        """Submit a task for each shard, but for as many as are there already."""
        import submitit

        folder = manifest.folder / "slurm"
        try:
            executor = submitit.AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=self._requeues)
            executor.update_parameters(name=_name(manifest.folder.parent), **self._parameters)
            wanted = range(there, manifest.shards)
            arrays = [wanted[first : first + ARRAY] for first in range(0, len(wanted), ARRAY)]
            if (limit := self._parameters.get("slurm_array_parallelism")) and len(arrays) > 1:
                executor.update_parameters(slurm_array_parallelism=max(1, limit // len(arrays)))
            for indices in arrays:
                tasks = [ShardTask(str(manifest.path), index, self._linger if self.waits else 0.0) for index in indices]
                jobs = executor.map_array(ShardTask.__call__, tasks)
                ids = [str(job.job_id) for job in jobs]
                with (manifest.folder / "submitted").open("a") as file:
                    file.write("".join(f"{index} {job}\n" for index, job in zip(indices, ids, strict=True)))
                self._say(f"Slurm: submitted {len(ids)} tasks as job {ids[0].partition('_')[0]}")
        except (RuntimeError, ValueError, OSError, subprocess.CalledProcessError) as error:
            reason = _first_line(error)
            raise ConfigError(f"hydra.launcher: Slurm did not take the job: {reason}") from error


class ShardTask:
    """What a task does; submitit calls it, again after a requeue."""

    def __init__(self, path: str, index: int, linger_seconds: float) -> None:
        self._path, self._index, self._linger = path, index, linger_seconds

    def __call__(self) -> None:
        """Work off the shard, then what else is free, and what comes within a while."""
        from sweep.shards.worker import ShardWorker
        from sweep.terminal import Terminal

        claims = Claims(_own_id())
        manifest, terminal, failure = read(Path(self._path)), Terminal(), None
        manifest.enter()
        with terminal.divert(manifest.log(f"task-{_own_id()}"), verbose=False), ShardWorker(terminal) as worker:
            until = time.monotonic() + self._linger
            # Only now, after a requeue: while it works, it leaves no shard but one that has failed without a trace.
            all_plans = (manifest, *sweep_plans.later(manifest))
            begun = [(plan, index) for plan in all_plans if (index := claims.begun(plan)) is not None]
            while True:
                work = begun.pop() if begun else _next(manifest, claims, self._index)
                if work is None:
                    if time.monotonic() > until or sweep_plans.is_closed(manifest.folder.parent):
                        break
                    time.sleep(QUICK)
                    continue
                try:
                    worker.work(*work, patience=LEASE_SECONDS)
                except SweepError as error:
                    log.error("%s", redact(str(error)))
                    failure = error
                until = time.monotonic() + self._linger
        if failure is not None:
            raise failure

    def checkpoint(self) -> Any:
        """Return what is to be submitted again when the task is requeued: all that counts is in the journal."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _next(manifest: Manifest, claims: Claims, first: int) -> tuple[Manifest, int] | None:
    """Return a shard to work off: of the plan itself, else of a later one."""
    for plan in (manifest, *sweep_plans.later(manifest)):
        if not plan.is_replaced and (index := claims.take(plan, first)) is not None:
            return plan, index
    return None


def _own_id() -> str:
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ["SLURM_JOB_ID"]


def _is_open(plans: Path) -> bool:
    """Whether a plan has shards that nobody has ended; tasks may be in the queue that find nothing to do."""
    return any(not plan.is_replaced and not _has_ended(plan) for plan in sweep_plans.all_of(plans))


def _has_ended(manifest: Manifest) -> bool:
    states = sweep_plans.states(manifest)
    return len(states) == manifest.shards and all(state.ended for state in states)


def _name(plans: Path) -> str:
    """Return the name of a sweep's jobs."""
    return f"sweep-{plans.parent.name}"


def _queue(name: str) -> dict[str, str]:
    """Return the states of a name's tasks that have not ended, by their ids; waits for a controller that is away.

    A task that Slurm could not start, and holds until an administrator releases it, is taken out of the queue: it would
    be waited for in vain.
    """
    while True:
        done = _ask("squeue", "-h", "-a", "-r", "--me", "-n", name, "-o", "%i %T %r")
        if done is not None:
            tasks = {}
            for task, state, reason in (line.split(maxsplit=2) for line in done.splitlines() if line.strip()):
                if "launch failed" in reason:
                    log.warning("Slurm's task %s cannot be started (%s), and is cancelled.", task, reason.strip())
                    _ask("scancel", task)
                else:
                    tasks[task] = state
            return tasks
        log.warning("Slurm does not answer; it is asked again.")
        signals.check()
        time.sleep(SLOW)


def _reasons(manifest: Manifest) -> dict[int, str]:
    """Return what Slurm says of the tasks that had shards, or were to have them."""
    ids = _submitted(manifest)
    reasons = {}
    for index in range(manifest.shards):
        state = read_state(manifest.state(index))
        if state is not None and state.ended:
            continue
        owner = owner_of(manifest, index) or ids.get(index)
        if owner is not None:
            reasons[index] = f"Slurm's task {owner} ended: {_state_of(owner)}"
    return reasons


def _state_of(task: str) -> str:
    """Return the state of a task that has ended, from the controller's memory, else from accounting."""
    shown = _ask("scontrol", "show", "job", "-o", task)
    if shown and "JobState=" in shown:
        return shown.split("JobState=")[1].split()[0]
    listed = _ask("sacct", "-n", "-X", "-P", "-o", "State", "-j", task)
    return listed.splitlines()[0] if listed and listed.strip() else "its state is not known any more"


def _ask(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError as error:
        if command[0] == "squeue":
            raise ConfigError("hydra/launcher=slurm: there is no Slurm here: squeue is not found.") from error
        return None
    except subprocess.TimeoutExpired:
        return None
    return done.stdout if done.returncode == 0 else None


def _submitted(manifest: Manifest) -> dict[int, str]:
    """Return the tasks that were submitted for a plan's shards."""
    try:
        lines = (manifest.folder / "submitted").read_text().splitlines()
    except FileNotFoundError:
        return {}
    return {int(index): task for index, task in map(str.split, lines)}


def _told(tasks: Mapping[str, str]) -> str:
    return ", ".join(f"{count} {state.lower()}" for state, count in sorted(Counter(tasks.values()).items()))


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if "error:" in line] or str(error).splitlines()
    return lines[-1][:200] if lines else type(error).__name__


def slurm_parameters(
    given: Mapping[str, Any], additional: Mapping[str, Any], setup: Sequence[str] | None
) -> dict[str, Any]:
    """Return submitit's names of parameters that were given."""
    shared = ("timeout_min", "cpus_per_task", "mem_gb")
    named = {key if key in shared else f"slurm_{key}": value for key, value in given.items() if value is not None}
    if additional:
        named["slurm_additional_parameters"] = dict(additional)
    return named | ({"slurm_setup": list(setup)} if setup else {})
