"""`hydra/launcher=local`: runs all points of a sweep together, in this process or in workers on this machine.

Hydra's own launcher runs one point after the other. This one passes on all points at once, so that points with equal
engine specs share an engine and a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.sweep_launchers._compose import Composer

if TYPE_CHECKING:
    from sweep.launch.backend import ShardBackend

MAX_OPTION = 1_000_000  # default upper limit of a launcher's options
MAX_WORKERS = 1024  # on one machine

ConfigStore.instance().store(
    group="hydra/launcher",
    name="local",
    node={
        "_target_": "hydra_plugins.sweep_launchers.local.LocalLauncher",
        "workers": 1,
        "shards": None,
        "gpus": None,
    },
    provider="sweep",
)


class BatchLauncher(Launcher):
    """Launcher that runs each of the sweeper's batches in the process's `SweepApp`. Owned by the main thread."""

    def backend(self) -> ShardBackend | None:
        """Return the backend that runs shards, or None to run all points in this process."""
        return None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store the configuration and create the composer. Called by Hydra."""
        self._config = config
        self._composer = Composer(hydra_context.config_loader)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run a batch of points, and return their measures as Hydra's job results.

        Raises:
            ConfigError: there are no points, or a configuration is invalid.
        """
        from sweep.app import sweep_app
        from sweep.errors import ConfigError
        from sweep.points.point import make_points
        from sweep.util.redaction import redact_file

        if not job_overrides:
            raise ConfigError("The sweep has no points: one of its ranges or lists is empty.")
        setup_globals()
        current = sweep_app.current()
        redact_file(current.overrides_file)  # Hydra writes the overrides as typed
        jobs = [self._composer.compose(self._config, lines) for lines in job_overrides]
        results = current.run(make_points(jobs, current.axes or self._swept_keys()), self.backend)
        measures = map(current.measures, results)
        return [_job_return(list(lines), means) for lines, means in zip(job_overrides, measures, strict=True)]

    def _swept_keys(self) -> tuple[str, ...]:
        """Return the command's swept keys if it runs in batches, because one batch may not vary all of them."""
        from sweep.config.combinations import unscoped

        sweeper = self._config.hydra.sweeper
        if sweeper.get("max_batch_size") is None:
            return ()
        params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
        overrides = OverridesParser.create().parse_overrides([*params, *self._config.hydra.overrides.task])
        return tuple(unscoped(override.get_key_element()) for override in overrides if override.is_sweep_override())


class LocalLauncher(BatchLauncher):
    """Runs points in this process, or in several workers on this machine.

    Args:
        workers: number of processes with an engine each. 1: only this process.
        shards: number of shards for the workers. None: several per worker.
        gpus: GPUs per worker. None: all GPUs are divided among the workers.
    """

    def __init__(self, workers: Any = 1, shards: Any = None, gpus: Any = None) -> None:
        check_whole_number("workers", workers, most=MAX_WORKERS)
        check_whole_number("shards", shards, optional=True)
        check_whole_number("gpus", gpus, optional=True)
        self._workers, self._shards, self._gpus = workers, shards, gpus

    def backend(self) -> ShardBackend | None:
        """Return the backend of worker processes, or None for a single process."""
        from hydra_plugins.sweep_launchers._local_backend import LocalBackend

        return LocalBackend(self._workers, self._shards, self._gpus) if self._workers > 1 else None


def check_whole_number(key: str, value: Any, *, least: int = 1, most: int = MAX_OPTION, optional: bool = False) -> None:
    """Check that a launcher's option is a whole number.

    Args:
        key: name of the option.
        value: its value.
        least: lower limit.
        most: upper limit.
        optional: whether null is allowed.

    Raises:
        ConfigError: the value is not in the range.
    """
    from sweep.util.validators import require

    valid = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
    rule = f"must be a whole number of {least} or more"
    if isinstance(value, int) and value > most:
        rule = f"must be at most {most:,}"
    require(valid or (optional and value is None), f"hydra.launcher.{key}", rule, value)


def _job_return(overrides: list[str], measures: dict[str, float]) -> JobReturn:
    result = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
    result.return_value = measures
    return result
