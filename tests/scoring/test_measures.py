"""Measures of whole sweeps on the shared engine: teacher forcing, distributions, the noise floor, significance."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from transformers import AutoModelForCausalLM

from sweep import load
from sweep.app.sweep_runner import SweepRunner
from sweep.config.schema import SweepConfig
from sweep.console.terminal import Terminal
from sweep.engines.base import Engine
from sweep.errors import ConfigError
from sweep.inputs.checkpoint import Checkpoint
from sweep.inputs.embedding_table import EmbeddingTable
from sweep.inputs.prompt_set import PromptSet
from sweep.points.point import Point

Configure = Callable[..., SweepConfig]
FULL = {"logprobs": 20, "teacher_forced": True, "quality": ["exact_match", "chrf", "my_scorers.vowels"]}


@pytest.fixture
def swept(
    configure: Configure, on_shared_engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[SweepRunner, dict[str, Run], pd.DataFrame]:
    """A sweep of three factors with all measures, its runs in MLflow by name, and its generations."""
    (tmp_path / "my_scorers.py").write_text(
        "def vowels(generation):\n    return sum(c in 'aeiou' for c in generation)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    sampling = {"max_tokens": 6, "ignore_eos": True}
    points = [
        Point(
            configure(
                transform={"name": "scale", "factor": f}, scoring=FULL, sampling=sampling, plugins=["my_scorers"]
            ),
            (("transform.factor", f),),
        )
        for f in (1.0, 2.0, 8.0)
    ]
    with SweepRunner(points[0].config, "full", "sweep …", Terminal()) as runner:
        runner.run(points)
    assert not runner.problems
    client = MlflowClient(f"sqlite:///{configure().sweep.root / 'mlflow.db'}")
    [experiment] = client.search_experiments(filter_string="name = 'sweep'")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    return runner, runs, pd.read_parquet(runner.folder / "report" / "generations.parquet")


def test_all_measures_of_a_sweep(
    swept: tuple[SweepRunner, dict[str, Run], pd.DataFrame],
    checkpoint: Checkpoint,
    table: EmbeddingTable,
    corpus: PromptSet,
    subtests: pytest.Subtests,
) -> None:
    runner, runs, frame = swept
    metrics = {name: run.data.metrics for name, run in runs.items()}
    control = frame[frame.role == "control"].set_index("prompt_id")
    far = frame[frame.name == "factor=8"].set_index("prompt_id")

    with subtests.test("forced answers have the likelihood that Transformers gives them"):
        model = AutoModelForCausalLM.from_pretrained(checkpoint.folder, dtype=torch.float32)
        assert control.index.tolist() == ["hello", "sky", "two"]
        for prompt_id in control.index:
            rows = table.rows(corpus.layout(prompt_id).token_ids)
            for own_rows, answer, measure in (
                (rows * 8.0, control.token_ids[prompt_id], "divergence/control_answer_logprob"),
                (rows, far.token_ids[prompt_id], "divergence/answer_logprob"),
            ):
                given = torch.cat([own_rows, table.rows(list(answer))])
                with torch.inference_mode():
                    steps = model(inputs_embeds=given[None]).logits[0].log_softmax(-1)[-len(answer) - 1 : -1]
                expected = float(steps[range(len(answer)), list(answer)].mean())
                assert far[measure][prompt_id] == pytest.approx(expected, abs=1e-3)

    with subtests.test("a point that changes nothing is the control"):
        same = metrics["factor=1"]
        assert same["divergence/control_answer_logprob_change"] == pytest.approx(0.0, abs=1e-5)
        assert same["divergence/prefix_kl"] == pytest.approx(0.0, abs=1e-6) and same["divergence/prefix_top1"] == 1
        assert same["divergence/edit_distance"] == 0 and same["divergence/edit_distance/p"] == 1

    with subtests.test("a point that changes much is seen to"):
        assert metrics["factor=8"]["divergence/first_token_js"] > 0.01
        assert metrics["factor=8"]["divergence/control_answer_logprob_change"] < -0.1
        assert metrics["control"]["divergence/control_answer_logprob_change"] == 0.0
        # Of three prompts, all less probable: two of the eight patterns of signs.
        assert metrics["factor=8"]["divergence/control_answer_logprob_change/p"] == 0.25
        assert metrics["factor=8"]["divergence/edit_distance/difference"] > 0
        assert 0 < metrics["factor=8"]["divergence/first_token_unlisted"] < 1

    with subtests.test("the control's divergence is that of its second run"):
        assert metrics["control"]["divergence/token_agreement"] == 1.0
        assert "divergence/token_agreement/difference" not in metrics["control"]

    with subtests.test("scorers of the user's"):
        assert metrics["control"]["quality/vowels"] == control["quality/vowels"].mean()

    with subtests.test("what lies on the sweep's own run"):
        parent = runs["full"]
        assert runner.tracker is not None and runner.tracker.links is not None
        links = runner.tracker.links
        for title, page in (("side by side", links.side_by_side), ("charts", links.charts)):
            assert f"[{title}]({page})" in parent.data.tags["mlflow.note.content"]
        assert "| factor=8 |" in parent.data.tags["mlflow.note.content"]
        client = MlflowClient(f"sqlite:///{runner.folder.parents[1] / 'mlflow.db'}")
        files = {file.path for file in client.list_artifacts(parent.info.run_id)}
        tables = {"points.csv", "rows.csv", "responses.csv", "turning.csv", "pareto.csv", "generations.parquet"}
        assert files == {"config.yaml", "report.html", "plots", *tables}
        history = client.get_metric_history(parent.info.run_id, "sweep/axis/transform.factor")
        assert {metric.step: metric.value for metric in history} == {0: 1.0, 1: 1.0, 2: 2.0, 3: 8.0}
        assert metrics["control"]["axis/transform.factor"] == 1.0  # where nothing is changed: it is in the charts
        tags = client.get_experiment(parent.info.experiment_id).tags
        assert json.loads(tags["mlflow.sharedViewState.full"])["state"].startswith("deflate;")

    with subtests.test("all generations are on disk, with their scores"):
        assert frame.point.tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
        assert frame["axis/transform.factor"].tolist() == [1.0] * 6 + [2.0] * 3 + [8.0] * 3
        assert frame["prompt_digest"].nunique() == 3
        assert {"divergence/prefix_js", "health/distinct_1", "token_ids"} <= set(frame.columns)


def test_an_unknown_measure_is_refused_before_anything_starts(configure: Configure) -> None:
    points = [Point(configure(scoring={"quality": ["exact_mach"]}))]
    with (
        pytest.raises(ConfigError, match="Did you mean 'exact_match'"),
        SweepRunner(points[0].config, "x", "", Terminal()) as r,
    ):
        r.run(points)


def test_each_sample_has_its_own_probability(configure: Callable[..., SweepConfig], on_shared_engine: Engine) -> None:
    sampling = {"max_tokens": 4, "temperature": 1.0, "n": 3}
    config = configure(transform={"name": "scale", "factor": 2.0}, sampling=sampling, scoring={"teacher_forced": True})
    with SweepRunner(config, "samples", "sweep …", Terminal()) as runner:
        runner.run([Point(config, (("transform.factor", 2.0),))])
    rows = load(runner.folder)
    for _, point in rows.groupby("name"):
        for _, prompt in point.groupby("prompt_id"):
            texts = prompt["token_ids"].map(tuple)
            assert len(set(texts)) == prompt["divergence/answer_logprob"].round(6).nunique() > 1
    points = load(runner.folder, points=True).set_index("name")
    [control] = [row for name, row in points.iterrows() if name == "control"]
    own = rows[rows["name"] == "control"].groupby("prompt_id")["divergence/answer_logprob"].mean().mean()
    assert control["divergence/control_answer_logprob"] == pytest.approx(own)
