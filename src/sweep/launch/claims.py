"""Shard claims: files by which workers divide the shards without a coordinator. Each shard is claimed once.

A claim is permanent. After a requeue, a worker returns to its own claim. Points of a shard that is never finished are
planned again by the coordinator.
"""

from __future__ import annotations

import os
from pathlib import Path

from sweep.launch.manifest import Manifest
from sweep.launch.shard_state import read_state


class Claims:
    """The claims of one worker. Owned by its main thread.

    Args:
        owner: name of the worker, which must be the same after a requeue.
    """

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._taken: dict[Path, set[int]] = {}  # by any worker, so that no claim is tried twice

    def unfinished(self, manifest: Manifest) -> int | None:
        """Return a shard that this worker claimed and did not finish, or None."""
        for index in range(manifest.shards):
            state = read_state(manifest.state(index))
            if not (state is not None and state.ended) and owner_of(manifest, index) == self._owner:
                return index
        return None

    def claim(self, manifest: Manifest, first: int = 0) -> int | None:
        """Claim a free shard and return it, or None if all are claimed.

        Args:
            manifest: the plan.
            first: index at which the search starts.
        """
        taken = self._taken.setdefault(manifest.folder, set())
        for index in ((first + i) % manifest.shards for i in range(manifest.shards)):
            if index not in taken:
                taken.add(index)
                if self._try_claim(manifest, index):
                    return index
        return None

    def _try_claim(self, manifest: Manifest, index: int) -> bool:
        try:
            fd = os.open(_path(manifest, index), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return False
        with open(fd, "w", encoding="utf-8") as file:
            file.write(self._owner)
        return True


def owner_of(manifest: Manifest, index: int) -> str | None:
    """Return the worker that claimed a shard, or None."""
    try:
        return _path(manifest, index).read_text("utf-8")
    except FileNotFoundError:
        return None


def _path(manifest: Manifest, index: int) -> Path:
    return manifest.folder / f"shard-{index:05d}.claim"
