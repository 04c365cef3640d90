"""Holder of a sweep lock: which process it is, and whether it is alive."""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that holds a lock: the content of a claim file.

    Attributes:
        user: user name.
        host: host name.
        boot: boot id of the machine. A process id is valid within one boot only.
        namespace: inode of the process id namespace. Containers on one machine have different ones.
        pid: process id.
        started: start of the process in clock ticks since the boot, since process ids are reused. None: unknown.
        acquired_at: ISO 8601.
        token: random, identifies the claim.
        released_at: ISO 8601, or None while the lock is held.
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
        """Return a holder for this process, acquired now."""
        started = None
        with contextlib.suppress(OSError):
            started = process_start(os.getpid())
        return cls(user(), *machine(), os.getpid(), started, utc_now(), secrets.token_hex(16))

    def is_alive(self) -> bool | None:
        """Return whether the process is alive, or None if that cannot be determined from here."""
        if (self.host, self.boot, self.namespace) != machine():
            return None
        try:
            started = process_start(self.pid)
            return None if self.started is None else started == self.started
        except OSError:  # the process does not exist, or belongs to another user and is hidden
            try:
                os.kill(self.pid, 0)
            except ProcessLookupError:
                return False
            except OSError:
                return None
            return None


def process_start(pid: int) -> int | None:
    """Return the start of a process in clock ticks since the boot, or None for a zombie.

    Raises:
        OSError: the process does not exist or is hidden.
    """
    # proc_pid_stat(5): the state follows the name, which may contain brackets. The start is 19 fields after the state.
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def machine() -> tuple[str, str, int]:
    """Return the scope in which a process id is valid: host name, boot id and process id namespace."""
    boot, namespace = "", 0
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        namespace = os.stat("/proc/self/ns/pid").st_ino
    return socket.gethostname(), boot, namespace


def user() -> str:
    """Return the name of the user, or the number of a user without a name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return str(os.getuid())


def utc_now() -> str:
    """Return the time in UTC, ISO 8601, in whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")
