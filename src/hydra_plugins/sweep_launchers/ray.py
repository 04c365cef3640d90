"""`hydra/launcher=ray`: the points of a sweep in shards, worked off by Ray's actors."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore

from hydra_plugins.sweep_launchers.local import SessionLauncher, whole

if TYPE_CHECKING:
    from sweep.shards.crew import Crew

ConfigStore.instance().store(
    group="hydra/launcher",
    name="ray",
    node={
        "_target_": "hydra_plugins.sweep_launchers.ray.RayLauncher",
        "address": None,
        "actors": None,
        "gpus": 0,
        "cpus": 1,
        "shards": None,
    },
    provider="sweep",
)


class RayLauncher(SessionLauncher):
    """Gives shards to actors, an engine each.

    Args:
        address: of a running cluster (`auto`, `host:6379`, `ray://…`); None: one on this machine, for this sweep alone.
        actors: how many; None: as many as the cluster has room for.
        gpus, cpus: of each actor.
        shards: pieces that the points are cut into; None: as many as are worth an engine's start.
    """

    def __init__(
        self, address: Any = None, actors: Any = None, gpus: Any = 0, cpus: Any = 1, shards: Any = None
    ) -> None:
        from sweep.checks import require

        whole("actors", actors, optional=True)
        whole("shards", shards, optional=True)
        for key, value in (("gpus", gpus), ("cpus", cpus)):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            require(number and value >= 0, f"hydra.launcher.{key}", "must be 0 or more", value)
        installed = importlib.util.find_spec("ray") is not None
        require(installed, "hydra/launcher=ray", "needs the extra: pip install .[ray]", None)
        self._given = {"address": address, "actors": actors, "gpus": gpus, "cpus": cpus, "shards": shards}

    def crew(self) -> Crew | None:
        """Return Ray's actors."""
        from hydra_plugins.sweep_launchers._ray import RayCrew
        from sweep import session

        return RayCrew(**self._given, say=session.current().terminal.say)
