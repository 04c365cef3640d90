"""Sweeps in this process and their runs in MLflow, on the scripted engine or on vLLM."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest
from runner_sweeps import Configure, runs_of, scaled, shared_scripted_engine, table_of

from sweep.app.sweep_runner import SweepRunner
from sweep.console.terminal import Terminal
from sweep.engines.base import Engine, Generation, Request
from sweep.inputs.checkpoint import Checkpoint
from sweep.inputs.clock import SweepClock
from sweep.launch.backend import PlanOnly
from sweep.launch.manifest import read, read_shard
from sweep.points.fingerprint import Fingerprints
from sweep.storage.archive import Archive
from sweep.storage.journal import Journal
from sweep.testing import ScriptedConfig
from tiny_models import TEMPLATE, make_tokenizer


@pytest.fixture
def vllm(configure: Configure) -> Configure:
    """Configurations with vLLM, for behaviour that depends on the engine."""
    return partial(configure, engine={"name": "vllm"})


@pytest.fixture
def vllm_runner(vllm: Configure, on_shared_engine: Engine) -> SweepRunner:
    return SweepRunner(vllm(), "test-sweep", "sweep …", Terminal())


@pytest.fixture
def scripted(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    return shared_scripted_engine(checkpoint, tmp_path, monkeypatch)


@pytest.fixture
def configure(configure: Configure) -> Configure:
    return partial(configure, engine={"name": "scripted"})


@pytest.fixture
def runner(configure: Configure, scripted: Engine) -> SweepRunner:
    return SweepRunner(configure(), "test-sweep", "sweep …", Terminal())


def test_a_sweep_in_mlflow(vllm: Configure, vllm_runner: SweepRunner) -> None:
    config = vllm()
    with vllm_runner:
        vllm_runner.run(scaled(vllm, 1.0, 4.0))
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
    assert control.data.metrics["divergence/edit_distance"] == 0.0  # compared with its second run: the noise floor


def test_prompts_edited_between_batches_are_generated_and_journaled_as_first_read(
    runner: SweepRunner, configure: Configure, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": "First"}))
    points = scaled(configure, 2.0, 4.0, prompts={"path": str(path)})
    with runner:
        runner.run(points[:1])
        path.write_text(json.dumps({"prompt": "Second"}))
        runner.run(points[1:])
    runs = runs_of(configure())
    shown = {
        name: [row["prompt"] for row in table_of(configure(), run)] for name, run in runs.items() if run.data.params
    }
    assert shown == {"control": ["First"], "factor=2": ["First"], "factor=4": ["First"]}
    [edited] = Fingerprints().identify(scaled(configure, 4.0, prompts={"path": str(path)}))
    assert Journal(configure().sweep.root / "journal").read(edited.fingerprint).entries == {}


def test_template_date_is_fixed_within_a_sweep_and_new_in_the_next(
    configure: Configure, tiny: Path, tmp_path: Path, scripted: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(tiny, tmp_path / "model")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{{ strftime_now('%j') }}" + TEMPLATE
    tokenizer.save_pretrained(folder)

    def run(sweep_id: str, day: int) -> dict[str, str]:
        monkeypatch.setattr(SweepClock, "_now", lambda self: datetime(2026, 11, day))
        with SweepRunner(configure(), sweep_id, "sweep …", Terminal()) as runner:
            runner.run(scaled(configure, 2.0, model={"id": str(folder)}))
        return {archived.record.role: archived.record.fingerprint for archived in Archive(runner.folder / "points")}

    first = run("first", 28)
    calls: list[None] = []
    monkeypatch.setattr(scripted, "generate", lambda requests: calls.append(None) or iter(()))
    assert run("first", 29) == first and not calls
    monkeypatch.undo()
    monkeypatch.setattr(ScriptedConfig, "open", lambda *_: scripted)
    monkeypatch.setattr(scripted, "close", lambda: None)
    second = run("second", 29)
    assert second.keys() == first.keys() == {"control", "point"}
    assert not set(first.values()) & set(second.values())


def test_points_keep_their_order_in_mlflow(runner: SweepRunner, configure: Configure) -> None:
    """The first point has long answers, so that the later points finish before it."""
    long = scaled(configure, 2.0, sampling={"max_tokens": 60, "ignore_eos": True})
    short = scaled(configure, 3.0, 4.0, sampling={"max_tokens": 1})
    with runner:
        runner.run([*long, *short])
    done = [result.point.name for result in runner.results.values()]
    assert done.index("factor=3") < done.index("factor=2")
    runs = runs_of(configure())
    order = sorted(("factor=2", "factor=3", "factor=4"), key=lambda name: runs[name].data.metrics["sweep/index"])
    assert order == ["factor=2", "factor=3", "factor=4"]


def test_the_table_has_one_row_for_each_prompt(runner: SweepRunner, configure: Configure) -> None:
    with runner:
        runner.run(scaled(configure, 1.0))
    runs = runs_of(configure())
    control, same = (table_of(configure(), runs[name]) for name in ("control", "factor=1"))
    assert list(control[0])[:4] == ["prompt", "generation", "prompt_id", "reference"]
    assert [row["prompt"] for row in control] == ["Hello there", "Why is the sky blue?", "1 + 1 ="]
    assert [row["generation"] for row in control] == [row["generation"] for row in same]
    assert control[2]["reference"] == "2 | two"


def test_answers_do_not_depend_on_the_other_points(vllm: Configure, vllm_runner: SweepRunner, tmp_path: Path) -> None:
    with vllm_runner:
        vllm_runner.run(scaled(vllm, 0.5, 2.0, 4.0))
    together = runs_of(vllm())
    for factor in (0.5, 2.0, 4.0):
        alone = vllm(sweep={"dir": str(tmp_path / f"alone-{factor}")})
        with SweepRunner(alone, "alone", "sweep …", Terminal()) as single:
            single.run(scaled(vllm, factor, sweep={"dir": alone.sweep.dir}))
        name = f"factor={factor:g}"
        assert table_of(alone, runs_of(alone)[name]) == table_of(vllm(), together[name])


def test_points_share_one_stream_and_repeated_points_run_once(
    runner: SweepRunner, configure: Configure, scripted: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams: list[int] = []
    generate = scripted.generate

    def counted(requests: Iterator[Request]) -> Iterator[Generation]:
        streams.append(0)
        for generation in generate(requests):
            streams[-1] += 1
            yield generation

    monkeypatch.setattr(scripted, "generate", counted)
    with runner:
        runner.run(scaled(configure, 1.5, 2.0, 1.5))
        assert streams == [1] * 6 + [
            12
        ]  # identity check twice; then control, its second run and two points, of three prompts each
        runner.run(scaled(configure, 2.0, 3.0))
        assert streams[7:] == [3]  # the control and 2.0 are not repeated
    assert len(runner.results) == 4


def test_plans_of_later_batches_have_their_control(configure: Configure, tmp_path: Path) -> None:
    """Even if this process knows the control's answers, because shards do not."""
    messages: list[str] = []
    backend = PlanOnly(1, None, messages.append)
    points = scaled(configure, 1.5, 2.0)
    with SweepRunner(configure(), "test-sweep", "sweep …", Terminal(), backend) as runner:
        for point in points:
            runner.run([point])
            assert runner.publisher is not None
            runner.publisher.scoring.controls[point.control_key] = []
    for line in messages:
        [points] = [read_shard(read(Path(line.split(": ")[1])), 0).points]
        assert sorted(point.point.is_control for point in points) == [False, True]
    assert len(messages) == len(points)


def test_samples_are_separate_rows_with_common_random_numbers(vllm: Configure, vllm_runner: SweepRunner) -> None:
    with vllm_runner:
        vllm_runner.run(scaled(vllm, 1.0, sampling={"max_tokens": 6, "temperature": 1.0, "n": 2}))
    runs = runs_of(vllm())
    control, same = (table_of(vllm(), runs[name]) for name in ("control", "factor=1"))
    assert [row["prompt"] for row in control[:2]] == ["Hello there #1", "Hello there #2"]
    assert control[0]["generation"] != control[1]["generation"]
    assert [row["generation"] for row in control] == [row["generation"] for row in same]
