"""Inputs are read once, and fingerprints are of what is sent."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sweep.config.schema import SweepConfig
from sweep.errors import ConfigError, TransformError
from sweep.inputs import input_store
from sweep.planning import request_builder
from sweep.planning.plan import EngineGroup, Task, make_plan
from sweep.points.fingerprint import Fingerprints, PointFingerprint
from sweep.points.point import Point

Configure = Callable[..., SweepConfig]


def planned(contents: Fingerprints, *configs: SweepConfig) -> tuple[list[PointFingerprint], list[EngineGroup]]:
    points = [same for _, same in contents.distinct([Point(config) for config in configs])]
    point_fingerprints = contents.identify(points)
    tasks = [
        Task(point=p, point_fingerprint=own, index=i)
        for i, (p, own) in enumerate(zip(points, point_fingerprints, strict=True))
    ]
    return point_fingerprints, make_plan(tasks, contents.inputs, dry_run=True)


def texts(groups: Sequence[EngineGroup]) -> list[str]:
    return [encoded.prompt.text for group in groups for point in group.points for encoded in point.prompts]


def test_prompts_that_are_edited_between_batches_keep_their_first_content(configure: Configure, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    first, second = (
        configure(prompts={"path": str(path)}, transform={"name": "scale", "factor": factor}) for factor in (1.2, 1.5)
    )
    path.write_text(json.dumps({"prompt": "First"}))
    contents = Fingerprints()
    planned(contents, first)
    path.write_text(json.dumps({"prompt": "Second"}))
    [own], groups = planned(contents, second)
    assert texts(groups) == ["First"]
    [fresh], again = planned(Fingerprints(), second)
    assert texts(again) == ["Second"] and own.fingerprint != fresh.fingerprint
    path.write_text(json.dumps({"prompt": "First"}))
    assert planned(Fingerprints(), second)[0] == [own]


@pytest.fixture
def steered(configure: Configure, tmp_path: Path) -> tuple[Path, SweepConfig]:
    """A file of a vector, and a point that adds it."""
    path = tmp_path / "v.safetensors"
    save_file({"v": torch.ones(64)}, path)
    return path, configure(transform={"name": "add_vector", "coefficient": 1.0, "vector": {"path": str(path)}})


def test_a_vector_that_is_edited_between_batches_is_refused(steered: tuple[Path, SweepConfig]) -> None:
    path, config = steered
    contents = Fingerprints()
    planned(contents, config)
    os.utime(path, (1, 1))  # another time, the same content
    planned(contents, config)
    save_file({"v": torch.full((64,), 2.0)}, path)
    with pytest.raises(ConfigError, match=r"v\.safetensors has changed since this sweep read it"):
        planned(contents, config)
    planned(Fingerprints(), config)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_vector_that_is_edited_after_the_plan_is_not_applied(
    steered: tuple[Path, SweepConfig], elsewhere: bool
) -> None:
    """`elsewhere`: in a pool process, which reads the file for itself."""
    path, config = steered
    _, [group] = planned(Fingerprints(), config)
    [point] = group.points
    corpus, own = point.corpus, point.point.config
    if elsewhere:
        corpus, own = pickle.loads(pickle.dumps((corpus, own)))
    request_builder.build(None, own, corpus.prompts[0], corpus)
    save_file({"v": torch.full((64,), 2.0)}, path)
    with pytest.raises(TransformError, match=r"v\.safetensors has changed since the sweep was planned"):
        request_builder.build(None, own, corpus.prompts[0], corpus)
    path.unlink()
    with pytest.raises((TransformError, ConfigError), match=r"v\.safetensors"):
        request_builder.build(None, own, corpus.prompts[0], corpus)


def test_code_that_differs_between_processes_is_refused(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweep.transforms.pipeline._user_code_digest", lambda transform: "imported here")
    _, [group] = planned(Fingerprints(), configure(transform={"name": "scale", "factor": 1.5}))
    [point] = group.points
    request_builder.build(None, point.point.config, point.prompts[0], point.corpus)
    monkeypatch.setattr("sweep.transforms.pipeline._user_code_digest", lambda transform: "imported there")
    with pytest.raises(TransformError, match="the transform's module has changed since the plan"):
        request_builder.build(None, point.point.config, point.prompts[0], point.corpus)


@pytest.fixture
def moved(configure: Configure, tiny: Path, tmp_path: Path) -> tuple[Path, SweepConfig]:
    """A copy of the tiny model, and a point of it."""
    folder = shutil.copytree(tiny, tmp_path / "model")
    config = configure()
    return folder, replace(config, model=replace(config.model, id=str(folder)))


def overwrite(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
    os.utime(file, (1, 1))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer_config.json", "added_tokens.json"])
def test_a_model_that_changes_between_batches_is_refused(moved: tuple[Path, SweepConfig], name: str) -> None:
    folder, config = moved
    contents = Fingerprints()
    planned(contents, config)
    (folder / name).touch()
    overwrite(folder / name)
    with pytest.raises(ConfigError, match=rf"model\.id: {name} of .* has changed since this sweep read it"):
        planned(contents, config)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_weights_that_change_between_plan_and_mapping_are_refused(
    moved: tuple[Path, SweepConfig], elsewhere: bool
) -> None:
    folder, config = moved
    _, [group] = planned(Fingerprints(), config)
    table = pickle.loads(pickle.dumps(group.points[0].corpus.table)) if elsewhere else group.points[0].corpus.table
    overwrite(folder / "model.safetensors")
    with pytest.raises(ConfigError, match=r"model\.safetensors of .* has changed since this sweep read it"):
        table.rows([1])


def test_prompts_are_rendered_once_for_each_tokenizer(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    encode = input_store.encode

    def counted(*given: Any, **options: Any) -> Any:
        calls.append(given)
        return encode(*given, **options)

    monkeypatch.setattr(input_store, "encode", counted)
    contents = Fingerprints()
    configs = [configure(), configure(model=configs_model(configure, "bfloat16")), configure(prompts={"items": ["x"]})]
    for _ in range(2):
        planned(contents, *configs)
    assert len(calls) == 2


def configs_model(configure: Configure, dtype: str) -> dict[str, str]:
    return {"id": configure().model.id, "dtype": dtype}
