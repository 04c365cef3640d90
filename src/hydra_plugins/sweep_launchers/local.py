"""`hydra/launcher=local`: all points of a sweep in this process, together.

Hydra's own launcher would run one point after the other.  This one hands them over at once, so that those with equal
engine specs share an engine and a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.sweep_launchers._compose import Composer

if TYPE_CHECKING:
    from sweep.shards.crew import Crew

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


class SessionLauncher(Launcher):
    """Runs each batch of points that the sweeper asks for through this process's session."""

    def crew(self) -> Crew | None:
        """Return who works points off; None: this process does."""
        return None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Remember what composes points."""
        self._config = config
        self._composer = Composer(hydra_context.config_loader)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run points; each returns its measures, or failed with the reason."""
        from sweep import session
        from sweep.errors import ConfigError
        from sweep.point import make_points
        from sweep.redaction import redact_file

        if not job_overrides:
            raise ConfigError("The sweep has no points: one of its ranges or lists is empty.")
        setup_globals()
        redact_file(Path(self._config.hydra.sweep.dir) / "multirun.yaml")  # Hydra keeps what was typed
        jobs = [(list(overrides), self._composer.compose(self._config, overrides)) for overrides in job_overrides]
        current = session.current()
        results = current.run(make_points(jobs, current.axes), self.crew)
        return [_job_return(jobs[i][0], current.measures(result)) for i, result in enumerate(results)]


class LocalLauncher(SessionLauncher):
    """Works points off in this process, or in several of this machine.

    Args:
        workers: processes, each with an engine of its own; 1: this one.
        shards: pieces that the points are cut into for them; None: some for each.
        gpus: of each worker; None: all that there are, divided among them.
    """

    def __init__(self, workers: Any = 1, shards: Any = None, gpus: Any = None) -> None:
        whole("workers", workers)
        whole("shards", shards, optional=True)
        whole("gpus", gpus, optional=True)
        self._workers, self._shards, self._gpus = workers, shards, gpus

    def crew(self) -> Crew | None:
        """Return worker processes, or None for one."""
        from hydra_plugins.sweep_launchers._workers import LocalCrew

        return LocalCrew(self._workers, self._shards, self._gpus) if self._workers > 1 else None


def whole(key: str, value: Any, *, least: int = 1, optional: bool = False) -> None:
    """Refuse an option of a launcher that is no whole number, or less than the least; `optional` allows null."""
    from sweep.checks import require

    fits = isinstance(value, int) and not isinstance(value, bool) and value >= least
    rule = f"must be a whole number of {least} or more"
    require(fits or (optional and value is None), f"hydra.launcher.{key}", rule, value)


def _job_return(overrides: list[str], measures: dict[str, float]) -> JobReturn:
    done = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
    done.return_value = measures
    return done
