"""`hydra/launcher=plan`: only writes a plan, for schedulers that call `python -m sweep.shard` themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore

from hydra_plugins.sweep_launchers.local import SessionLauncher, whole

if TYPE_CHECKING:
    from sweep.shards.crew import Crew

ConfigStore.instance().store(
    group="hydra/launcher",
    name="plan",
    node={"_target_": "hydra_plugins.sweep_launchers.plan.PlanLauncher", "shards": None, "folder": None},
    provider="sweep",
)


class PlanLauncher(SessionLauncher):
    """Composes, checks, and writes what is not done yet as shards.

    Args:
        shards: pieces that the points are cut into; None: as many as are worth an engine's start.
        folder: for the plan; None: a new one among the sweep's files.
    """

    def __init__(self, shards: Any = None, folder: Any = None) -> None:
        from sweep.checks import require

        whole("shards", shards, optional=True)
        require(folder is None or bool(str(folder).strip()), "hydra.launcher.folder", "must name a folder", folder)
        self._shards, self._folder = shards, folder

    def crew(self) -> Crew | None:
        """Return one that only has plans written."""
        from sweep import session
        from sweep.shards.crew import PlanOnly

        return PlanOnly(self._shards, self._folder, session.current().terminal.result)
