"""`hydra/sweeper=optuna`: looks for the point that `sweep.objective` means, batch by batch.

The study lies in the sweep's folder.  The same command recalls its points from the archive, runs again what failed or
was interrupted, and goes on to `hydra.sweeper.n_trials`, which may have been raised.
"""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, IntegerNode, OmegaConf, StringNode
from omegaconf.errors import OmegaConfBaseException

from sweep.checks import require, require_choice
from sweep.errors import ConfigError, SweepError
from sweep.objective import FORMS, KEY, Objective

if TYPE_CHECKING:
    from hydra_plugins.sweep_sweepers._study import Asked, Study

NODE = "hydra.sweeper"
OLDEST = 5  # of Optuna's major versions


# No dataclass: Hydra imports plugins in a way that dataclasses cannot bear.
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
    """Asks Optuna for points, and any launcher for what they measure.

    Args:
        n_trials: points in all, those of earlier runs of the command among them.
        n_jobs: points that are chosen at a time, and share an engine and a batch.
        sampler: tpe, gp, random or grid.
        seed: of the sampler; None: another one each time.
        params: what is searched, for configuration files; the same keys on the command line come first.
    """

    def __init__(self, n_trials: int, n_jobs: int, sampler: str, seed: int | None, params: dict[str, Any]) -> None:
        """Take the settings; they are checked by `setup`, whose errors Hydra leaves as they are."""
        self._n_trials, self._n_jobs, self._sampler, self._seed = n_trials, n_jobs, sampler, seed
        self._params = dict(params)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Check the settings and make the launcher.

        Raises:
            ConfigError: a setting or the objective is wrong, or Optuna is not installed.
        """
        require(self._n_trials >= 1, f"{NODE}.n_trials", "must be at least 1", self._n_trials)
        require(self._n_jobs >= 1, f"{NODE}.n_jobs", "must be at least 1", self._n_jobs)
        require(self._seed is None or self._seed >= 0, f"{NODE}.seed", "must be 0 or more", self._seed)
        require(config.sweep.objective is not None, KEY, f"must say what to look for: {FORMS}", None)
        if not _has_optuna():
            raise ConfigError(
                f"hydra/sweeper=optuna needs Optuna {OLDEST} or newer; its extra has it: pip install '.[optuna]'."
            )
        from hydra_plugins.sweep_sweepers._study import SAMPLERS

        require_choice(f"{NODE}.sampler", self._sampler, list(SAMPLERS))
        self._objective = Objective.parse(str(config.sweep.objective))
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run batches until there are as many trials as are wanted."""
        from hydra_plugins.sweep_sweepers._space import read_space
        from hydra_plugins.sweep_sweepers._study import FILE, Study, StudyFile
        from sweep import session

        assert self.hydra_context is not None and self.config is not None
        given = [f"{key}={value}" for key, value in self._params.items()] + list(arguments)
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        self._space = space = read_space(parser.parse_overrides(given))
        self.validate_batch_is_legal(space.corners())

        folder = Path(self.config.hydra.sweep.dir)
        self._file = StudyFile(folder / FILE)
        study = Study(self._file, space, self._objective, self._sampler, self._seed)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        self._session = session.current()
        self._session.axes = tuple(axis.key for axis in space.axes)
        self._session.when_held(self._file.open)
        self._session.at_end(lambda: self._say_best(study))
        self._launched = 0

        batch = study.resume() or self._ask(study)
        while batch:
            self._run(study, batch)
            if self.config.sweep.dry_run:
                if (left := self._n_trials - study.count) > 0:
                    self._session.terminal.say(f"Up to {left} more points depend on what comes of these.")
                return
            batch = self._ask(study)

    def _ask(self, study: Study) -> list[Asked]:
        return study.ask(min(self._n_jobs, max(self._n_trials - study.count, 0)))

    def _run(self, study: Study, batch: Sequence[Asked]) -> None:
        assert self.launcher is not None and self.config is not None
        overrides = [self._space.overrides(asked.params) for asked in batch]
        try:
            self.validate_batch_is_legal(overrides)
            returns = self.launcher.launch(overrides, initial_job_idx=self._launched)
            measured = [dict(done.return_value) for done in returns]
        except (ConfigError, HydraException, OmegaConfBaseException) as error:
            if not self._session.has_results:
                self._file.withdraw()
            elif isinstance(error, ConfigError):  # of a later batch: it is not true that nothing was started
                raise SweepError(str(error)) from error
            raise
        self._launched += len(batch)
        if self.config.sweep.dry_run:
            return
        self._file.open()  # for launchers with which the sweep is held elsewhere
        study.tell(batch, measured)
        if (best := study.best()) is not None:
            tags = {"sweep.objective": self._objective.text, "sweep.best": best.spelled}
            self._session.note({"sweep/best": best.measure}, tags)

    def _say_best(self, study: Study) -> None:
        if (best := study.best()) is None:
            return
        sought = self._objective.sought(best.measures)
        close = "" if math.isnan(sought) else f", sought {sought:.6g}"
        name = self._objective.measure
        self._session.terminal.result(
            f"Best of {study.count} trials: {best.spelled} ({name} {best.measure:.6g}{close}); "
            f"{self._objective.text}, study in {self._file.path}"
        )
