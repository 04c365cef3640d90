"""One process at a time on a sweep, also on file systems that several machines share.

A lease is a folder of numbered claims, the last of which counts.  Whoever finds that it was given back, or that its
holder is dead, creates the next number: O_EXCL lets exactly one do so, on NFS as well, and as no claim that may count
is ever renamed or removed, nobody's verdict on one can hit another.

A holder on this machine is alive if its process is, as the kernel says.  Any other one is alive as long as it renews
its claim, by the clock of the file system.  (`filelock.SoftFileLease` 4.2 takes a dead holder's place by exchanging two
names, which NFS refuses: there it waits for ever.  Its `SoftReadWriteLock` does not look at processes.)
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from sweep.disk import atomic
from sweep.errors import LeaseError, SweepHeld

RENEW_SECONDS = 5.0
DEAD_SECONDS = 120.0  # without a sign of life; an NFS server that restarts keeps everybody waiting for 90
WRITE_SECONDS = 2.0  # that a claim may be there without its content
KEPT = 8  # old claims, so that a process held up in between does not find its number free once more

_CLAIM = re.compile(r"(\d{8})\.json")


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a lease, as its claim says.

    Attributes:
        boot: which start of the machine it is; a process id means nothing in another.
        namespace: of process ids; containers of one machine have their own.
        started: when the process was, in clock ticks since the boot, as process ids are used again; None: unknown.
        acquired_at: ISO 8601.
        token: random; tells claims apart.
        released_at: None as long as it is held.
    """

    user: str
    host: str
    boot: str
    namespace: int
    pid: int
    started: int | None
    acquired_at: str
    token: str
    released_at: str | None = None

    @classmethod
    def here(cls) -> Holder:
        """Return this process, as of now."""
        started = None
        with contextlib.suppress(OSError):
            started = _started(os.getpid())
        return cls(_user(), *_machine(), os.getpid(), started, _now(), secrets.token_hex(16))

    def is_alive(self) -> bool | None:
        """Whether its process is; None: that cannot be seen from here."""
        if (self.host, self.boot, self.namespace) != _machine():
            return None
        try:
            started = _started(self.pid)
            return None if self.started is None else started == self.started
        except OSError:  # there is none, or it is somebody else's and hidden
            try:
                os.kill(self.pid, 0)
            except ProcessLookupError:
                return False
            except OSError:
                return None
            return None


class Lease:
    """Holds a sweep from `acquire` to `release`, or for a `with` block.

    Attributes:
        lost: set when the lease was found to be somebody else's, or could not be renewed for so long that it may be.
    """

    def __init__(
        self, folder: Path, on_lost: Callable[[str], None] | None = None, renew_seconds: float = RENEW_SECONDS
    ) -> None:
        """Name the lease by its folder, which is its own.

        Args:
            folder: made if there is none; its parents too.
            on_lost: is told the reason when the lease was lost, on another thread.
            renew_seconds: between signs of life; far less than `DEAD_SECONDS`.
        """
        self._folder, self._on_lost, self._renew_seconds = folder, on_lost, renew_seconds
        self._own: tuple[Path, Holder] | None = None
        self._released = threading.Event()
        self.lost = threading.Event()

    def acquire(self) -> None:
        """Take the lease, from a dead holder if need be, and renew it from now on.

        Raises:
            SweepHeld: somebody has it who is alive, or may be.
            LeaseError: the folder cannot be used.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            while (own := self._try()) is None:
                time.sleep(0.02)
        except OSError as error:
            raise unusable(self._folder, error) from error
        self._own = own
        self._released = threading.Event()
        self.lost.clear()
        threading.Thread(target=self._renew, args=(*own, self._released), name="lease", daemon=True).start()

    def expect_free(self) -> None:
        """Look whether the lease could be taken, without taking it.

        Raises:
            SweepHeld: somebody has it who is alive, or may be.
            LeaseError: the folder cannot be used.
        """
        try:
            with self._clock() as now, contextlib.suppress(FileNotFoundError):  # the number was taken back
                last = max(self._numbers(), default=0)
                if last and not _is_free(self._path(last), now()):
                    raise SweepHeld(f"{self._path(last)} is being written just now.")
        except OSError as error:
            raise unusable(self._folder, error) from error

    def release(self) -> None:
        """Give the lease back, if it is still this one's.  What cannot be given back ends with the process."""
        self._released.set()
        own, self._own = self._own, None
        if own is None:
            return
        path, holder = own
        with contextlib.suppress(OSError):
            if _is(path, holder):
                _write(path, replace(holder, released_at=_now()))

    def __enter__(self) -> Lease:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()

    def _try(self) -> tuple[Path, Holder] | None:
        """Claim the lease once; None: others were there at the same time, and things have changed."""
        # What this makes in the folder also has a network file system's client look at it anew.
        with self._clock() as now:
            numbers = self._numbers()
            last = max(numbers, default=0)
            try:
                if last and not _is_free(self._path(last), now()):
                    return None
            except FileNotFoundError:
                return None
            path, own = self._path(last + 1), Holder.here()
            try:
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            except FileExistsError:
                return None
            try:
                with open(fd, "w", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(own)))
                    file.flush()
                    os.fsync(fd)
                if max(self._numbers(), default=0) == last + 1:
                    for number in numbers:
                        if number <= last - KEPT:
                            self._path(number).unlink(missing_ok=True)
                    return path, own
            except BaseException:
                path.unlink(missing_ok=True)
                raise
            path.unlink(missing_ok=True)  # the number was an old one, which others may have cleared away already
            return None

    def _renew(self, path: Path, own: Holder, released: threading.Event) -> None:
        renewed = time.monotonic()
        while not released.wait(self._renew_seconds):
            reason = None
            try:
                if not _is(path, own) or self._path(max(self._numbers(), default=0)) != path:
                    reason = "somebody else has taken it"
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
                    self._on_lost(f"The lease {path} was lost: {reason}.")
                return

    @contextlib.contextmanager
    def _clock(self) -> Iterator[Callable[[], float]]:
        """Yield what tells the file system's time, which need not be this machine's."""
        with tempfile.NamedTemporaryFile(prefix=".clock-", dir=self._folder) as file:

            def now() -> float:
                os.utime(file.name)
                return os.stat(file.name).st_mtime

            yield now

    def _numbers(self) -> list[int]:
        return [int(match[1]) for name in os.listdir(self._folder) if (match := _CLAIM.fullmatch(name))]

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:08d}.json"


def unusable(folder: Path, error: OSError) -> LeaseError:
    """Return what is to be said where it cannot be made sure that nobody else is at work."""
    return LeaseError(
        f"The folder {folder} cannot be used: {error.strerror or error}.\n"
        "Without it two runs of a sweep could not notice each other."
    )


def _is_free(path: Path, now: float) -> bool:
    """Whether a claim has ended; no: it is still being written.

    Raises:
        SweepHeld: it holds.
    """
    holder, renewed = _read(path)
    # Of either sign: a time to come is not one of a living holder's either, but of a clock that was put back.
    age = abs(now - renewed)
    if holder is None:  # its maker died at once, or is about to write it
        if age < WRITE_SECONDS:
            return False
        alive = age < DEAD_SECONDS
    elif holder.released_at is not None:
        return True
    else:
        known = holder.is_alive()
        alive = known if known is not None else age < DEAD_SECONDS
    if alive:
        raise SweepHeld(_says(holder, path, age))
    return True


def _says(holder: Holder | None, path: Path, age: float) -> str:
    if holder is None:
        who = f"{path} was written {age:.0f} s ago"
    else:
        since = datetime.fromisoformat(holder.acquired_at).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        who = f"process {holder.pid} of {holder.user} on {holder.host} has held it since {since}"
    unseen = holder is None or holder.is_alive() is None
    rest = f"If that process is gone, the sweep can be run {DEAD_SECONDS:.0f} s after its last sign of life"
    return f"Another run of this sweep is in progress: {who}." + f"\n{rest}, {age:.0f} s ago." * unseen


def _is(path: Path, holder: Holder) -> bool:
    found, _ = _read(path)
    return found is not None and found.token == holder.token


def _read(path: Path) -> tuple[Holder | None, float]:
    """Return what a claim says, None if that is nothing sensible, and when it was renewed."""
    with path.open("rb") as file:  # opening has a network file system's client ask for the present time of it
        modified = os.fstat(file.fileno()).st_mtime
        try:
            holder = Holder(**json.loads(file.read()))
            datetime.fromisoformat(holder.acquired_at)
        except (ValueError, TypeError):
            return None, modified
    return (holder if isinstance(holder.pid, int) and 0 < holder.pid < 2**31 else None), modified


def _write(path: Path, holder: Holder) -> None:
    atomic.replace(path, lambda temporary: temporary.write_text(json.dumps(asdict(holder)), "utf-8"))


def _started(pid: int) -> int | None:
    """Return when a process was started, in clock ticks since the boot; None: it has ended, and waits to be reaped.

    Raises:
        OSError: there is none, or it cannot be seen.
    """
    # proc_pid_stat(5): the state follows the name, which is in brackets and may hold any; the time is 19 fields on.
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def _machine() -> tuple[str, str, int]:
    """Return the host's name, its boot and the namespace of process ids: what a process id means something in."""
    boot, namespace = "", 0
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        namespace = os.stat("/proc/self/ns/pid").st_ino
    return socket.gethostname(), boot, namespace


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        return str(os.getuid())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
