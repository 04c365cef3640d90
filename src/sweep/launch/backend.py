"""Who works shards off: the contract that local processes, Slurm and Ray keep."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sweep.plan import EngineGroup, PlannedPoint
from sweep.shards import manifest as manifests
from sweep.shards import plans as sweep_plans
from sweep.shards.manifest import Manifest
from sweep.shards.state import read_state

# What is known of an engine before it has been seen: a shard should be worth its start.
START_SECONDS, TOKENS_PER_SECOND = 60.0, 2000.0
PATIENCE = 5.0  # seconds, in which a process that is to end with the one that planned will have ended
LEASE_SECONDS = 180.0  # in which what has held a shard on another machine is known as dead, if it is
ATTEMPTS = 3  # at a shard, whose process may die
WORTH = 10  # starts that a shard should take, if there is as much to do


class Crew(ABC):
    """Processes that work shards off.

    Attributes:
        waits: whether `work` waits for the end.
        plans_anyway: whether a plan is wanted even if nothing is left to do, as its reader expects one.
        patience: seconds to wait, before work begins, for processes of an earlier run that are known to be ending, or
            that may be dead without anybody on this machine knowing.
    """

    waits = True
    plans_anyway = False
    patience = PATIENCE

    def __init__(self, shards: int | None = None) -> None:
        self._shards = shards

    def count(self, tokens: int, most: int) -> int:
        """Return how many shards to cut so many tokens into: what was set, else what follows from an engine's start."""
        return max(1, min(self._shards or self.suggest(tokens), most))

    def cut(self, groups: Sequence[EngineGroup]) -> list[list[PlannedPoint]]:
        """Return the points of groups in shards."""
        points = [planned for group in groups for planned in group.points]
        todo = sum(not planned.done for planned in points)
        return manifests.cut(points, self.count(sum(map(manifests.work, points)), todo))

    def suggest(self, tokens: int) -> int:
        """Return how many shards are worth an engine's start each."""
        return math.ceil(tokens / (WORTH * START_SECONDS * TOKENS_PER_SECOND))

    def place(self, plans: Path) -> Path:
        """Return the folder for a new plan; `plans` has those of the sweep."""
        return sweep_plans.new(plans)

    def attach(self, plans: Path) -> None:  # noqa: B027 - most have nothing that outlives them
        """Wait for what an earlier process of the sweep has left at work, if this crew can know of it.

        Raises:
            SweepHeld: something is at work, and this crew does not wait.
        """

    @abstractmethod
    def work(self, manifest: Manifest, watch: Callable[[], None]) -> Mapping[int, str]:
        """Have all shards of a plan worked off, and return why some were not.

        Args:
            watch: called now and then meanwhile.
        """

    def close(self) -> None:  # noqa: B027 - as of `attach`
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
        if not self._folder:
            return super().place(plans)
        return sweep_plans.add(plans, Path(self._folder).expanduser().resolve())

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
