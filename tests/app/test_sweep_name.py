"""Default names of sweeps."""

from __future__ import annotations

import pytest

from sweep.app.sweep_name import LENGTH, default_name
from sweep.config.arguments import to_hydra_syntax


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["transform=scale", "transform.factor=1.2,1.5"], "scale factor=1.2,1.5"),
        (["transform.factor=range(1,2,0.1)", "transform=scale"], "scale factor=range(1,2,0.1)"),
        (["transform=scale", "transform.factor=1.2", "model.id=org/llama-1b"], "scale factor=1.2 model=llama-1b"),
        (["transform=scale", "transform.factor=1.2", "model.id=/models/a/,/models/b"], "scale factor=1.2 model=a,b"),
        (["transform=scale", "model=qwen3-4b,mistral-7b"], "scale model=qwen3-4b,mistral-7b"),
        (["transform=scale,noise", "seed=1,2"], "scale,noise seed=1,2"),
        (["transform=scale+noise", "transform.0.factor=2", "transform.1.sigma=3"], "scale+noise factor=2 sigma=3"),
        (["transform=a+b", "transform.0.factor=2", "transform.1.factor=3"], "a+b 0.factor=2 1.factor=3"),
        (["experiment=scale_demo"], "scale_demo"),
        ([], "identity"),
        (["transform=scale", "sweep.dir=/tmp/x", "tracking.uri=http://x", "hydra/launcher=ray", "-m"], "scale"),
        (["+transform.factor='1.2'", "transform=scale"], "scale factor=1.2"),
        (["transform=replace", "prompts.path=data/mine.jsonl"], "replace prompts=mine.jsonl"),
        (["transform=scale", "sampling.seed=1", "seed=2"], "scale sampling.seed=1 seed=2"),
    ],
)
def test_default_name_lists_the_swept_keys(arguments: list[str], name: str) -> None:
    assert default_name(arguments, "identity") == name
    assert default_name(to_hydra_syntax(arguments), "identity") == name


def test_names_are_short() -> None:
    values = ",".join(str(value) for value in range(1000))
    name = default_name(["transform=scale", f"transform.factor={values}"], "identity")
    assert name.startswith("scale factor=0,1,2,3") and name.endswith("…") and len(name) < LENGTH
    assert len(default_name([f"sampling.k{i}={values}" for i in range(9)], "identity")) == LENGTH
