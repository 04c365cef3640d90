"""A sweep over every registered transform through the real engine, into a real MLflow store."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from mlflow import MlflowClient

from sweep.config import SweepConfig
from sweep.engines.base import Engine
from sweep.point import Point
from sweep.runner import Runner
from sweep.terminal import Terminal
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


def test_a_sweep_over_all_transforms(configure: Callable[..., SweepConfig], on_shared_engine: Engine) -> None:
    points = [
        Point(configure(transform={"name": name, **adapted(name, parameters)}, sampling={"max_tokens": 4}), (("n", i),))
        for i, (name, parameters) in enumerate(OURS)
    ]
    with Runner(configure(), "all", "sweep …", Terminal()) as runner:
        runner.run(points)
    assert not {r.point.config.transform.name: r.error for r in runner.results.values() if r.error}
    client = MlflowClient(f"sqlite:///{configure().sweep.root / 'mlflow.db'}")
    [experiment] = client.search_experiments(filter_string="name = 'sweep'")
    runs = client.search_runs([experiment.experiment_id], "tags.`sweep.role` = 'point'", max_results=1000)
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.params["transform"] for run in runs} == {name for name, _ in OURS}
    for run in runs:
        metrics, name = run.data.metrics, run.data.params["transform"]
        assert metrics["perturbation/largest_entry"] >= 0 and metrics["perturbation/rows"] > 0, name
        assert metrics.get("perturbation/changed", 0.0) <= 1.0, name
        assert 0 <= metrics["perturbation/nearest_token_flips"] <= 1, name
        assert run.data.params["transform.span"], name
    scaled = next(run for run in runs if run.data.params.get("transform.factor") == "1.5")
    assert scaled.data.metrics["perturbation/dose_requested"] == 1.5
    assert scaled.data.metrics["perturbation/dose_achieved"] == pytest.approx(1.5, rel=1e-5)
    assert scaled.data.metrics["perturbation/norm_ratio"] == pytest.approx(1.5, rel=1e-4)
    assert scaled.data.metrics["perturbation/snr_db"] == pytest.approx(6.02, abs=0.01)
