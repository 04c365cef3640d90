"""File systems: whether only this machine writes to a path."""

from __future__ import annotations

import os
from pathlib import Path

LOCAL = frozenset(["bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "tmpfs", "xfs", "zfs"])
MOUNTS = Path("/proc/self/mountinfo")


def is_local(path: Path, mounts: Path = MOUNTS) -> bool:
    """Return whether a path is known to be on a disk or in the memory of this machine.

    Args:
        path: need not exist.
        mounts: the kernel's mount table, see proc_pid_mountinfo(5).
    """
    kind = _filesystem_type(os.path.realpath(path), mounts)
    return kind in LOCAL


def _filesystem_type(path: str, mounts: Path) -> str | None:
    """Return the type of the file system that contains a path; None if unknown."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:  # not Linux
        return None
    longest, kind = -1, None
    for line in lines:
        fields, _, rest = line.partition(" - ")
        mount_point = _unescaped(fields.split()[4])
        contains = path == mount_point or path.startswith(mount_point.rstrip("/") + "/")
        if contains and len(mount_point) >= longest:  # of equal mount points the last one is visible
            longest, kind = len(mount_point), rest.split()[0]
    return kind


def _unescaped(point: str) -> str:
    for code, character in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        point = point.replace(code, character)
    return point
