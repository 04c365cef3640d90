"""`hydra/launcher=slurm`: runs the points of a sweep in shards as tasks of Slurm arrays."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from hydra_plugins.sweep_launchers.local import BatchLauncher, check_whole_number

if TYPE_CHECKING:
    from sweep.launch.backend import ShardBackend

# submitit's names without its prefix `slurm_`.
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


class SlurmLauncher(BatchLauncher):
    """Submits shards as array jobs and waits for them.

    Args:
        additional_parameters: further options of `sbatch` by their long names.
        setup: shell lines that run before each task.
        shards: number of shards. None: as many as are worth an engine start.
        requeues: how often a task that reaches its time limit is requeued.
        linger_seconds: how long an idle task keeps its engine for the sweeper's next batch.
        wait: whether to wait for the tasks. False: only submit. Run the same command later to publish.
        options: options of `sbatch` that are listed in `SLURM`.
    """

    def __init__(
        self,
        additional_parameters: Any = None,
        setup: Any = None,
        shards: Any = None,
        requeues: Any = 3,
        linger_seconds: Any = 60,
        wait: Any = True,
        **options: Any,
    ) -> None:
        from sweep.util.validators import require, require_choice

        for key in options:
            require_choice("hydra.launcher", key, list(SLURM), what="option")
        check_whole_number("shards", shards, optional=True)
        check_whole_number("requeues", requeues, least=0)
        check_whole_number("timeout_min", options.get("timeout_min", 1))
        check_whole_number("array_parallelism", options.get("array_parallelism", 1))
        is_number = isinstance(linger_seconds, (int, float)) and not isinstance(linger_seconds, bool)
        require(is_number and linger_seconds >= 0, "hydra.launcher.linger_seconds", "must be 0 or more", linger_seconds)
        require(isinstance(wait, bool), "hydra.launcher.wait", "must be true or false", wait)
        installed = importlib.util.find_spec("submitit") is not None
        rule = "needs submitit, which is not installed. Run: pip install '.[slurm]'"
        require(installed, "hydra/launcher=slurm", rule, None)
        additional: Any = OmegaConf.to_container(additional_parameters) if additional_parameters else {}
        self._options, self._additional, self._setup = options, additional, list(setup or [])
        self._shards, self._requeues, self._linger, self._wait = shards, requeues, linger_seconds, wait

    def backend(self) -> ShardBackend | None:
        """Return the backend of Slurm tasks."""
        from hydra_plugins.sweep_launchers._slurm_backend import SlurmBackend, slurm_parameters
        from sweep.app import sweep_app

        return SlurmBackend(
            slurm_parameters(self._options, self._additional, self._setup),
            requeues=self._requeues,
            linger_seconds=self._linger,
            shards=self._shards,
            waits=self._wait,
            say=sweep_app.current().terminal.say,
        )
