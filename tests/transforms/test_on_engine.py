"""A sweep over every registered transform through the real engine, into a real MLflow store."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from mlflow import MlflowClient
from torch import Tensor

from sweep.app.sweep_runner import SweepRunner
from sweep.config.schema import SweepConfig
from sweep.console.terminal import Terminal
from sweep.engines.base import Engine
from sweep.inputs.prompt_set import PromptSet
from sweep.planning.request_builder import build
from sweep.points.point import Point
from sweep.transforms import TRANSFORMS

OURS = [
    (name, dict(parameters))
    for name, transform in TRANSFORMS.items()
    if transform.__module__.startswith("sweep.")
    for parameters in transform.examples
]


def adapted(name: str, parameters: dict[str, object]) -> dict[str, object]:
    """Return the parameters for a tokenizer of single bytes."""
    return parameters | ({"tokens": {"a": 2.0, "b": 1.0}} if name == "token_mixture" else {})


# Rows that are sent of three prompts with 50 tokens together, by transforms that do not keep them.
LENGTHS = {
    "drop_rows": [35],
    "repeat": [88, 126],
    "merge": [32, 26],
    "stretch": [70, 32],
    "soft_prompt": [62, 59],
    "inject": [27, 27],
}
# Transforms that leave or move whole rows of the vocabulary, so that a row is changed where its nearest token is.
ON_TOKENS = ("shuffle", "reverse", "roll", "drop_rows", "repeat", "nearest_token", "anchor", "typo", "other_prompt")


def sent_rows(point: Point, corpus: PromptSet) -> list[Tensor]:
    """Return the rows that are sent of each prompt."""
    built = [build(None, point.config, encoded, corpus).request.embeds for encoded in corpus.prompts]
    assert all(rows is not None for rows in built)
    return [rows for rows in built if rows is not None]


def mean(values: Iterable[Tensor]) -> float:
    return float(torch.stack(list(values)).mean())


@pytest.mark.slow
def test_a_sweep_over_all_transforms(
    configure: Callable[..., SweepConfig], on_shared_engine: Engine, corpus: PromptSet
) -> None:
    points = [
        Point(configure(transform={"name": name, **adapted(name, parameters)}, sampling={"max_tokens": 4}), (("n", i),))
        for i, (name, parameters) in enumerate(OURS)
    ]
    with SweepRunner(configure(), "all", "sweep …", Terminal()) as runner:
        runner.run(points)
    assert not {r.point.config.transform.name: r.error for r in runner.results.values() if r.error}
    client = MlflowClient(f"sqlite:///{configure().sweep.root / 'mlflow.db'}")
    [experiment] = client.search_experiments(filter_string="name = 'sweep'")
    runs = client.search_runs([experiment.experiment_id], "tags.`sweep.role` = 'point'", max_results=1000)
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.params["transform"] for run in runs} == {name for name, _ in OURS}
    by_number = {int(run.data.tags["mlflow.runName"].removeprefix("n=")): run for run in runs}
    assert sorted(by_number) == list(range(len(OURS)))
    tokens = sum(len(encoded.token_ids) for encoded in corpus.prompts)
    lengths: dict[str, list[int]] = {}
    for number, point in enumerate(points):
        metrics, name = by_number[number].data.metrics, OURS[number][0]
        sent, clean = sent_rows(point, corpus), [corpus.table.rows(e.token_ids) for e in corpus.prompts]
        rows = sum(len(own) for own in sent)
        assert metrics["perturbation/rows"] == pytest.approx(rows / len(sent), rel=1e-6), name
        assert metrics["perturbation/largest_entry"] == pytest.approx(mean(own.abs().max() for own in sent)), name
        if [len(own) for own in sent] == [len(own) for own in clean]:
            changed = mean((own != other).float().mean() for own, other in zip(sent, clean, strict=True))
            assert metrics["perturbation/changed"] == pytest.approx(changed), name
        if rows != tokens:
            lengths.setdefault(name, []).append(rows)
        if name in ON_TOKENS:
            assert metrics["perturbation/nearest_token_flips"] == pytest.approx(metrics["perturbation/changed"]), name
        assert by_number[number].data.params["transform.span"], name
    assert (tokens, lengths) == (50, LENGTHS)
    flips = [by_number[n].data.metrics["perturbation/nearest_token_flips"] for n in range(3)]
    assert flips == [0.0, 1.0, 1.0]  # of rows that are scaled by 1.5, 0 and -1
    scaled = next(run for run in runs if run.data.params.get("transform.factor") == "1.5")
    assert scaled.data.metrics["perturbation/dose_requested"] == 1.5
    assert scaled.data.metrics["perturbation/dose_achieved"] == pytest.approx(1.5, rel=1e-5)
    assert scaled.data.metrics["perturbation/norm_ratio"] == pytest.approx(1.5, rel=1e-4)
    assert scaled.data.metrics["perturbation/snr_db"] == pytest.approx(6.02, abs=0.01)
