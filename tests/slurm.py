"""A real Slurm on loopback, of Debian's packages: a controller and two nodes, started and ended by the tests."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from servers import free_port

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "scontrol")
NODES, CPUS = 2, 2
SECONDS = 40  # that anything may take to come up

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


@dataclass(frozen=True, slots=True)
class Slurm:
    """A running cluster.

    Attributes:
        environment: with which its commands find it.
    """

    environment: dict[str, str]

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


@contextmanager
def slurm(root: Path, *, sacct: bool) -> Iterator[Slurm]:
    """Run a cluster in a folder; a test that needs one is skipped where it cannot be, but not in CI."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing and "CI" not in os.environ:
        pytest.skip(f"no Slurm here: {', '.join(missing)} (Debian's packages are slurm-wlm and munge)")
    if os.getuid() != 0:
        pytest.skip("Slurm's daemons are started by root only")
    for name in ("state", "bin", "munge", *(f"spool-node{i}" for i in range(NODES))):
        (root / name).mkdir(parents=True)
    conf, host = root / "slurm.conf", socket.gethostname().partition(".")[0]
    nodes = [
        f"NodeName=node{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()} CPUs={CPUS} RealMemory=4000"
        for i in range(NODES)
    ]
    conf.write_text(CONF.format(root=root, host=host, port=free_port(), nodes="\n".join(nodes)))
    if sacct:
        (root / "bin" / "sacct").write_text(SACCT.format(python=sys.executable))
        (root / "bin" / "sacct").chmod(0o755)
    path = f"{root / 'bin'}:{os.environ['PATH']}"
    cluster = Slurm(os.environ | {"SLURM_CONF": str(conf), "PATH": path})
    with ExitStack() as running:
        key, munge = root / "munge" / "key", root / "munge"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        munge.chmod(0o700)
        files = [f"--key-file={key}", f"--socket={root}/munge.socket", f"--log-file={munge}/log"]
        files += [f"--pid-file={munge}/pid", f"--seed-file={munge}/seed"]
        _daemon(running, cluster, root, "munged", "--foreground", "--force", *files)
        _until(lambda: _succeeds(cluster, "munge", "-n", "-S", f"{root}/munge.socket"), root)
        _daemon(running, cluster, root, "slurmctld", "-D", "-c", "-i")
        _until(lambda: _succeeds(cluster, "scontrol", "ping"), root)
        for i in range(NODES):
            _daemon(running, cluster, root, "slurmd", "-D", "-N", f"node{i}")
        _until(
            lambda: cluster.run("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N").count("node") == NODES,
            root,
        )
        yield cluster
        subprocess.run(["scancel", "-f", "-u", "root"], env=cluster.environment, timeout=30)
        _until(lambda: not cluster.jobs(), root)


def _daemon(running: ExitStack, cluster: Slurm, root: Path, *command: str) -> None:
    with (root / f"{command[0]}{command[-1]}.out".replace("/", "_")).open("w") as out:
        process = subprocess.Popen(
            command, env=cluster.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    running.callback(_end, process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _succeeds(cluster: Slurm, *command: str) -> bool:
    return subprocess.run(command, env=cluster.environment, capture_output=True, timeout=30).returncode == 0


def _until(holds: Callable[[], bool], root: Path) -> None:
    until = time.monotonic() + SECONDS
    while not holds():
        if time.monotonic() > until:
            pytest.fail("\n".join(path.read_text(errors="replace")[-1000:] for path in root.glob("*.[lo][ou][gt]")))
        time.sleep(0.2)
