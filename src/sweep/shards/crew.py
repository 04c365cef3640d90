"""Who works shards off: the contract that local processes, Slurm and Ray keep."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path

from sweep.shards.manifest import Manifest
from sweep.shards.state import read_state

# What is known of an engine before it has been seen: a shard should be worth its start.
START_SECONDS, TOKENS_PER_SECOND = 60.0, 2000.0
ATTEMPTS = 3  # at a shard, whose process may die
WORTH = 10  # starts that a shard should take, if there is as much to do


class Crew(ABC):
    """Processes that work shards off.

    Attributes:
        waits: whether `work` waits for the end.
        plans_anyway: whether a plan is wanted even if nothing is left to do, as its reader expects one.
    """

    waits = True
    plans_anyway = False

    def __init__(self, shards: int | None = None) -> None:
        self._shards = shards

    def count(self, tokens: int, most: int) -> int:
        """Return how many shards to cut so many tokens into: what was set, else what follows from an engine's start."""
        return max(1, min(self._shards or self.suggest(tokens), most))

    def suggest(self, tokens: int) -> int:
        """Return how many shards are worth an engine's start each."""
        return math.ceil(tokens / (WORTH * START_SECONDS * TOKENS_PER_SECOND))

    def place(self, plans: Path) -> Path:
        """Return the folder for a new plan; `plans` has those of the sweep."""
        plans.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(path.name) for path in plans.iterdir() if path.name.isdecimal()), default=-1)
        while True:
            try:
                (folder := plans / f"{number:04d}").mkdir()
            except FileExistsError:
                number += 1
            else:
                return folder

    def attach(self, plans: Path) -> None:  # noqa: B027 - most have nothing that outlives them
        """Wait for what an earlier process of the sweep has left at work, if that is possible.

        Raises:
            SweepHeld: something is at work, and this crew does not wait.
        """

    @abstractmethod
    def work(self, manifest: Manifest, watch: Callable[[], None]) -> Mapping[int, str]:
        """Have all shards of a plan worked off, and return why some were not.

        Args:
            watch: called now and then meanwhile.
        """

    def close(self) -> None:  # noqa: B027
        """End what was started, if it is to end with this process."""


class PlanOnly(Crew):
    """Nobody: somebody else calls `python -m sweep.shard` for each shard.

    Args:
        folder: for the plan; None: among the sweep's files.
        say: is told where the plan is.
    """

    waits = False
    plans_anyway = True

    def __init__(self, shards: int | None, folder: str | None, say: Callable[[str], None]) -> None:
        super().__init__(shards)
        self._folder, self._say = folder, say

    def place(self, plans: Path) -> Path:
        """Return the folder that was asked for, else a new one."""
        return Path(self._folder).expanduser().resolve() if self._folder else super().place(plans)

    def work(self, manifest: Manifest, watch: Callable[[], None]) -> Mapping[int, str]:
        """Say where the plan is."""
        self._say(f"{manifest.shards} shards: {manifest.path}")
        return {}


def left_undone(manifest: Manifest, reasons: Mapping[int, str]) -> dict[int, str]:
    """Return why shards are not done, of those that are not: what they say, else the reason given, else that it ended.

    A shard that says that it is done is, whatever became of its process afterwards.
    """
    undone = {}
    for index in range(manifest.shards):
        state = read_state(manifest.state(index))
        if state is None or not state.ended:
            undone[index] = reasons.get(index, "its process ended without a word")
        elif state.reason is not None and state.state != "done":
            undone[index] = state.reason
    return undone
