"""`hydra/launcher=slurm`: the points of a sweep in shards, each a task of a Slurm array."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from hydra_plugins.sweep_launchers.local import SessionLauncher, whole

if TYPE_CHECKING:
    from sweep.shards.crew import Crew

# Names are submitit's, without its `slurm_`.
SLURM = {
    "partition": None,
    "account": None,
    "qos": None,
    "gres": None,
    "constraint": None,
    "timeout_min": 60,
    "cpus_per_task": None,
    "mem_gb": None,
    "array_parallelism": 256,
    "signal_delay_s": 90,
}

ConfigStore.instance().store(
    group="hydra/launcher",
    name="slurm",
    node={
        "_target_": "hydra_plugins.sweep_launchers.slurm.SlurmLauncher",
        **SLURM,
        "additional_parameters": {},
        "setup": None,
        "shards": None,
        "requeues": 3,
        "linger_seconds": 60,
        "wait": True,
    },
    provider="sweep",
)


class SlurmLauncher(SessionLauncher):
    """Submits shards as array jobs, and waits for them.

    Args:
        additional_parameters: further options of `sbatch`, by their long names.
        setup: lines of shell that run before each task.
        shards: pieces that the points are cut into; None: as many as are worth an engine's start.
        requeues: how often a task that has run out of time goes on in another one.
        linger_seconds: for which a task keeps its engine when nothing is left to do, for the sweeper's next batch.
        wait: False: submit, and leave publication to the same command later.
        given: options of `sbatch` in `SLURM`.
    """

    def __init__(
        self,
        additional_parameters: Any = None,
        setup: Any = None,
        shards: Any = None,
        requeues: Any = 3,
        linger_seconds: Any = 60,
        wait: Any = True,
        **given: Any,
    ) -> None:
        from sweep.checks import require, require_choice

        for key in given:
            require_choice("hydra.launcher", key, list(SLURM), what="option")
        whole("shards", shards, optional=True)
        whole("requeues", requeues, least=0)
        whole("timeout_min", given.get("timeout_min", 1))
        whole("array_parallelism", given.get("array_parallelism", 1))
        number = isinstance(linger_seconds, (int, float)) and not isinstance(linger_seconds, bool)
        require(number and linger_seconds >= 0, "hydra.launcher.linger_seconds", "must be 0 or more", linger_seconds)
        require(isinstance(wait, bool), "hydra.launcher.wait", "must be true or false", wait)
        installed = importlib.util.find_spec("submitit") is not None
        require(installed, "hydra/launcher=slurm", "needs the extra: pip install .[slurm]", None)
        plain: Any = OmegaConf.to_container(additional_parameters) if additional_parameters else {}
        self._given, self._additional, self._setup = given, plain, list(setup or [])
        self._shards, self._requeues, self._linger, self._wait = shards, requeues, linger_seconds, wait

    def crew(self) -> Crew | None:
        """Return Slurm's tasks."""
        from hydra_plugins.sweep_launchers._slurm import SlurmCrew, slurm_parameters
        from sweep import session

        return SlurmCrew(
            slurm_parameters(self._given, self._additional, self._setup),
            requeues=self._requeues,
            linger_seconds=self._linger,
            shards=self._shards,
            waits=self._wait,
            say=session.current().terminal.say,
        )
