"""Shard backends: the interface that local processes, Slurm and Ray implement to run shards."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sweep.launch import partition
from sweep.launch import plans as sweep_plans
from sweep.launch.manifest import Manifest
from sweep.launch.shard_state import read_state
from sweep.planning.plan import EngineGroup, PlannedPoint
from sweep.util.counts import counted

# Assumed speed of an engine that has not run yet. A shard should be worth an engine start.
START_SECONDS, TOKENS_PER_SECOND = 60.0, 2000.0
PATIENCE = 5.0  # seconds within which a worker ends after its coordinator
LOCK_EXPIRY_SECONDS = 180.0  # after which the lock of a dead process on another machine has certainly expired
ATTEMPTS = 3  # per shard, in case its process dies
STARTS_PER_SHARD = 10  # how many times an engine's start a shard should take, given enough work


class ShardBackend(ABC):
    """Runs the shards of plans in other processes.

    Owned by the coordinator's main thread. `attach` comes first, then any number of `work`, `close` at the end.

    Attributes:
        waits: whether `work` waits until all shards have ended.
        plans_empty: whether to write a plan even if no point is left, because a scheduler expects a plan file.
        patience: seconds to wait before work begins for workers of an earlier run. These may be about to end, or dead
            on another machine with a lock that has not expired.
    """

    waits = True
    plans_empty = False
    patience = PATIENCE

    def __init__(self, shards: int | None = None) -> None:
        """Create the backend.

        Args:
            shards: number of shards per plan, or None to derive it from the amount of work.
        """
        self._shards = shards

    def shard_count(self, tokens: int, most: int) -> int:
        """Return the number of shards for this many tokens: the configured number or the suggested one.

        Args:
            tokens: tokens to be generated.
            most: upper limit.
        """
        return max(1, min(self._shards or self.suggest_shards(tokens), most))

    def cut(self, groups: Sequence[EngineGroup]) -> list[list[PlannedPoint]]:
        """Split the points of groups into shards."""
        points = [planned for group in groups for planned in group.points]
        todo = sum(not planned.done for planned in points)
        return partition.split(points, self.shard_count(sum(map(partition.work, points)), todo))

    def suggest_shards(self, tokens: int) -> int:
        """Return how many shards of this many tokens are each worth an engine start."""
        return math.ceil(tokens / (STARTS_PER_SHARD * START_SECONDS * TOKENS_PER_SECOND))

    def plan_folder(self, plans: Path) -> Path:
        """Return the folder for a new plan.

        Args:
            plans: folder of the sweep's plans.
        """
        return sweep_plans.new(plans)

    def attach(self, plans: Path) -> None:  # noqa: B027 - most backends have no processes that outlive them
        """Wait for workers of an earlier coordinator, if this backend can find them.

        Raises:
            SweepHeld: workers are running, and this backend does not wait.
        """

    @abstractmethod
    def work(self, manifest: Manifest, watch: Callable[[], None]) -> Mapping[int, str]:
        """Run all shards of a plan.

        Args:
            manifest: the plan.
            watch: called every few seconds while shards run.

        Returns:
            The reason for each unfinished shard, by index.
        """

    def close(self) -> None:  # noqa: B027 - see `attach`
        """End the processes that must not outlive this one."""


class PlanOnly(ShardBackend):
    """Only writes the plan. The user or a scheduler runs `python -m sweep.shard` for each shard.

    Args:
        shards: number of shards, or None to derive it from the amount of work.
        folder: folder for the plan, or None for one among the sweep's files.
        say: called with a message that names the plan's path.
    """

    waits = False
    plans_empty = True

    def __init__(self, shards: int | None, folder: str | None, say: Callable[[str], None]) -> None:
        super().__init__(shards)
        self._folder, self._say = folder, say

    def plan_folder(self, plans: Path) -> Path:
        """Return the configured folder, or else a new one."""
        if not self._folder:
            return super().plan_folder(plans)
        return sweep_plans.add(plans, Path(self._folder).expanduser().resolve())

    def work(self, manifest: Manifest, watch: Callable[[], None]) -> Mapping[int, str]:
        """Print the plan's path."""
        self._say(f"{counted(manifest.shards, 'shard')}: {manifest.path}")
        return {}


def unfinished_shards(manifest: Manifest, reasons: Mapping[int, str]) -> dict[int, str]:
    """Return a reason for each unfinished shard, by index.

    The reason in the shard's state file comes first, then the one in `reasons`. A shard whose state is "done" is
    finished, whatever happened to its process afterwards.

    Args:
        manifest: the plan.
        reasons: what the backend knows, by index of the shard.
    """
    unfinished = {}
    for index in range(manifest.shards):
        state = read_state(manifest.state(index))
        if state is None or not state.ended:
            unfinished[index] = reasons.get(index, "its process ended without giving a reason")
        elif state.reason is not None and state.state != "done":
            unfinished[index] = state.reason
    return unfinished
