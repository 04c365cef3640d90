"""Searches for tests: a scripted engine that records its requests, and what a search leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import optuna
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import FrozenTrial

from sweep.engines.base import Engine, Failure, Generation, Request
from sweep.execution.scheduler import Key
from sweep.testing import ScriptedConfig

SCALE = ["transform=scale", "transform.factor=interval(1,3)"]
CLOSEST = "sweep.objective=closest:perturbation/relative_l2:0.5"  # of scale: |factor - 1|
Sweep = Callable[..., tuple[int, str, str]]


class Counting:
    """Scripted engine that records its requests, and can interrupt the sweep or refuse requests."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[Key] = []
        self.starts = 0
        self.interrupt_after: int | None = None
        self.refused: set[int] = set()
        self._generate = engine.generate
        monkeypatch.setattr(engine, "generate", self.generate)

        def start(*_: object) -> Engine:
            self.starts += 1
            return engine

        monkeypatch.setattr(ScriptedConfig, "open", start)

    def generate(self, requests: Iterator[Request]) -> Iterator[Generation | Failure]:
        for answer in self._generate(requests):
            if isinstance(answer.key, tuple):
                if len(self.asked) == self.interrupt_after:
                    raise KeyboardInterrupt
                _, key = answer.key
                self.asked.append(key)
                if key.run in self.refused:
                    yield Failure(answer.key, "refused for the test")
                    continue
            yield answer


def trials_of(outputs: Path, name: str = CLOSEST.split("=")[1]) -> list[FrozenTrial]:
    """Return a study's trials, read by Optuna's own backend."""
    [file] = outputs.glob("sweeps/*/study.journal")
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(file)))
    return optuna.load_study(study_name=name, storage=storage).get_trials()


def runs_of(outputs: Path) -> list[Run]:
    return list(MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}").search_runs(["1"]))


def params_of(trials: list[FrozenTrial]) -> list[float]:
    return [trial.params["transform.factor"] for trial in trials]
