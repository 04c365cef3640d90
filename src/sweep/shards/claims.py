"""Which process has which shard, where no head can tell them: each is claimed once, by a file.

A claim lasts for good.  Whoever made it comes back to it, after a requeue; what nobody ends, the head plans anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from sweep.shards.manifest import MANIFEST, Manifest, read
from sweep.shards.state import read_state

CLOSED = "closed"  # in the folder of plans: no more will come


def take(manifest: Manifest, owner: str, first: int = 0) -> int | None:
    """Return a shard for a process: the one that it has begun, else a free one, looking from `first` on.

    None: all are taken.
    """
    for index in range(manifest.shards):
        state = read_state(manifest.state(index))
        if owner_of(manifest, index) == owner and not (state is not None and state.ended):
            return index
    for i in range(manifest.shards):
        index = (first + i) % manifest.shards
        try:
            fd = os.open(_path(manifest, index), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            continue
        with open(fd, "w", encoding="utf-8") as file:
            file.write(owner)
        return index
    return None


def owner_of(manifest: Manifest, index: int) -> str | None:
    """Return who has a shard; None: nobody."""
    try:
        return _path(manifest, index).read_text("utf-8")
    except FileNotFoundError:
        return None


def later(manifest: Manifest) -> Iterator[Manifest]:
    """Yield the plans of the same sweep that were made after one."""
    for path in sorted(manifest.folder.parent.glob(f"*/{MANIFEST}")):
        if path.parent.name > manifest.folder.name:
            yield read(path)


def close(plans: Path) -> None:
    """Say that no more plans will come."""
    (plans / CLOSED).touch()


def reopen(plans: Path) -> None:
    """Say that plans may come again."""
    (plans / CLOSED).unlink(missing_ok=True)


def is_closed(plans: Path) -> bool:
    """Whether no more plans will come."""
    return (plans / CLOSED).exists()


def _path(manifest: Manifest, index: int) -> Path:
    return manifest.folder / f"shard-{index:05d}.claim"
