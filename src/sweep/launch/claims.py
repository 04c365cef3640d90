"""Which process has which shard, where no head can tell them: each is claimed once, by a file.

A claim lasts for good.  Whoever made it comes back to it, after a requeue; what nobody ends, the head plans anew.
"""

from __future__ import annotations

import os
from pathlib import Path

from sweep.shards.manifest import Manifest
from sweep.shards.state import read_state


class Claims:
    """One process's claims.

    Args:
        owner: its name, which is the same after a requeue.
    """

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._taken: dict[Path, set[int]] = {}  # by anybody, so that no file is looked at over and over again

    def begun(self, manifest: Manifest) -> int | None:
        """Return a shard that was claimed before, and not ended; None: there is none."""
        for index in range(manifest.shards):
            state = read_state(manifest.state(index))
            if not (state is not None and state.ended) and owner_of(manifest, index) == self._owner:
                return index
        return None

    def take(self, manifest: Manifest, first: int = 0) -> int | None:
        """Claim a free shard, looking from `first` on, and return it; None: all are taken."""
        taken = self._taken.setdefault(manifest.folder, set())
        for index in ((first + i) % manifest.shards for i in range(manifest.shards)):
            if index not in taken:
                taken.add(index)
                if self._claim(manifest, index):
                    return index
        return None

    def _claim(self, manifest: Manifest, index: int) -> bool:
        try:
            fd = os.open(_path(manifest, index), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        with open(fd, "w", encoding="utf-8") as file:
            file.write(self._owner)
        return True


def owner_of(manifest: Manifest, index: int) -> str | None:
    """Return who has a shard; None: nobody."""
    try:
        return _path(manifest, index).read_text("utf-8")
    except FileNotFoundError:
        return None


def _path(manifest: Manifest, index: int) -> Path:
    return manifest.folder / f"shard-{index:05d}.claim"
