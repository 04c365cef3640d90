"""`hydra/launcher=ray`: runs the points of a sweep in shards on Ray actors."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore

from hydra_plugins.sweep_launchers.local import BatchLauncher, check_whole_number

if TYPE_CHECKING:
    from sweep.launch.backend import ShardBackend

ConfigStore.instance().store(
    group="hydra/launcher",
    name="ray",
    node={
        "_target_": "hydra_plugins.sweep_launchers.ray.RayLauncher",
        "address": None,
        "actors": None,
        "gpus": None,
        "cpus": None,
        "shards": None,
    },
    provider="sweep",
)


class RayLauncher(BatchLauncher):
    """Runs shards on Ray actors with an engine each.

    Args:
        address: address of a running cluster, such as `auto`, `host:6379` or `ray://…`. None: start one on this
            machine for this sweep.
        actors: number of actors. None: as many as the cluster has room for.
        gpus: GPUs per actor. None: 1 if the cluster has GPUs, else 0.
        cpus: CPUs that an actor reserves, and threads of its numerical libraries. None: one CPU, and the threads that
            the machine has for each GPU.
        shards: number of shards. None: as many as are worth an engine start.
    """

    def __init__(
        self, address: Any = None, actors: Any = None, gpus: Any = None, cpus: Any = None, shards: Any = None
    ) -> None:
        from sweep.util.validators import require

        check_whole_number("actors", actors, optional=True)
        check_whole_number("shards", shards, optional=True)
        for key, value in (("gpus", gpus), ("cpus", cpus)):
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            valid = value is None or (is_number and value >= 0)
            require(valid, f"hydra.launcher.{key}", "must be 0 or more", value)
        installed = importlib.util.find_spec("ray") is not None
        require(installed, "hydra/launcher=ray", "needs Ray, which is not installed. Run: pip install '.[ray]'", None)
        self._options = {"address": address, "actors": actors, "gpus": gpus, "cpus": cpus, "shards": shards}

    def backend(self) -> ShardBackend | None:
        """Return the backend of Ray actors."""
        from hydra_plugins.sweep_launchers._ray_backend import RayBackend
        from sweep.app import sweep_app

        return RayBackend(**self._options, say=sweep_app.current().terminal.say)
