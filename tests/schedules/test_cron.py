"""Schedules for cron and Slurm: cron accepts the tables, starts in the zone's hour, and does not start twice."""

from __future__ import annotations

import re
import shutil
import subprocess
from datetime import datetime
from pathlib import Path

import pytest
from schedule_files import SCHEDULE, checkout_in, isolated, lines, logs, needs, needs_root, run, wait_until

CRONTABS = [SCHEDULE / "crontab", SCHEDULE / "crontab.slurm", SCHEDULE / "scrontab"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with a stand-in for scripts/sweep."""
    return checkout_in(tmp_path)


def entry(path: Path) -> str:
    [found] = [line for line in lines(path.read_text()) if not re.match(r"\w+=", line)]
    return found


@needs("crontab")
@pytest.mark.parametrize("path", CRONTABS, ids=lambda path: path.name)
def test_cron_accepts_the_table(path: Path) -> None:
    check = "-T" if " -T" in run(["crontab", "-h"]).stderr else "-n"  # as newer versions call it
    done = run(["crontab", check, path])
    assert done.returncode == 0, done.stderr


def test_percent_signs_are_escaped_in_crontabs_only() -> None:
    for path in CRONTABS[:2]:
        assert re.findall(r"(?<!\\)%", entry(path)) == []
    assert "%" not in entry(SCHEDULE / "scrontab")


@pytest.mark.slow
@needs_root
@needs("cron", "faketime", "unshare", "flock")
@pytest.mark.parametrize(
    ("clock", "begins"),
    [
        ("2026-01-15 02:29:58", True),  # 03:30 in Berlin
        ("2026-07-15 01:29:58", True),  # and in summer
        ("2026-01-15 03:29:58", False),
        ("2026-07-15 02:29:58", False),
    ],
)
def test_cron_starts_the_sweep_at_the_zones_hour(checkout: Path, tmp_path: Path, clock: str, begins: bool) -> None:
    """The real daemon, on the real table, with a clock (in UTC) of ours."""
    home, spool, empty, state, shared = (tmp_path / name for name in ("home", "spool", "empty", "run", "shm"))
    for folder in (home, spool / "crontabs", empty, state, shared):
        folder.mkdir(parents=True)
    checkout.rename(home / "sweep")
    checkout = home / "sweep"
    (tmp_path / "system").write_text("")
    # What cron starts has none of its environment, hence not its clock.
    tools = home / "bin"
    tools.mkdir()
    now = int(datetime.fromisoformat(f"{clock}+00:00").timestamp()) + 2
    (tools / "date").write_text(f'#!/bin/sh\nexec /usr/bin/date --date=@{now} "$@"\n')
    (tools / "date").chmod(0o755)
    table = (SCHEDULE / "crontab").read_text()
    table = table.replace("PATH=", f"HOME={home}\nMAILTO=''\nPATH={tools}:")
    table, entries = re.subn(r"^30 \* \* \* \* ", rf"\g<0>trap 'touch {home}/ran' EXIT; ", table, flags=re.MULTILINE)
    assert entries == 1
    crontab = spool / "crontabs" / "root"
    crontab.write_text(table)
    crontab.chmod(0o600)
    mounts = {"/var/spool/cron": spool, "/etc/cron.d": empty, "/etc/crontab": tmp_path / "system"}
    mounts |= {"/run": state, "/dev/shm": shared}
    # With the first process of its namespace all others end, whoever they belong to.
    own = ("--pid", "--fork", "--kill-child", "--mount-proc")
    with isolated(tmp_path, mounts, f'faketime -f "@{clock}" cron -f; exit', *own, TZ="UTC"):
        assert wait_until((home / "ran").exists), (tmp_path / "daemon.log").read_text()
    assert (checkout / "outputs").exists() == begins
    if begins:
        [log] = logs(checkout)
        day, offset = ("2026-01-15", "+0100") if clock < "2026-03" else ("2026-07-15", "+0200")
        assert re.fullmatch(rf"sweep-{day}T03-\d\d-\d\d\{offset}\.log", log.name)
        assert log.read_text() == "<experiment=scale_demo>\n<sweep.name=nightly>\nTZ=Europe/Berlin\n"


@needs("flock")
@pytest.mark.parametrize("path", CRONTABS[:2], ids=lambda path: path.name)
def test_second_start_during_a_run_does_nothing(checkout: Path, path: Path) -> None:
    command = entry(path).split(maxsplit=5)[5].replace("\\%", "%")
    bin_ = checkout / "bin"
    bin_.mkdir()
    for name, text in {
        "date": 'case "$1" in +%H) echo 03;; *) echo now;; esac',
        "sbatch": 'echo "$@" >>submitted; exit 1',
    }.items():
        (bin_ / name).write_text(f"#!/bin/sh\n{text}\n")
        (bin_ / name).chmod(0o755)

    def cron() -> subprocess.CompletedProcess[str]:
        return run(
            ["bash", "-c", command], cwd=checkout.parent, env={"PATH": f"{bin_}:/usr/bin:/bin", "TZ": "Europe/Berlin"}
        )

    with subprocess.Popen(
        ["flock", ".nightly.lock", "sh", "-c", "echo held; read _"],
        cwd=checkout,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None and other.stdin is not None
        other.stdout.readline()
        done = cron()
        assert done.stdout + done.stderr == "" and done.returncode in (0, 75)
        assert not (checkout / "submitted").exists() and not list(checkout.glob("outputs/logs/*"))
        other.stdin.close()
    done = cron()
    if path.name == "crontab":
        assert done.returncode == 0 and len(logs(checkout)) == 1
    else:
        assert (checkout / "submitted").read_text() == "--quiet --wait scripts/schedule/nightly.sbatch\n"
        assert "failed; see sweep/outputs/logs" in done.stdout


def test_batch_script_and_scrontab_have_equal_options() -> None:
    """Options that bound and protect, in the batch script and in scrontab's table."""
    tables = {}
    for word, file in (("#SBATCH", "nightly.sbatch"), ("#SCRON", "scrontab")):
        found = re.findall(rf"^{word} --([\w-]+)=(.*)$", (SCHEDULE / file).read_text(), re.MULTILINE)
        tables[word] = dict(found)
    assert tables["#SBATCH"].pop("dependency") == "singleton"  # scrontab's own jobs never overlap
    output = tables["#SBATCH"].pop("output")
    assert tables["#SCRON"].pop("output") == f"sweep/{output}"
    assert tables["#SBATCH"] == tables["#SCRON"]
    hours, minutes, _ = map(int, tables["#SCRON"]["time"].split(":"))
    [limit] = re.findall(r"SWEEP_LIMIT=(\d+)m", (SCHEDULE / "nightly.sbatch").read_text())
    # scrontab (22.05) refuses --signal=B:TERM@120, which warns a batch script.
    assert 2 <= 60 * hours + minutes - int(limit) <= 10 and "signal" not in tables["#SBATCH"]


def test_the_batch_script_as_slurm_runs_it(checkout: Path) -> None:
    """Slurm runs a copy, in the folder of the submission."""
    copy = checkout.parent / "slurm_script"
    shutil.copy(SCHEDULE / "nightly.sbatch", copy)
    for code, ends in ((0, 0), (1, 1), (2, 2), (75, 0)):
        (checkout / "scripts" / "code").write_text(str(code))
        assert run(["bash", copy], cwd=checkout).returncode == ends
    assert (
        "<hydra/launcher=slurm>\n<hydra.launcher.partition=gpu>\n<hydra.launcher.wait=true>\nTZ=Europe/Berlin"
        in logs(checkout)[0].read_text()
    )
