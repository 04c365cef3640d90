"""`hydra/launcher=plan`: only writes a plan, for schedulers that run `python -m sweep.shard` themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore

from hydra_plugins.sweep_launchers.local import BatchLauncher, check_whole_number

if TYPE_CHECKING:
    from sweep.launch.backend import ShardBackend

ConfigStore.instance().store(
    group="hydra/launcher",
    name="plan",
    node={"_target_": "hydra_plugins.sweep_launchers.plan.PlanLauncher", "shards": None, "folder": None},
    provider="sweep",
)


class PlanLauncher(BatchLauncher):
    """Checks the points and writes the unfinished ones as a plan.

    Args:
        shards: number of shards. None: as many as are worth an engine start.
        folder: folder for the plan. None: a new one among the sweep's files.
    """

    def __init__(self, shards: Any = None, folder: Any = None) -> None:
        from sweep.util.validators import require

        check_whole_number("shards", shards, optional=True)
        require(folder is None or bool(str(folder).strip()), "hydra.launcher.folder", "must name a folder", folder)
        self._shards, self._folder = shards, folder

    def backend(self) -> ShardBackend | None:
        """Return a backend that only writes plans."""
        from sweep.app import sweep_app
        from sweep.launch.backend import PlanOnly

        return PlanOnly(self._shards, self._folder, sweep_app.current().terminal.result)
