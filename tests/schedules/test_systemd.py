"""Schedule for systemd: units that it accepts, and that a service manager runs."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from schedule_files import SCHEDULE, checkout_in, isolated, logs, needs, needs_root, newest, run, wait_until


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with a stand-in for scripts/sweep."""
    return checkout_in(tmp_path)


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
def test_timer_elapses_at_the_zones_hour(tmp_path: Path) -> None:
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
def test_systemd_runs_the_service_and_the_timer(checkout: Path, tmp_path: Path) -> None:
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
