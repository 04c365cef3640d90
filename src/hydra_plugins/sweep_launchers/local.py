"""`hydra/launcher=local`: all points of a sweep in this process, together.

Hydra's own launcher would run one point after the other.  This one hands them over at once, so that those with equal
engine specs share an engine and a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from hydra_plugins.sweep_launchers._compose import Composer

ConfigStore.instance().store(
    group="hydra/launcher",
    name="local",
    node={"_target_": "hydra_plugins.sweep_launchers.local.LocalLauncher"},
    provider="sweep",
)


class LocalLauncher(Launcher):
    """Runs each batch of points that the sweeper asks for through this process's session."""

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
        results = current.run(make_points(jobs, current.axes))
        return [_job_return(jobs[i][0], current.measures(result)) for i, result in enumerate(results)]


def _job_return(overrides: list[str], measures: dict[str, float]) -> JobReturn:
    done = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
    done.return_value = measures
    return done
