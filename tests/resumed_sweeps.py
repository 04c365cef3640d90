"""Sweeps that tests resume, on a scripted engine that records its requests, and their runs in MLflow."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from sweep.app.sweep_runner import SweepRunner
from sweep.config.schema import SweepConfig
from sweep.console.terminal import Terminal
from sweep.engines.base import Engine, Failure, Generation, Request
from sweep.execution.scheduler import Key
from sweep.points.point import Point
from sweep.testing import ScriptedConfig

Configure = Callable[..., SweepConfig]


class Counting:
    """Scripted engine that records its requests without the identity check's, and can interrupt the sweep.

    Attributes:
        asked: keys of the requests that were answered, over all engines.
        interrupt_after: number of answers of one engine after which the user interrupts it. None: never.
        refused: requests that fail, by the numbers of point and prompt.
        settle: called before the interrupt and after each refusal, so that what follows does not depend on threads.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[Key] = []
        self.interrupt_after: int | None = None
        self.refused: set[tuple[int, int]] = set()
        self.settle: Callable[[], object] = lambda: None
        open_engine = ScriptedConfig.open

        def opened(config: ScriptedConfig, *arguments: Any) -> Engine:
            engine = open_engine(config, *arguments)
            monkeypatch.setattr(engine, "generate", partial(self._generate, engine.generate))
            return engine

        monkeypatch.setattr(ScriptedConfig, "open", opened)

    def _generate(
        self, generate: Callable[..., Iterator[Generation | Failure]], requests: Iterator[Request]
    ) -> Iterator[Generation | Failure]:
        done = 0
        for answer in generate(requests):
            if isinstance(answer.key, tuple):
                if done == self.interrupt_after:
                    self.settle()
                    raise KeyboardInterrupt
                done += 1
                _, key = answer.key
                self.asked.append(key)
                if (key.run, key.prompt) in self.refused:
                    yield Failure(answer.key, "refused for the test")
                    self.settle()
                    continue
            yield answer


def scaled(configure: Configure, *factors: float, **changes: object) -> list[Point]:
    return [
        Point(configure(transform={"name": "scale", "factor": f}, **changes), (("transform.factor", f),))
        for f in factors
    ]


def sweep(points: list[Point], name: str = "a", settled: Counting | None = None) -> SweepRunner:
    """Run a sweep.

    Args:
        settled: engine that waits, where it settles, until all points finished so far are published.
    """
    with SweepRunner(points[0].config, name, "sweep …", Terminal()) as runner:
        if settled is not None:
            settled.settle = partial(publish_all, runner)
        runner.run(points)
    return runner


def publish_all(runner: SweepRunner) -> None:
    assert runner.publisher is not None
    runner.publisher.scoring.drain()
    runner.publisher.start().drain()


def runs_of(config: SweepConfig) -> list[Run]:
    client = MlflowClient(f"sqlite:///{config.sweep.root / 'mlflow.db'}")
    [experiment] = client.search_experiments(filter_string="name = 'sweep'")
    return list(client.search_runs([experiment.experiment_id]))


def tables_of(config: SweepConfig, sweep_id: str = "a") -> dict[str, list[list[object]]]:
    client = MlflowClient(f"sqlite:///{config.sweep.root / 'mlflow.db'}")
    found: dict[str, list[list[object]]] = {}
    for run in runs_of(config):
        if run.data.tags["sweep.role"] != "sweep" and run.data.tags["sweep.id"] == sweep_id:
            assert run.info.status == "FINISHED" and run.info.run_name not in found
            table = Path(client.download_artifacts(run.info.run_id, "generations.json"))
            found[run.info.run_name] = json.loads(table.read_text())["data"]
    return found
