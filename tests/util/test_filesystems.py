"""Which file systems are this machine's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweep.util.filesystems import is_local

MOUNTS = r"""
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:25 / /home rw - nfs4 server:/home rw
31 30 8:2 / /home/me/disk rw shared:2 master:3 - xfs /dev/sdb1 rw
32 22 0:26 / /data\040set rw - lustre a@tcp:/fs rw
33 22 0:27 / /home2 rw - fuse.sshfs me@there:/ rw
34 22 0:28 / /over rw - nfs server:/over rw
35 34 0:29 / /over rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("path", "local"),
    [
        ("/var/sweeps", True),
        ("/home", False),
        ("/home/me/sweeps", False),
        ("/home/me/disk/sweeps", True),
        ("/home/me/diskette", False),
        ("/data set/sweeps", False),
        ("/home2/x", False),
        ("/over/x", True),  # the later mount hides the earlier one
    ],
)
def test_innermost_mount_is_used(tmp_path: Path, path: str, local: bool) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(MOUNTS.lstrip())
    assert is_local(Path(path), mounts) is local


def test_unknown_file_system_is_not_trusted(tmp_path: Path) -> None:
    assert not is_local(tmp_path, tmp_path / "no mountinfo")


def test_links_are_followed(tmp_path: Path) -> None:
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"1 0 8:1 / / rw - ext4 a rw\n2 1 0:2 / {tmp_path}/far rw - nfs b rw\n")
    (tmp_path / "far").mkdir()
    (tmp_path / "near").symlink_to(tmp_path / "far")
    assert not is_local(tmp_path / "near" / "mlflow.db", mounts) and is_local(tmp_path, mounts)
