"""Optuna study in the sweep's folder, from which an interrupted search resumes."""

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
from sweep.config.objective import CHANGE, Objective
from sweep.config.point_count import check_product
from sweep.core.seeds import derive_seed
from sweep.errors import ConfigError, JournalError, SweepHeld
from sweep.util import state_files
from sweep.util.validators import require

FILE = "study.journal"
GRID = "grid"
SAMPLERS: dict[str, Callable[[int | None], BaseSampler]] = {
    "tpe": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "gp": lambda seed: optuna.samplers.GPSampler(seed=seed),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    GRID: lambda seed: optuna.samplers.RandomSampler(seed=seed),  # not used, `Study` has the grid
}
RETRY_OF, MEASURES = "again", "measures"  # user attributes of a trial: the failed trial it retries, the measures


class StudyFile:
    """Backend of Optuna's `JournalStorage` that holds back all writes until `open`, once the sweep lock is held.

    Optuna's own file backend writes immediately, and fails on an incomplete line that a dying process has left.
    Owned by the main thread.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            content = state_files.read(path)
        except FileNotFoundError:
            content = b""
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error
        self._size = content.rfind(b"\n") + 1
        self._existed, self._read = path.exists(), len(content)
        try:
            self._logs = [_entry(line) for line in content[: self._size].splitlines()]
        except ValueError as error:
            raise ConfigError(f"{path} is damaged: {error}. Set sweep.resume=false to start over.") from error
        self._held_back: list[Mapping[str, Any]] | None = []  # None once the file is open for writing

    def read_logs(self, log_number_from: int) -> Iterable[Mapping[str, Any]]:
        """Return the log entries from a number on. Called by Optuna."""
        return self._logs[log_number_from:]

    def append_logs(self, logs: Sequence[Mapping[str, Any]]) -> None:
        """Append log entries, and write them if the file is open. Called by Optuna."""
        self._logs += logs
        if self._held_back is None:
            self._write(logs)
        else:
            self._held_back += logs

    def open(self) -> None:
        """Write the held-back entries, and write further ones immediately. Call it once the sweep lock is held.

        Raises:
            SweepHeld: another process has written to the file since it was read.
            JournalError: the file cannot be written.
        """
        if self._held_back is None:
            return
        size = self.path.stat().st_size if self.path.exists() else 0
        if size != self._read:
            raise SweepHeld(f"Another process has just written to {self.path}. Run the command again.")
        if size != self._size:
            os.truncate(self.path, self._size)
        held_back, self._held_back = self._held_back, None
        self._write(held_back)

    def withdraw(self) -> None:
        """Remove the file if this process created it."""
        if self._held_back is None and not self._existed:
            self.path.unlink(missing_ok=True)

    def _write(self, logs: Sequence[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        try:
            with state_files.open_to_append(self.path) as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise JournalError(f"The study {self.path} cannot be written: {error.strerror}.") from error


def _entry(line: bytes) -> Mapping[str, Any]:
    entry = state_files.parse(line)
    if not isinstance(entry, dict):
        raise ValueError(f"expected a JSON object, found {type(entry).__name__}")
    return entry


@dataclass(frozen=True, slots=True)
class ProposedPoint:
    """A point to run.

    Attributes:
        number: number of its trial. None: it was proposed under another objective, and has no trial in this study yet.
        params: values of the varied keys.
        has_value: whether the study already has its value.
    """

    number: int | None
    params: dict[str, Any]
    has_value: bool = False


@dataclass(frozen=True, slots=True)
class Best:
    """The best point so far.

    Attributes:
        overrides: its varied overrides as typed on the command line.
        measure: value of the objective's measure.
        measures: all its measures, and those of its control under `control/…`.
    """

    overrides: str
    measure: float
    measures: Mapping[str, float]


class Study:
    """The trials of one objective. The file can contain studies of other objectives, too.

    Owned by the main thread.

    Args:
        file: the study's file.
        space: the search space.
        objective: the objective, whose text is also the study's name in the file.
        sampler: a name in `SAMPLERS`.
        seed: seed of the sampler. None: a random one.

    Raises:
        ConfigError: the file belongs to another search space, or the sampler is `grid` and the space has an interval.
    """

    def __init__(self, file: StudyFile, space: Space, objective: Objective, sampler: str, seed: int | None) -> None:
        self._space, self._objective, self._sampler, self._seed = space, objective, sampler, seed
        self._grid: list[dict[str, Any]] | None = None
        if sampler == GRID:
            for axis in space.axes:
                rule = "has no finite number of values for hydra.sweeper.sampler=grid. Use range(start,stop,step)"
                require(bool(axis.choices), f"{axis.key}=interval", rule, None)
            check_product({axis.key: len(axis.choices) for axis in space.axes})
            keys = [axis.key for axis in space.axes]
            self._grid = [dict(zip(keys, p, strict=True)) for p in product(*(axis.choices for axis in space.axes))]
        # Log like other libraries, through the root logger.
        optuna.logging.disable_default_handler()
        optuna.logging.enable_propagation()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        storage: Any = file
        try:
            self._storage = optuna.storages.JournalStorage(storage)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ConfigError(f"{storage.path} is damaged: {reason}. Set sweep.resume=false to start over.") from error
        others = [s.study_name for s in optuna.get_all_study_summaries(self._storage) if s.study_name != objective.text]
        self._study = optuna.create_study(
            storage=self._storage, study_name=objective.text, direction=objective.direction, load_if_exists=True
        )
        self._others = [
            trial for name in others for trial in optuna.load_study(study_name=name, storage=self._storage).get_trials()
        ]
        for trial in [*self._others, *self._trials]:
            if trial.params.keys() == trial.distributions.keys() == space.distributions.keys():
                rule = "was made with a different search space. Set sweep.resume=false to start over"
                require(trial.distributions == space.distributions, str(file.path), rule, None)

    @property
    def _trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    @property
    def count(self) -> int:
        """Number of proposed points. A failed point and its retries count once."""
        return len(self._current_trials())

    def resume(self) -> list[ProposedPoint]:
        """Return the points that earlier runs proposed, with a retry for each failed one.

        Finished points of other objectives are included, because their measures are already known.
        """
        points = []
        for trial in self._current_trials():
            if trial.state == TrialState.FAIL:
                points.append(self._add(trial.params, {RETRY_OF: trial.number}))
            else:
                points.append(ProposedPoint(trial.number, trial.params, trial.state == TrialState.COMPLETE))
        for other in self._others:
            if self._has_all_params(other) and all(other.params != point.params for point in points):
                points.append(ProposedPoint(None, other.params))
        return points

    def ask(self, most: int) -> list[ProposedPoint]:
        """Return up to `most` new points. There are fewer, or none, at the end of a grid."""
        if self._grid is not None:
            existing = [trial.params for trial in self._current_trials()]
            return [self._add(params, {}) for params in [p for p in self._grid if p not in existing][:most]]
        points = []
        for _ in range(most):
            number = len(self._trials)
            # Seeded by the trial's number, so that an interrupted search proposes the same points after a resume.
            seed = None if self._seed is None else derive_seed(self._seed, number) % 2**32
            self._study.sampler = SAMPLERS[self._sampler](seed)
            trial = self._study.ask(self._space.distributions)
            points.append(ProposedPoint(trial.number, trial.params))
        return points

    def tell(self, points: Sequence[ProposedPoint], measured: Sequence[Mapping[str, float]]) -> None:
        """Record the measures of points. A trial without the objective's measure has failed.

        Args:
            points: the points that were run.
            measured: the measures of each point by name, empty for a failed point.

        Raises:
            SweepError: no point has the objective's measure.
        """
        self._objective.check_known(list(measured))
        trials = self._trials
        for point, measures in zip(points, measured, strict=True):
            if point.has_value:
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
        """Return the best point, or None if there is none. Of equal ones, the one that changes the prompts least."""
        complete = [trial for trial in self._trials if trial.state == TrialState.COMPLETE]
        if not complete:
            return None
        sign = -1 if self._objective.direction == "maximize" else 1

        def rank(trial: FrozenTrial) -> tuple[float, float, int]:
            change = trial.user_attrs.get(MEASURES, {}).get(CHANGE, 0.0)
            return sign * (trial.value or 0.0), change, trial.number

        best = min(complete, key=rank)
        measures = best.user_attrs[MEASURES]
        return Best(self._space.varied_overrides(best.params), measures[self._objective.measure], measures)

    def _current_trials(self) -> list[FrozenTrial]:
        """Return the trials without those that a later one retries."""
        trials = [trial for trial in self._trials if self._has_all_params(trial)]
        retried = {trial.user_attrs.get(RETRY_OF) for trial in trials}
        return [trial for trial in trials if trial.number not in retried]

    def _has_all_params(self, trial: FrozenTrial) -> bool:
        """Return whether a trial has all parameters. A process that died may have left one without."""
        return trial.params.keys() == self._space.distributions.keys()

    def _add(self, params: dict[str, Any], attributes: dict[str, Any]) -> ProposedPoint:
        distributions = self._space.distributions
        trial = create_trial(
            state=TrialState.RUNNING, params=params, distributions=distributions, user_attrs=attributes
        )
        number = len(self._trials)
        self._study.add_trial(trial)
        return ProposedPoint(number, params)
