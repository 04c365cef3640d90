"""A real Slurm on loopback, of Debian's packages: a controller and two nodes, started and ended by the tests."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest

from servers import free_port

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "scontrol")
NODES, CPUS = ("node0", "node1"), 2
SECONDS = 120  # that anything may take to come up

# What submitit asks `sacct`, answered from the controller's memory: accounting takes a database.
SACCT = """#!{python}
import re, subprocess
print("JobID|State|NodeList")
for line in subprocess.run(["scontrol", "show", "job", "-o"], capture_output=True, text=True).stdout.splitlines():
    job = dict(re.findall(r"(\\w+)=(\\S*)", line))
    task = job.get("ArrayTaskId", "")
    name = f"{{job['ArrayJobId']}}_{{task}}" if task.isdecimal() else job["JobId"]
    print(f"{{name}}|{{job['JobState']}}|{{job.get('NodeList', '')}}")
"""

CONF = """
ClusterName=sweep
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort={port}
SlurmctldParameters=preempt_send_user_signal
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
ReturnToService=2
JobRequeue=1
KillWait=1
MinJobAge=3600
SlurmdTimeout=30
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
PartitionName=low Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
"""


class Slurm:
    """A running cluster, for one test after the other.

    Attributes:
        environment: with which its commands find it, but for `sacct`, which not every cluster has.
        with_accounting: the same with `sacct`.
    """

    def __init__(self, root: Path, environment: dict[str, str]) -> None:
        self._root, self.environment = root, environment
        self.with_accounting = environment | {"PATH": f"{root / 'bin'}:{environment['PATH']}"}
        self._daemons = ExitStack()
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, *command: str) -> str:
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def attempt(self, *command: str) -> str:
        """Run what may come too late: a job may have begun or ended meanwhile."""
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60).stdout

    def jobs(self) -> dict[str, str]:
        """Return the states of the jobs and tasks in the queue, by their ids."""
        lines = self.run("squeue", "-h", "-r", "-o", "%i %T").splitlines()
        return dict(line.split(maxsplit=1) for line in lines)  # type: ignore[misc]

    def show(self, job: str) -> dict[str, str]:
        """Return what Slurm knows of a job or task."""
        return dict(re.findall(r"(\w+)=(\S*)", self.attempt("scontrol", "show", "job", "-o", job)))

    def restart_requeued(self, wanted: set[str]) -> None:
        """Have tasks that were put back into the queue begin as soon as they can: Slurm holds them for two minutes."""
        restarted: set[str] = set()

        def all_have() -> bool:
            for task in wanted - restarted:
                shown = self.show(task)
                if shown.get("Restarts") == "1" and shown["JobState"] == "PENDING":
                    self.attempt("scontrol", "update", f"jobid={task}", "StartTime=now")
                    restarted.add(task)
            return restarted == wanted

        self.until(all_have)

    def crash(self, node: str, task: str) -> None:
        """End a node as a power failure does: its daemon, and all processes of the task on it, at once."""
        job = self.show(task)["JobId"]
        _kill(self._nodes.pop(node))
        victims = set[psutil.Process]()
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("SLURM_JOB_ID") == job:
                    victims |= {process, *(p for p in process.parents() if p.name().startswith("slurmstepd"))}
        # Stopped first, so that none reports the end of another one.
        for act in (psutil.Process.suspend, psutil.Process.kill):
            for process in victims:
                with suppress(psutil.NoSuchProcess):
                    act(process)
        self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    def clean(self) -> None:
        """Leave the cluster as it was at the start: no jobs, and all nodes idle."""
        subprocess.run(["scancel", "-f", "-u", "root"], env=self.environment, timeout=30)
        for node in set(NODES) - self._nodes.keys():
            self._start_node(node)
        self.until(lambda: self._all_idle() and not self.jobs())

    def _all_idle(self) -> bool:
        """Whether all nodes are idle; those that are down are asked to work again."""
        for node in set(NODES) - (idle := self._idle()):
            # Refused for a node that Slurm puts back into service by itself when its daemon registers.
            self.attempt("scontrol", "update", f"nodename={node}", "state=resume")
        return idle == set(NODES)

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds."""
        end = time.monotonic() + SECONDS
        while not holds():
            if time.monotonic() > end:
                logs = self._root.glob("*.[lo][ou][gt]")
                pytest.fail("\n".join(path.read_text(errors="replace")[-1000:] for path in logs))
            time.sleep(0.1)

    def __enter__(self) -> Slurm:
        root, munge = self._root, self._root / "munge"
        key = munge / "key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        munge.chmod(0o700)
        files = [f"--key-file={key}", f"--socket={root}/munge.socket", f"--log-file={munge}/log"]
        files += [f"--pid-file={munge}/pid", f"--seed-file={munge}/seed"]
        try:
            self._daemon("munged", "--foreground", "--force", *files)
            self.until(lambda: self._succeeds("munge", "-n", "-S", f"{root}/munge.socket"))
            self._daemon("slurmctld", "-D", "-c", "-i")
            self.until(lambda: self._succeeds("scontrol", "ping"))
            for node in NODES:
                self._start_node(node)
            self.until(lambda: self._idle() == set(NODES))
        except BaseException:
            self._daemons.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with self._daemons:
            self.clean()

    def _start_node(self, node: str) -> None:
        self._nodes[node] = self._daemon("slurmd", "-D", "-N", node)

    def _daemon(self, *command: str) -> subprocess.Popen[bytes]:
        with (self._root / f"{command[0]}{command[-1]}.out".replace("/", "_")).open("a") as out:
            process = subprocess.Popen(
                command, env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        self._daemons.callback(_end, process)
        return process

    def _idle(self) -> set[str]:
        return set(self.run("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N").split())

    def _succeeds(self, *command: str) -> bool:
        return subprocess.run(command, env=self.environment, capture_output=True, timeout=30).returncode == 0


def slurm(root: Path) -> Slurm:
    """Return a cluster in a folder; a test that needs one is skipped where it cannot be, but not in CI."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing and "CI" not in os.environ:
        pytest.skip(f"no Slurm here: {', '.join(missing)} (Debian's packages are slurm-wlm and munge)")
    if os.getuid() != 0:
        pytest.skip("Slurm's daemons are started by root only")
    for name in ("state", "bin", "munge", *(f"spool-{node}" for node in NODES)):
        (root / name).mkdir(parents=True)
    conf, host = root / "slurm.conf", socket.gethostname().partition(".")[0]
    nodes = [
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs={CPUS} RealMemory=4000"
        for node in NODES
    ]
    conf.write_text(CONF.format(root=root, host=host, port=free_port(), nodes="\n".join(nodes)))
    (root / "bin" / "sacct").write_text(SACCT.format(python=sys.executable))
    (root / "bin" / "sacct").chmod(0o755)
    return Slurm(root, os.environ | {"SLURM_CONF": str(conf)})


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
