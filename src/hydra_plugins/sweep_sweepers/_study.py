"""An Optuna study in a sweep's folder, which an interrupted command goes on with."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from hydra_plugins.sweep_sweepers._space import Space
from sweep.checks import require
from sweep.errors import ConfigError, JournalError, SweepHeld
from sweep.objective import CHANGE, Objective
from sweep.seeds import derive_seed

FILE = "study.journal"
GRID = "grid"
SAMPLERS: dict[str, Callable[[int | None], BaseSampler]] = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    GRID: lambda seed: optuna.samplers.RandomSampler(seed=seed),  # never asked
}
AGAIN, MEASURES = "again", "measures"  # what a trial repeats, and what its point measured


class StudyFile:
    """The file of Optuna's `JournalStorage`, nothing of which is written before it is certain that we may.

    Optuna's own backend writes from the beginning, and fails on a line that a dying process has left half written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        content = path.read_bytes() if path.exists() else b""
        self._size = content.rfind(b"\n") + 1
        self._existed, self._read = path.exists(), len(content)
        try:
            self._logs = [json.loads(line) for line in content[: self._size].splitlines()]
        except ValueError as error:
            raise ConfigError(f"{path} is damaged: {error}. sweep.resume=false begins anew.") from error
        self._waiting: list[Mapping[str, Any]] | None = []

    def read_logs(self, log_number_from: int) -> Iterable[Mapping[str, Any]]:
        """Return what has been noted, from some number on."""
        return self._logs[log_number_from:]

    def append_logs(self, logs: Sequence[Mapping[str, Any]]) -> None:
        """Note something down: in the file, once that is ours."""
        self._logs += logs
        if self._waiting is None:
            self._write(logs)
        else:
            self._waiting += logs

    def open(self) -> None:
        """Write from now on, as the sweep is held.

        Raises:
            SweepHeld: another process has written meanwhile.
            JournalError: the file cannot be written.
        """
        if self._waiting is None:
            return
        now = self.path.stat().st_size if self.path.exists() else 0
        if now != self._read:
            raise SweepHeld(f"Another process has gone on with {self.path} just now; run the command again.")
        if now != self._size:
            os.truncate(self.path, self._size)
        waiting, self._waiting = self._waiting, None
        self._write(waiting)

    def withdraw(self) -> None:
        """Remove the file, if it was not there before."""
        if self._waiting is None and not self._existed:
            self.path.unlink(missing_ok=True)

    def _write(self, logs: Sequence[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        try:
            with self.path.open("ab") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise JournalError(f"The study {self.path} cannot be written: {error.strerror}.") from error


@dataclass(frozen=True, slots=True)
class Asked:
    """A point that is to be run.

    Attributes:
        number: its trial's; None: it was asked for under another objective, and this study has no trial for it yet.
        told: whether the study has its value.
    """

    number: int | None
    params: dict[str, Any]
    told: bool = False


@dataclass(frozen=True, slots=True)
class Best:
    """The best point so far.

    Attributes:
        spelled: its overrides.
        measure: what it has of the objective's measure.
        measures: all it has, and its control's under `control/…`.
    """

    spelled: str
    measure: float
    measures: Mapping[str, float]


class Study:
    """The trials of one objective, in a file that those of others may be in, too.

    Args:
        file: the study's.
        space: what is searched.
        objective: what for; also the study's name in the file.
        sampler: a name in `SAMPLERS`.
        seed: of the sampler; None: another one each time.

    Raises:
        ConfigError: the file is of another space, or the sampler is `grid` and there is an interval.
    """

    def __init__(self, file: StudyFile, space: Space, objective: Objective, sampler: str, seed: int | None) -> None:
        self._space, self._objective, self._sampler, self._seed = space, objective, sampler, seed
        self._grid: list[dict[str, Any]] | None = None
        if sampler == GRID:
            for axis in space.axes:
                rule = "has no end of values for hydra.sweeper.sampler=grid; give a range(start,stop,step)"
                require(bool(axis.choices), f"{axis.key}=interval", rule, None)
            keys = [axis.key for axis in space.axes]
            self._grid = [dict(zip(keys, p, strict=True)) for p in product(*(axis.choices for axis in space.axes))]
        # Its messages go where those of other libraries go.
        optuna.logging.disable_default_handler()
        optuna.logging.enable_propagation()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage: Any = file
        self._storage = optuna.storages.JournalStorage(storage)
        others = [s.study_name for s in optuna.get_all_study_summaries(self._storage) if s.study_name != objective.text]
        self._study = optuna.create_study(
            storage=self._storage, study_name=objective.text, direction=objective.direction, load_if_exists=True
        )
        self._others = [
            trial for name in others for trial in optuna.load_study(study_name=name, storage=self._storage).get_trials()
        ]
        for trial in [*self._others, *self._trials]:
            if trial.params.keys() == trial.distributions.keys() == space.distributions.keys():
                rule = "is a study of other values than the command's now; sweep.resume=false begins anew"
                require(trial.distributions == space.distributions, str(file.path), rule, None)

    @property
    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    @property
    def count(self) -> int:
        """How many points were asked for; one that failed and was asked for again counts once."""
        return len(self._live())

    def resume(self) -> list[Asked]:
        """Return what earlier runs asked for: what they finished is only recalled, what failed is tried again."""
        asked = []
        for trial in self._live():
            if trial.state == TrialState.FAIL:
                asked.append(self._add(trial.params, {AGAIN: trial.number}))
            else:
                asked.append(Asked(trial.number, trial.params, trial.state == TrialState.COMPLETE))
        for other in self._others:
            if self._is_complete(other) and all(other.params != known.params for known in asked):
                asked.append(Asked(None, other.params))
        return asked

    def ask(self, most: int) -> list[Asked]:
        """Return up to so many new points; fewer or none when a grid comes to its end."""
        if self._grid is not None:
            known = [trial.params for trial in self._live()]
            return [self._add(params, {}) for params in [p for p in self._grid if p not in known][:most]]
        asked = []
        for _ in range(most):
            number = len(self._trials)
            # By the trial's number, so that an interrupted search goes on as if it had not been.
            seed = None if self._seed is None else derive_seed(self._seed, number) % 2**32
            self._study.sampler = SAMPLERS[self._sampler](seed)
            trial = self._study.ask(self._space.distributions)
            asked.append(Asked(trial.number, trial.params))
        return asked

    def tell(self, asked: Sequence[Asked], measured: Sequence[Mapping[str, float]]) -> None:
        """Take what points have measured; nothing, or nothing of the objective's: the trial failed.

        Raises:
            SweepError: no point has the objective's measure.
        """
        self._objective.check_known(list(measured))
        trials = self._trials
        for point, measures in zip(asked, measured, strict=True):
            if point.told:
                continue
            number = self._add(point.params, {}).number if point.number is None else point.number
            assert number is not None
            if point.number is None:
                trials = self._trials
            value = self._objective.value(measures)
            self._storage.set_trial_user_attr(trials[number]._trial_id, MEASURES, dict(measures))
            state = TrialState.FAIL if value is None else TrialState.COMPLETE
            self._study.tell(number, value, state)

    def best(self) -> Best | None:
        """Return the best point; of several as good, the one that changes the prompts least.  None: there is none."""
        done = [trial for trial in self._trials if trial.state == TrialState.COMPLETE]
        if not done:
            return None
        sign = -1 if self._objective.direction == "maximize" else 1

        def rank(trial: FrozenTrial) -> tuple[float, float, int]:
            change = trial.user_attrs.get(MEASURES, {}).get(CHANGE, 0.0)
            return sign * (trial.value or 0.0), change, trial.number

        best = min(done, key=rank)
        measures = best.user_attrs[MEASURES]
        return Best(self._space.spelled(best.params), measures[self._objective.measure], measures)

    def _live(self) -> list[FrozenTrial]:
        """Return the trials that no later one repeats."""
        trials = [trial for trial in self._trials if self._is_complete(trial)]
        repeated = {trial.user_attrs.get(AGAIN) for trial in trials}
        return [trial for trial in trials if trial.number not in repeated]

    def _is_complete(self, trial: FrozenTrial) -> bool:
        """Whether a trial has all its parameters; a process that died may have left one without."""
        return trial.params.keys() == self._space.distributions.keys()

    def _add(self, params: dict[str, Any], attributes: dict[str, Any]) -> Asked:
        distributions = self._space.distributions
        trial = create_trial(
            state=TrialState.RUNNING, params=params, distributions=distributions, user_attrs=attributes
        )
        number = len(self._trials)
        self._study.add_trial(trial)
        return Asked(number, params)
