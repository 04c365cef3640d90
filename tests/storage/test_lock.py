"""Tests of the sweep lock with real processes: acquisition, takeover from dead holders, and loss of the lock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from sweep.errors import LockError, SweepHeld
from sweep.storage import lock as lease_module
from sweep.storage.lock import DEAD_SECONDS, Holder, SweepLock

HOLD = """
import sys, time
from pathlib import Path
from sweep.storage.lock import SweepLock
with SweepLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""

RACE = """
import sys, time
from pathlib import Path
from sweep.errors import SweepHeld
from sweep.storage.lock import SweepLock
folders = sorted(Path(sys.argv[1]).iterdir())
print("ready", flush=True)
start = float(sys.stdin.readline())
leases = [SweepLock(folder) for folder in folders]
for i, lease in enumerate(leases):
    while time.time() < start + 0.1 * i:
        pass
    try:
        lease.acquire()
        print("won", folders[i].name, flush=True)
    except SweepHeld:
        print("lost", folders[i].name, flush=True)
print("end", flush=True)
sys.stdin.read()
"""


def start(code: str, folder: Path) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code, str(folder)], stdin=pipe, stdout=pipe, text=True)


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def write(folder: Path, number: int, holder: Holder | None, age: float = 0.0) -> Path:
    """Write another process's claim that was renewed `age` seconds ago. A holder of None leaves it empty."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{number:08d}.json"
    path.write_text(json.dumps(asdict(holder)) if holder else "")
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def foreign(**changes: object) -> Holder:
    return replace(Holder.here(), host="elsewhere", user="ada", pid=4711, token="theirs", **changes)  # type: ignore[arg-type]


def recycled() -> Holder:
    """A dead holder whose process id was reused by this process."""
    here = Holder.here()
    assert here.started is not None
    return replace(here, started=here.started - 1, token="dead")


def test_second_process_gets_the_holders_name(tmp_path: Path) -> None:
    process = start(HOLD, tmp_path / "lease")
    assert line(process) == "held"
    with pytest.raises(SweepHeld) as caught:
        SweepLock(tmp_path / "lease").acquire()
    assert caught.value.exit_code == 75
    here = Holder.here()
    for part in (f"process {process.pid} ", here.user, here.host, time.strftime("%Y-%m-%d %H:")):
        assert part in str(caught.value)
    process.communicate("")
    with SweepLock(tmp_path / "lease"):
        pass


def test_lock_cannot_be_held_twice_by_one_process(tmp_path: Path) -> None:
    with SweepLock(tmp_path), pytest.raises(SweepHeld):
        SweepLock(tmp_path).acquire()


def test_released_lock_can_be_acquired_again(tmp_path: Path) -> None:
    for _ in range(20):
        with SweepLock(tmp_path) as lock:
            assert not lock.lost.is_set()
    claims = sorted(path.name for path in tmp_path.iterdir())
    assert len(claims) <= 10
    assert claims[-1] == "00000020.json"
    assert json.loads((tmp_path / claims[-1]).read_text())["released_at"] is not None


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_holder_is_replaced_at_once(tmp_path: Path, reaped: bool) -> None:
    process = start(HOLD, tmp_path)
    assert line(process) == "held"
    process.kill()
    if reaped:
        process.wait()
    else:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie
    began = time.monotonic()
    with SweepLock(tmp_path):
        assert time.monotonic() - began < DEAD_SECONDS / 10
    process.communicate()


def test_one_of_eight_processes_replaces_a_dead_holder(tmp_path: Path) -> None:
    rounds = [f"{n:02d}" for n in range(20)]
    for name in rounds:
        write(tmp_path / name, 1, recycled())
    processes = [start(RACE, tmp_path) for _ in range(8)]
    assert [line(process) for process in processes] == ["ready"] * 8
    begin = time.time() + 0.2
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(f"{begin}\n")
        process.stdin.flush()
    said: list[str] = []
    for process in processes:
        said.extend(iter(lambda p=process: line(p), "end"))  # type: ignore[misc]
    for process in processes:
        process.communicate("")
    for name in rounds:
        assert (said.count(f"won {name}"), said.count(f"lost {name}")) == (1, 7)


def test_holder_on_another_machine_counts_while_it_renews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 0.0)  # this machine's clock must not matter
    now = time.clock_gettime(time.CLOCK_REALTIME)
    path = write(tmp_path, 3, foreign())
    for age in (0, DEAD_SECONDS - 30, 30 - DEAD_SECONDS):
        os.utime(path, (now - age, now - age))
        with pytest.raises(
            SweepHeld,
            match=r"process 4711 of ada on elsewhere(.|\n)*If that process has ended, run the command again in \d+ s\.",
        ):
            SweepLock(tmp_path).acquire()
    os.utime(path, (now - DEAD_SECONDS - 30, now - DEAD_SECONDS - 30))
    with SweepLock(tmp_path):
        assert (tmp_path / "00000004.json").exists()


def test_process_ids_are_compared_within_boot_and_namespace(tmp_path: Path) -> None:
    dead = recycled()
    assert dead.is_alive() is False
    assert Holder.here().is_alive() is True
    for other in (replace(dead, boot="another"), replace(dead, namespace=1), replace(dead, host="another")):
        assert other.is_alive() is None
        write(tmp_path, 1, other)
        with pytest.raises(SweepHeld):
            SweepLock(tmp_path).acquire()
    write(tmp_path, 1, dead)
    with SweepLock(tmp_path):
        pass


def test_claim_without_content_holds_the_lock_until_it_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "WRITE_SECONDS", 0.05)
    for damaged in (b"", b"{", b"[]", b"\xff", b'{"pid": "x"}'):
        path = write(tmp_path, 1, None)
        path.write_bytes(damaged)
        with pytest.raises(SweepHeld, match=r"00000001\.json was written"):
            SweepLock(tmp_path).acquire()
        write(tmp_path, 1, None, age=DEAD_SECONDS + 30)
    with SweepLock(tmp_path):
        pass


def test_holder_renews_its_claim(tmp_path: Path) -> None:
    with SweepLock(tmp_path, renew_seconds=0.05):
        path = tmp_path / "00000001.json"
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 5
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert time.time() - path.stat().st_mtime < 10


@pytest.mark.parametrize("how", ["taken", "replaced", "removed"])
def test_lost_lock_is_reported_and_the_other_claim_is_kept(tmp_path: Path, how: str) -> None:
    reasons: list[str] = []
    theirs = write(tmp_path / "elsewhere", 1, foreign())
    with SweepLock(tmp_path / "lease", on_lost=reasons.append, renew_seconds=0.05) as lock:
        claim = tmp_path / "lease" / f"{2 if how == 'taken' else 1:08d}.json"
        if how == "removed":
            claim.unlink()
        else:
            theirs.replace(claim)  # atomic, so that the claim is never seen without content
        assert lock.lost.wait(5)
    assert len(reasons) == 1
    assert ("its file was removed" if how == "removed" else "another process has taken it") in reasons[0]
    if how != "removed":
        assert json.loads(claim.read_text())["token"] == "theirs"
        assert json.loads(claim.read_text())["released_at"] is None


def test_delayed_process_does_not_reuse_a_removed_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 5, recycled())
    lock, looks = SweepLock(tmp_path), iter([[5]])
    real = lock._numbers
    monkeypatch.setattr(lock, "_numbers", lambda: next(looks, None) or real())
    write(tmp_path, 20, Holder.here())  # after it has listed the numbers
    with pytest.raises(SweepHeld):
        lock.acquire()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000005.json", "00000020.json"]


def test_unusable_lock_folder_is_a_lock_error(tmp_path: Path) -> None:
    (tmp_path / "lease").write_text("")
    with pytest.raises(LockError, match="File exists"):
        SweepLock(tmp_path / "lease").acquire()
