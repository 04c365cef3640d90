"""Sweep lock: keeps a sweep to one process, also on file systems that several machines share.

A lock is a folder of numbered claim files, of which the last one counts. A process that finds the last claim released,
or its holder dead, creates the next number. O_EXCL lets exactly one process do so, also on NFS. A claim that may count
is never renamed or removed, so no process can invalidate another one's claim by mistake.

A holder on this machine is alive if the kernel says that its process is. Any other holder is alive as long as it renews
its claim, by the clock of the file system. `filelock` is not used: its `SoftFileLease` 4.2 takes over from a dead
holder by exchanging two names, which NFS refuses, so that it waits forever there. Its `SoftReadWriteLock` does not
check processes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from types import TracebackType

from sweep.errors import LockError, SweepHeld
from sweep.storage.lock_holder import Holder, utc_now
from sweep.util import atomic, state_files

RENEW_SECONDS = 5.0
DEAD_SECONDS = 120.0  # since the last renewal. A restarting NFS server blocks its clients for 90
WRITE_SECONDS = 2.0  # how long a claim may exist without its content
MAX_OLD_CLAIMS = 8  # old claims that stay, so that a delayed process does not find its number free again

LAST = 99_999_999  # highest claim number, of eight digits

_CLAIM = re.compile(r"(\d{8})\.json")


class SweepLock:
    """Lock on a sweep, held from `acquire` to `release` or for a `with` block.

    Owned by the main thread; a worker's shard is released by the thread that finishes it. While the
    lock is held, a daemon thread renews it.

    Attributes:
        lost: set when another process has taken the lock, or when the lock could not be renewed for so long that
            another process may take it.
    """

    def __init__(
        self, folder: Path, on_lost: Callable[[str], None] | None = None, renew_seconds: float = RENEW_SECONDS
    ) -> None:
        """Create the lock without acquiring it.

        Args:
            folder: holds the claims and nothing else. Created with its parents if missing.
            on_lost: called with a message when the lock is lost, on the renewing thread.
            renew_seconds: interval of renewals, far below `DEAD_SECONDS`.
        """
        self._folder, self._on_lost, self._renew_seconds = folder, on_lost, renew_seconds
        self._claim: tuple[Path, Holder] | None = None
        self._released = threading.Event()
        self.lost = threading.Event()

    def acquire(self) -> None:
        """Acquire the lock, also from a dead holder, and start to renew it.

        Raises:
            SweepHeld: another process holds the lock and is alive, or may be.
            LockError: the folder cannot be used.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            while (claim := self._try_acquire()) is None:
                time.sleep(0.02)
        except OSError as error:
            raise unusable_folder(self._folder, error) from error
        self._claim = claim
        self._released = threading.Event()
        self.lost.clear()
        threading.Thread(target=self._renew, args=(*claim, self._released), name="lock", daemon=True).start()

    def expect_free(self) -> None:
        """Check that the lock could be acquired, without acquiring it.

        Raises:
            SweepHeld: another process holds the lock and is alive, or may be.
            LockError: the folder cannot be used.
        """
        try:
            with self._clock() as now, contextlib.suppress(FileNotFoundError):  # the claim was withdrawn
                last = max(self._numbers(), default=0)
                if last and not _is_free(self._path(last), now()):
                    raise SweepHeld(
                        f"Another process is acquiring the lock of this sweep ({self._path(last)}). "
                        "Run the command again later."
                    )
        except OSError as error:
            raise unusable_folder(self._folder, error) from error

    def release(self) -> None:
        """Release the lock if this process still holds it. Best effort: an unreleased lock expires."""
        self._released.set()
        claim, self._claim = self._claim, None
        if claim is None:
            return
        path, holder = claim
        with contextlib.suppress(OSError):
            if _is_held_by(path, holder):
                _write(path, replace(holder, released_at=utc_now()))

    def __enter__(self) -> SweepLock:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()

    def _try_acquire(self) -> tuple[Path, Holder] | None:
        """Try to acquire the lock once. Return None if another process interfered, so that a retry is needed."""
        # The clock's file also makes an NFS client refresh its cache of the folder.
        with self._clock() as now:
            numbers = self._numbers()
            last = max(numbers, default=0)
            try:
                if last and not _is_free(self._path(last), now()):
                    return None
            except FileNotFoundError:
                return None
            if last >= LAST:
                raise OSError(errno.EOVERFLOW, f"{self._path(last)} has the highest possible number. Remove it")
            path, holder = self._path(last + 1), Holder.here()
            try:
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            except FileExistsError:
                return None
            try:
                with open(fd, "w", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(holder)))
                    file.flush()
                    os.fsync(fd)
                if max(self._numbers(), default=0) == last + 1:
                    for number in numbers:
                        if number <= last - MAX_OLD_CLAIMS:
                            self._path(number).unlink(missing_ok=True)
                    return path, holder
            except BaseException:
                path.unlink(missing_ok=True)
                raise
            path.unlink(missing_ok=True)  # an old number that others had already removed was free again
            return None

    def _renew(self, path: Path, holder: Holder, released: threading.Event) -> None:
        renewed = time.monotonic()
        while not released.wait(self._renew_seconds):
            reason = None
            try:
                if not _is_held_by(path, holder) or self._path(max(self._numbers(), default=0)) != path:
                    reason = "another process has taken it"
                else:
                    os.utime(path)
                    renewed = time.monotonic()
            except FileNotFoundError:
                reason = "its file was removed"
            except OSError as error:  # a server may come back
                if time.monotonic() - renewed > DEAD_SECONDS - self._renew_seconds:
                    reason = f"it could not be renewed: {error.strerror}"
            if reason and not released.is_set():
                self.lost.set()
                if self._on_lost is not None:
                    self._on_lost(f"The sweep lock {path} was lost: {reason}.")
                return

    @contextlib.contextmanager
    def _clock(self) -> Iterator[Callable[[], float]]:
        """Yield a function that returns the file system's time, which may differ from this machine's."""
        with tempfile.NamedTemporaryFile(prefix=".clock-", dir=self._folder) as file:

            def now() -> float:
                os.utime(file.name)
                return os.stat(file.name).st_mtime

            yield now

    def _numbers(self) -> list[int]:
        return [int(match[1]) for name in os.listdir(self._folder) if (match := _CLAIM.fullmatch(name))]

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:08d}.json"


def unusable_folder(folder: Path, error: OSError) -> LockError:
    """Return the error for a lock folder that cannot be used."""
    return LockError(
        f"The folder {folder} cannot be used: {error.strerror or error}.\n"
        "It is needed to keep two runs of a sweep apart."
    )


def _is_free(path: Path, now: float) -> bool:
    """Return True if a claim has ended, False if it is still being written.

    Raises:
        SweepHeld: the claim is in force.
    """
    holder, renewed = _read(path)
    # After the clock was set back, a timestamp in the future does not prove that the holder is alive.
    age = abs(now - renewed)
    if holder is None:  # its process died at once, or is about to write it
        if age < WRITE_SECONDS:
            return False
        alive = age < DEAD_SECONDS
    elif holder.released_at is not None:
        return True
    else:
        is_alive = holder.is_alive()
        alive = is_alive if is_alive is not None else age < DEAD_SECONDS
    if alive:
        raise SweepHeld(_held_message(holder, path, age))
    return True


def _held_message(holder: Holder | None, path: Path, age: float) -> str:
    if holder is None:
        who = f"{path} was written {age:.0f} s ago"
    else:
        since = datetime.fromisoformat(holder.acquired_at).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        who = f"process {holder.pid} of {holder.user} on {holder.host} has held it since {since}"
    unknown = holder is None or holder.is_alive() is None
    hint = (
        f"The lock was last renewed {age:.0f} s ago. If that process has ended, "
        f"run the command again in {math.ceil(DEAD_SECONDS - age)} s."
    )
    return f"Another run of this sweep is in progress: {who}." + f"\n{hint}" * unknown


def _is_held_by(path: Path, holder: Holder) -> bool:
    current, _ = _read(path)
    return current is not None and current.token == holder.token


def _read(path: Path) -> tuple[Holder | None, float]:
    """Return a claim's holder, or None if the content is invalid, and the time of its last renewal."""
    state_files.require(path)
    # Opening the file makes an NFS client refresh its attributes. O_NONBLOCK: opening a pipe would block.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        modified = os.fstat(file.fileno()).st_mtime
        try:
            holder = state_files.build(Holder, state_files.parse(file.read()))
            datetime.fromisoformat(holder.acquired_at)
        except (ValueError, TypeError):
            return None, modified
    return (holder if 0 < holder.pid < 2**31 else None), modified


def _write(path: Path, holder: Holder) -> None:
    atomic.replace(path, lambda temporary: temporary.write_text(json.dumps(asdict(holder)), "utf-8"))
