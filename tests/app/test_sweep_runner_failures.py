"""Sweeps in this process that fail: points, engine, MLflow, and interrupts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from mlflow import MlflowClient
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
from runner_sweeps import Configure, runs_of, scaled, shared_scripted_engine

from sweep.app.sweep_runner import SweepRunner
from sweep.console.terminal import Terminal
from sweep.engines.base import Engine, Generation, Request
from sweep.errors import ConfigError, EngineError
from sweep.inputs import input_store
from sweep.inputs.checkpoint import Checkpoint
from sweep.inputs.embedding_loader import open_table
from sweep.points.point import Point
from sweep.publishing.queue import GIVEN_UP
from sweep.transforms import Context, Transform, register


@pytest.fixture
def scripted(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    return shared_scripted_engine(checkpoint, tmp_path, monkeypatch)


@pytest.fixture
def configure(configure: Configure) -> Configure:
    return partial(configure, engine={"name": "scripted"})


@pytest.fixture
def runner(configure: Configure, scripted: Engine) -> SweepRunner:
    return SweepRunner(configure(), "test-sweep", "sweep …", Terminal())


@register("test-nan-on-long")
@dataclass(frozen=True)
class NanOnLong(Transform):
    """NaN for prompts of more than `length` rows."""

    default_span: ClassVar[str] = "all"

    length: int = 10

    def apply(self, rows: torch.Tensor, context: Context) -> torch.Tensor:
        return rows * (torch.nan if len(rows) > self.length else 1.0)


def test_an_engine_that_fails_the_identity_check_is_not_reused(
    runner: SweepRunner, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(input_store, "open_table", lambda *opened: replace(open_table(*opened), multiplier=-1.0))
    with runner:
        for factor in (1.5, 2.0):
            with pytest.raises(ConfigError, match="fails the identity check"):
                runner.run(scaled(configure, factor))
            assert runner.engine is None


def test_a_transform_that_makes_nan_is_refused_before_the_start(runner: SweepRunner, configure: Configure) -> None:
    point = Point(configure(transform={"name": "test-nan-on-long", "length": 20}), (("transform.length", 20.0),))
    with pytest.raises(ConfigError, match=r"Point length=20, prompt 'sky': test-nan-on-long made NaN"), runner:
        runner.run([point])
    assert not (configure().sweep.root / "mlflow.db").exists()


def test_a_point_that_fails_later_does_not_affect_others(
    runner: SweepRunner, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweep.planning.plan.TRIED_TRANSFORMS", 0)
    bad = Point(configure(transform={"name": "test-nan-on-long", "length": 20}), (("bad", "yes"),))
    with runner:
        runner.run([bad, *scaled(configure, 2.0)])
    runs = runs_of(configure())
    assert {name: run.info.status for name, run in runs.items()} == {
        "test-sweep": "FAILED",
        "control": "FINISHED",
        "bad=yes": "FAILED",
        "factor=2": "FINISHED",
    }
    assert "prompt 'sky'" in runs["bad=yes"].data.tags["sweep.error"]


def test_an_engine_failure_ends_the_sweep_and_keeps_finished_points(
    runner: SweepRunner, configure: Configure, scripted: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = scripted.generate

    def dying(requests: Iterator[Request]) -> Iterator[Generation]:
        control = 0
        for generation in generate(requests):
            if control == 3:
                raise EngineError("it died")
            control += isinstance(generation.key, tuple) and generation.key[1].run == 0
            yield generation

    monkeypatch.setattr(scripted, "generate", dying)
    with pytest.raises(EngineError, match="it died"), runner:
        runner.run(scaled(configure, 1.0, 1.0001, sampling={"max_tokens": 8, "ignore_eos": True}))
    statuses = {name: run.info.status for name, run in runs_of(configure()).items()}
    # The control is incomplete without its second run (the noise floor). Its answers are in the journal.
    assert statuses == {"test-sweep": "FAILED", "factor=1": "FAILED", "factor=1.0001": "FAILED"}
    [journal] = (runner.folder.parents[1] / "journal").rglob("*.jsonl")
    assert journal.read_text().count('"kind"') == 3


def test_an_interrupted_sweep_is_killed_and_not_left_running(
    runner: SweepRunner, configure: Configure, scripted: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = scripted.generate

    def interrupted(requests: Iterator[Request]) -> Iterator[Generation]:
        for done, generation in enumerate(generate(requests)):
            if isinstance(generation.key, tuple) and done == 5:
                raise KeyboardInterrupt
            yield generation

    monkeypatch.setattr(scripted, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt), runner:
        runner.run(scaled(configure, 1.0, 1.5, 2.0, 2.5))
    statuses = {name: run.info.status for name, run in runs_of(configure()).items()}
    assert statuses == {"test-sweep": "KILLED"}  # the control has five of its six answers


def test_a_parent_run_that_cannot_be_written_is_not_left_running(
    configure: Configure, scripted: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("read-only")

    monkeypatch.setattr(MlflowClient, "log_text", refuse)
    points = scaled(configure, 2.0, tracking={"patience": 0.0})
    with SweepRunner(points[0].config, "test-sweep", "sweep …", Terminal()) as runner:
        runner.run(points)
    assert any(p.startswith("the parent run") and "read-only" in p for p in runner.problems)
    assert {name: run.info.status for name, run in runs_of(configure()).items()} == {"test-sweep": "FAILED"}


def test_a_sweep_whose_points_cannot_be_published_is_not_left_running(
    configure: Configure, scripted: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_artifacts, refused = LocalArtifactRepository.log_artifacts, []

    def refuse_tables(self: LocalArtifactRepository, folder: str, path: str | None = None) -> None:
        if (Path(folder) / "generations.json").exists():
            refused.append((Path(folder) / "config.yaml").read_text())
            raise OSError("no room for tables")
        log_artifacts(self, folder, path)

    monkeypatch.setattr(LocalArtifactRepository, "log_artifacts", refuse_tables)
    points = scaled(configure, 1.5, 2.0, 2.5, 3.0, 3.5, tracking={"patience": 0.0})
    with SweepRunner(points[0].config, "test-sweep", "sweep …", Terminal()) as runner:
        runner.run(points)
    problem, later = runner.problems
    assert problem.endswith("and 3 more: not published, kept for the next run: no room for tables")
    assert later == "To publish finished points later, run: sweep …"
    assert len(set(refused)) == GIVEN_UP  # points were tried; the others were not
    assert {name: run.info.status for name, run in runs_of(configure()).items()} == {"test-sweep": "FAILED"}
