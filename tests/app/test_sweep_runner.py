"""Sweeps on the shared engine, as MLflow has them afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run

from sweep import plan
from sweep.config import SweepConfig
from sweep.engines.base import Engine, Generation, Request
from sweep.errors import ConfigError, EngineError
from sweep.inputs.embedding import open_table
from sweep.point import Point
from sweep.runner import Runner
from sweep.shards.crew import PlanOnly
from sweep.shards.manifest import read, read_shard
from sweep.terminal import Terminal
from sweep.transforms import Context, Transform, register
from sweep.workload import Key

Configure = Callable[..., SweepConfig]


@register("test-nan-on-long")
@dataclass(frozen=True)
class NanOnLong(Transform):
    """NaN for prompts of more than `length` rows."""

    default_span: ClassVar[str] = "all"

    length: int = 10

    def apply(self, rows: torch.Tensor, context: Context) -> torch.Tensor:
        return rows * (torch.nan if len(rows) > self.length else 1.0)


@pytest.fixture
def runner(configure: Configure, on_shared_engine: Engine) -> Runner:
    return Runner(configure(), "test-sweep", "sweep …", Terminal())


def scaled(configure: Configure, *factors: float, **changes: object) -> list[Point]:
    return [
        Point(configure(transform={"name": "scale", "factor": f}, **changes), (("transform.factor", f),))
        for f in factors
    ]


def runs_of(config: SweepConfig) -> dict[str, Run]:
    client = MlflowClient(f"sqlite:///{config.sweep.root / 'mlflow.db'}")
    [experiment] = client.search_experiments(filter_string="name = 'sweep'")
    runs = client.search_runs([experiment.experiment_id])
    return {run.info.run_name: run for run in runs}


def table_of(config: SweepConfig, run: Run) -> list[dict[str, object]]:
    client = MlflowClient(f"sqlite:///{config.sweep.root / 'mlflow.db'}")
    table = json.loads(Path(client.download_artifacts(run.info.run_id, "generations.json")).read_text())
    return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]


def test_a_sweep_in_mlflow(runner: Runner, configure: Configure) -> None:
    config = configure()
    with runner:
        runner.run(scaled(configure, 1.0, 4.0))
    runs = runs_of(config)
    assert set(runs) == {"test-sweep", "control", "factor=1", "factor=4"}
    parent, control, same, far = (runs[name] for name in ("test-sweep", "control", "factor=1", "factor=4"))
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert [run.data.tags["sweep.role"] for run in (parent, control, same, far)] == [
        "sweep",
        "control",
        "point",
        "point",
    ]
    assert {run.data.tags["sweep.id"] for run in runs.values()} == {"test-sweep"}
    assert {run.data.tags["mlflow.parentRunId"] for run in (control, same, far)} == {parent.info.run_id}
    assert len({run.data.tags["sweep.fingerprint"] for run in (control, same, far)}) == 3
    assert (far.data.params["transform"], far.data.params["transform.factor"]) == ("scale", "4.0")
    assert far.data.metrics["axis/transform.factor"] == 4.0
    assert [run.data.metrics["sweep/index"] for run in (control, same, far)] == [0, 1, 2]
    assert same.data.metrics["divergence/edit_distance"] == 0.0
    assert same.data.metrics["perturbation/relative_l2"] == 0.0
    assert far.data.metrics["divergence/edit_distance"] > 0
    assert far.data.metrics["perturbation/relative_l2"] == pytest.approx(3.0)
    assert far.data.metrics["quality/exact_match/ci_high"] < 1.0
    assert control.data.metrics["divergence/edit_distance"] == 0.0  # of its second run: the noise floor


def test_points_keep_their_order_however_they_finish(runner: Runner, configure: Configure) -> None:
    """The first point is long, those after it end at once: they are done before it."""
    long = scaled(configure, 2.0, sampling={"max_tokens": 60, "ignore_eos": True})
    short = scaled(configure, 3.0, 4.0, sampling={"max_tokens": 1})
    with runner:
        runner.run([*long, *short])
    done = [result.point.name for result in runner.results.values()]
    assert done.index("factor=3") < done.index("factor=2")
    runs = runs_of(configure())
    order = sorted(("factor=2", "factor=3", "factor=4"), key=lambda name: runs[name].data.metrics["sweep/index"])
    assert order == ["factor=2", "factor=3", "factor=4"]


def test_the_table_compares_prompt_by_prompt(runner: Runner, configure: Configure) -> None:
    with runner:
        runner.run(scaled(configure, 1.0))
    runs = runs_of(configure())
    control, same = (table_of(configure(), runs[name]) for name in ("control", "factor=1"))
    assert list(control[0])[:4] == ["prompt", "generation", "prompt_id", "reference"]
    assert [row["prompt"] for row in control] == ["Hello there", "Why is the sky blue?", "1 + 1 ="]
    assert [row["generation"] for row in control] == [row["generation"] for row in same]
    assert control[2]["reference"] == "2 | two"


def test_points_together_answer_as_each_alone(runner: Runner, configure: Configure, tmp_path: Path) -> None:
    with runner:
        runner.run(scaled(configure, 0.5, 2.0, 4.0))
    together = runs_of(configure())
    for factor in (0.5, 2.0, 4.0):
        alone = configure(sweep={"dir": str(tmp_path / f"alone-{factor}")})
        with Runner(alone, "alone", "sweep …", Terminal()) as single:
            single.run(scaled(configure, factor, sweep={"dir": alone.sweep.dir}))
        name = f"factor={factor:g}"
        assert table_of(alone, runs_of(alone)[name]) == table_of(configure(), together[name])


def test_points_of_a_sweep_share_one_stream_and_repeated_ones_run_once(
    runner: Runner, configure: Configure, on_shared_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams: list[int] = []
    generate = on_shared_engine.generate

    def counted(requests: Iterator[Request]) -> Iterator[Generation]:
        streams.append(0)
        for generation in generate(requests):
            streams[-1] += 1
            yield generation

    monkeypatch.setattr(on_shared_engine, "generate", counted)
    with runner:
        runner.run(scaled(configure, 1.5, 2.0, 1.5))
        assert streams == [1] * 6 + [12]  # the gate twice, then control, again, and two points, of three prompts each
        runner.run(scaled(configure, 2.0, 3.0))
        assert streams[7:] == [3]  # neither the control nor 2.0 again
    assert len(runner.results) == 4


def test_an_engine_that_is_refused_is_not_there_for_the_next_points(
    runner: Runner, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "open_table", lambda checkpoint: replace(open_table(checkpoint), multiplier=-1.0))
    with runner:
        for factor in (1.5, 2.0):
            with pytest.raises(ConfigError, match="fails the identity gate"):
                runner.run(scaled(configure, factor))
            assert runner.engine is None


def test_plans_of_later_batches_have_their_control(configure: Configure, tmp_path: Path) -> None:
    """Also where this process has come to know its answers, which shards cannot."""
    said: list[str] = []
    crew = PlanOnly(1, None, said.append)
    points = scaled(configure, 1.5, 2.0)
    with Runner(configure(), "test-sweep", "sweep …", Terminal(), crew) as runner:
        for point in points:
            runner.run([point])
            assert runner.publisher is not None
            runner.publisher.scoring.controls[point.control_key] = []
    for line in said:
        [pieces] = [read_shard(read(Path(line.split(": ")[1])), 0).pieces]
        assert sorted(piece.point.is_control for piece in pieces) == [False, True]
    assert len(said) == len(points)


def test_samples_are_rows_of_their_own_under_common_random_numbers(runner: Runner, configure: Configure) -> None:
    with runner:
        runner.run(scaled(configure, 1.0, sampling={"max_tokens": 6, "temperature": 1.0, "n": 2}))
    runs = runs_of(configure())
    control, same = (table_of(configure(), runs[name]) for name in ("control", "factor=1"))
    assert [row["prompt"] for row in control[:2]] == ["Hello there #1", "Hello there #2"]
    assert control[0]["generation"] != control[1]["generation"]
    assert [row["generation"] for row in control] == [row["generation"] for row in same]


def test_a_transform_that_makes_nan_is_found_before_anything_starts(runner: Runner, configure: Configure) -> None:
    point = Point(configure(transform={"name": "test-nan-on-long", "length": 20}), (("transform.length", 20.0),))
    with pytest.raises(ConfigError, match=r"Point length=20, prompt 'sky': test-nan-on-long made NaN"), runner:
        runner.run([point])
    assert not (configure().sweep.root / "mlflow.db").exists()


def test_a_point_that_fails_later_fails_alone(
    runner: Runner, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweep.plan.TRIED_TRANSFORMS", 0)
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


def test_an_engine_that_fails_ends_the_sweep_and_keeps_what_was_finished(
    runner: Runner, configure: Configure, on_shared_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = on_shared_engine.generate

    def dying(requests: Iterator[Request]) -> Iterator[Generation]:
        control = 0
        for generation in generate(requests):
            if control == 3:
                raise EngineError("it died")
            control += isinstance(generation.key, Key) and generation.key.point == 0
            yield generation

    monkeypatch.setattr(on_shared_engine, "generate", dying)
    with pytest.raises(EngineError, match="it died"), runner:
        runner.run(scaled(configure, 1.0, 1.0001, sampling={"max_tokens": 8, "ignore_eos": True}))
    statuses = {name: run.info.status for name, run in runs_of(configure()).items()}
    # The control waits for its second run, the noise floor, which the next run asks for; its answers are in the journal.
    assert statuses == {"test-sweep": "FAILED", "factor=1": "FAILED", "factor=1.0001": "FAILED"}
    assert len(list((runner.folder.parents[1] / "journal").rglob("*.jsonl"))) >= 1


def test_an_interrupted_sweep_is_killed_and_not_left_running(
    runner: Runner, configure: Configure, on_shared_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = on_shared_engine.generate

    def interrupted(requests: Iterator[Request]) -> Iterator[Generation]:
        for done, generation in enumerate(generate(requests)):
            if isinstance(generation.key, Key) and done == 5:
                raise KeyboardInterrupt
            yield generation

    monkeypatch.setattr(on_shared_engine, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt), runner:
        runner.run(scaled(configure, 1.0, 1.5, 2.0, 2.5))
    statuses = {name: run.info.status for name, run in runs_of(configure()).items()}
    assert statuses.pop("test-sweep") == "KILLED"
    assert set(statuses.values()) <= {"FINISHED"}


def test_a_parent_that_cannot_be_filled_is_not_left_running(
    configure: Configure, on_shared_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("read-only")

    monkeypatch.setattr(MlflowClient, "log_text", refuse)
    points = scaled(configure, 2.0, tracking={"patience": 0.0})
    with Runner(points[0].config, "test-sweep", "sweep …", Terminal()) as runner:
        runner.run(points)
    assert any(p.startswith("the sweep's own run") and "read-only" in p for p in runner.problems)
    assert {name: run.info.status for name, run in runs_of(configure()).items()} == {"test-sweep": "FAILED"}


def test_a_sweep_whose_points_are_refused_does_not_stay_running(
    configure: Configure, on_shared_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_text, refused = MlflowClient.log_text, []

    def refuse_tables(self: MlflowClient, run_id: str, text: str, artifact_file: str) -> None:
        if artifact_file == "generations.json":
            refused.append(run_id)
            raise OSError("no room for tables")
        log_text(self, run_id, text, artifact_file)

    monkeypatch.setattr(MlflowClient, "log_text", refuse_tables)
    points = scaled(configure, 1.5, 2.0, 2.5, 3.0, 3.5, tracking={"patience": 0.0})
    with Runner(points[0].config, "test-sweep", "sweep …", Terminal()) as runner:
        runner.run(points)
    problem, later = runner.problems
    assert problem.endswith("and 3 more: not published, kept for the next run: no room for tables")
    assert later == "To publish what is done, later: sweep …"
    assert len(set(refused)) < 6  # the last ones were not tried any more
    assert {name: run.info.status for name, run in runs_of(configure()).items()} == {"test-sweep": "FAILED"}
