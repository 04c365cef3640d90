"""`hydra/sweeper=optuna`: searches for the best point by `sweep.objective`, batch by batch.

The study is a file in the sweep's folder. Running the same command again resumes the search: finished points come from
the archive, failed and interrupted points run again, and new ones follow up to `hydra.sweeper.n_trials`, which may have
been raised.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, IntegerNode, OmegaConf, StringNode
from omegaconf.errors import OmegaConfBaseException

from sweep.config.objective import FORMS, KEY, Objective
from sweep.config.point_count import MAX_POINTS
from sweep.errors import ConfigError, SweepError
from sweep.util.counts import counted
from sweep.util.validators import require, require_choice

if TYPE_CHECKING:
    from hydra_plugins.sweep_sweepers._study import ProposedPoint, Study

NODE = "hydra.sweeper"
MAX_JOBS = 10_000  # points per batch. Proposing a point takes Optuna the longer, the more trials there are
OLDEST = 5  # lowest supported major version of Optuna


# Not a dataclass: the way in which Hydra imports plugins breaks dataclasses.
CONF = OmegaConf.create(
    {
        "_target_": "hydra_plugins.sweep_sweepers.optuna.OptunaSweeper",
        "n_trials": IntegerNode(20),
        "n_jobs": IntegerNode(4),
        "sampler": StringNode("tpe"),
        "seed": IntegerNode(0),
        "params": {},
    }
)
ConfigStore.instance().store(group="hydra/sweeper", name="optuna", node=CONF, provider="sweep")


def _has_optuna() -> bool:
    try:
        return int(importlib.metadata.version("optuna").split(".")[0]) >= OLDEST
    except importlib.metadata.PackageNotFoundError:
        return False


class OptunaSweeper(Sweeper):
    """Sweeper whose points Optuna proposes and any launcher runs. Owned by the main thread.

    Args:
        n_trials: number of points, including those of earlier runs of the command.
        n_jobs: points per batch, which share an engine.
        sampler: tpe, gp, random or grid.
        seed: seed of the sampler. None: a random one.
        params: search space in configuration files. Overrides on the command line take precedence.
    """

    def __init__(self, n_trials: int, n_jobs: int, sampler: str, seed: int | None, params: dict[str, Any]) -> None:
        """Store the settings. `setup` checks them, because Hydra wraps errors that are raised here."""
        self._n_trials, self._n_jobs, self._sampler, self._seed = n_trials, n_jobs, sampler, seed
        self._params = dict(params)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Check the settings and create the launcher.

        Raises:
            ConfigError: a setting or the objective is invalid, or Optuna is not installed.
        """
        for key, value, most in (("n_trials", self._n_trials, MAX_POINTS), ("n_jobs", self._n_jobs, MAX_JOBS)):
            require(value >= 1, f"{NODE}.{key}", "must be at least 1", value)
            require(value <= most, f"{NODE}.{key}", f"must be at most {most:,}", value)
        require(self._seed is None or self._seed >= 0, f"{NODE}.seed", "must be 0 or more", self._seed)
        require(config.sweep.objective is not None, KEY, f"must define the objective: {FORMS}", None)
        rule = "pairs the values of lists, but hydra/sweeper=optuna chooses its own. Remove one of the two"
        require(config.sweep.zip is None, "sweep.zip", rule, None)
        if not _has_optuna():
            raise ConfigError(f"hydra/sweeper=optuna needs Optuna {OLDEST} or newer. Run: pip install '.[optuna]'")
        from hydra_plugins.sweep_sweepers._study import SAMPLERS

        require_choice(f"{NODE}.sampler", self._sampler, list(SAMPLERS))
        self._objective = Objective.parse(str(config.sweep.objective))
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run batches until the study has `n_trials` trials."""
        from hydra_plugins.sweep_sweepers._space import read_space
        from hydra_plugins.sweep_sweepers._study import FILE, Study, StudyFile
        from sweep.app import sweep_app

        assert self.hydra_context is not None and self.config is not None
        overrides = [f"{key}={value}" for key, value in self._params.items()] + list(arguments)
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        self._space = space = read_space(parser.parse_overrides(overrides))
        self.validate_batch_is_legal(space.corners())

        self._app = sweep_app.current()
        self._file = StudyFile(self._app.folder / FILE)
        study = Study(self._file, space, self._objective, self._sampler, self._seed)
        self._app.folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, self._app.overrides_file)
        self._app.axes = tuple(axis.key for axis in space.axes)
        self._app.on_lock_held(self._file.open)
        self._app.on_exit(lambda: self._print_best(study))
        self._launched = 0

        batch = study.resume() or self._ask(study)
        while batch:
            self._run(study, batch)
            if self.config.sweep.dry_run:
                if (remaining := self._n_trials - study.count) > 0:
                    points = counted(remaining, "more point")
                    self._app.terminal.say(f"Up to {points} may follow, chosen from the results of these.")
                return
            batch = self._ask(study)

    def _ask(self, study: Study) -> list[ProposedPoint]:
        return study.ask(min(self._n_jobs, max(self._n_trials - study.count, 0)))

    def _run(self, study: Study, batch: Sequence[ProposedPoint]) -> None:
        assert self.launcher is not None and self.config is not None
        overrides = [self._space.overrides(point.params) for point in batch]
        try:
            self.validate_batch_is_legal(overrides)
            returns = self.launcher.launch(overrides, initial_job_idx=self._launched)
            measured = [dict(job.return_value) for job in returns]
        except (ConfigError, HydraException, OmegaConfBaseException) as error:
            if not self._app.has_results:
                self._file.withdraw()
            elif isinstance(error, ConfigError):  # ConfigError means that nothing was started, untrue of later batches
                raise SweepError(str(error)) from error
            raise
        self._launched += len(batch)
        if self.config.sweep.dry_run:
            return
        self._file.open()  # if the launcher did not take the sweep lock in this process
        study.tell(batch, measured)
        if (best := study.best()) is not None:
            tags = {"sweep.objective": self._objective.text, "sweep.best": best.overrides}
            self._app.add_summary({"sweep/best": best.measure}, tags)

    def _print_best(self, study: Study) -> None:
        if (best := study.best()) is None:
            return
        target = self._objective.target_value(best.measures)
        close = "" if math.isnan(target) else f", target {target:.6g}"
        name = self._objective.measure
        self._app.terminal.result(
            f"Best of {counted(study.count, 'trial')}: {best.overrides} ({name} {best.measure:.6g}{close}); "
            f"{self._objective.text}, study in {self._file.path}"
        )
