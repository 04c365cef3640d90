"""Tests that pin the fingerprint format, so that existing answers are found again."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from conftest import compose
from sweep.app import sweep_folder
from sweep.config.loader import parse
from sweep.config.schema import SweepConfig
from sweep.errors import ConfigError
from sweep.points.fingerprint import Fingerprints, canonical
from sweep.points.point import Point
from sweep.util.digests import folder_digest

Configure = Callable[..., SweepConfig]


def scale(factor: float) -> dict[str, object]:
    return {"name": "scale", "factor": factor}


def fingerprint(config: SweepConfig, **axes: str | float) -> str:
    return Fingerprints().identify([Point(config, tuple(axes.items()))])[0].fingerprint


def test_equal_values_have_equal_canonical_texts() -> None:
    assert canonical({"b": 1.0, "a": [-0.0, 1e0, 2.5, True, None, "ü"]}) == '{"a":[0,1,2.5,true,null,"\\u00fc"],"b":1}'
    assert canonical(1) == canonical(1.0) == canonical(1e0) != canonical(True)
    with pytest.raises(ConfigError, match="factor must be a finite number"):
        canonical({"transform": {"factor": float("nan")}})


def test_fingerprint_format_is_unchanged(configure: Configure) -> None:
    """A change here makes users regenerate all answers. It needs a new `VERSION` and a reason."""
    point = Point(configure(model={"id": "demo"}, transform=scale(1.5)))
    [point_fingerprint] = Fingerprints().identify([point])
    assert json.loads(point_fingerprint.canonical) == {
        "version": 5,
        "model": {
            "files": "6eb1830eb3d06d0325a99601975d8c00d6108a550fa467824e9f66b2fc89a9cf",
            "dtype": "bfloat16",
            "embedder": "safetensors",
            "trust_remote_code": False,
        },
        "prompts": "f7261d13b8195bc2a81d90b435cf88067ea28432aa6b96d5a5693cff7236a5b9",
        "transform": [
            {
                "name": "scale",
                "parameters": {"factor": 1.5},
                "span": "all",
                "control": None,
                "files": [],
                "code": None,
            }
        ],
        "sampling": {
            "max_tokens": 8,
            "temperature": 0,
            "top_p": 1,
            "top_k": 0,
            "repetition_penalty": 1,
            "seed": 0,
            "n": 1,
            "stop": [],
            "ignore_eos": False,
        },
        "seed": 0,
        "logprobs": 0,
        "engine": {
            "name": "vllm",
            "max_model_len": None,
            "tensor_parallel_size": 1,
            "enforce_eager": None,
            "threads": None,
            "prefix_caching": False,
            "batch_invariant": False,
        },
        "swept": {},
    }
    assert point_fingerprint.fingerprint == "c3a8a7777498dbbd9c877097d1b44a663801bf8eafd285fa4d79284f4bd93b22"


def test_added_parameters_of_a_transform_change_nothing_at_their_defaults(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sweep id and the transform's part of the fingerprint are those of the version without `vector.row`."""
    mood = {"positive": ["hot"], "negative": ["cold"]}
    save_file({"v": torch.eye(32)}, tmp_path / "v.safetensors")
    from_file = {"path": str(tmp_path / "v.safetensors")}

    def parameters(vector: dict[str, object]) -> dict[str, object]:
        config = configure(transform={"name": "ablate", "vector": vector})
        parameters: dict[str, object] = config.transform.identity()[0]["parameters"]["vector"]
        return parameters

    unchanged = {"path": False, "key": None, "method": "mean_difference", "rank": None}
    assert parameters(mood) == unchanged | mood
    assert parameters(from_file | {"row": 3})["row"] == 3
    monkeypatch.setattr(sys, "argv", ["sweep"])

    def sweep_id(transform: dict[str, object]) -> str:
        return sweep_folder.make_sweep_id(OmegaConf.create({"transform": transform, "seed": 0}), "folder")

    step = {"name": "ablate", "vector": {"rank": None}}
    for made in (lambda inner: inner, lambda inner: {"name": "compose", "0": inner}):
        assert sweep_id(made(step)) == sweep_id(made({"name": "ablate", "vector": {"rank": None, "row": None}}))
        assert sweep_id(made(step)) != sweep_id(made({"name": "ablate", "vector": {"rank": None, "row": 0}}))


def test_settings_without_effect_on_generations_do_not_change_the_fingerprint(
    configure: Configure, tmp_path: Path
) -> None:
    base = fingerprint(configure(transform=scale(1.5)))
    changes: list[dict[str, object]] = [
        {"sweep": {"dir": str(tmp_path / "elsewhere"), "name": "x"}},
        {"engine": {"name": "vllm", "max_num_seqs": 3, "kv_cache_gib": 1.0}},
        {"verbose": True},
        {"tracking": {"experiment": "other"}},
        {"scoring": {"confidence": 0.9, "quality": ["chrf"]}},
        {"transform": {"name": "scale", "factor": 1.5, "span": None}},
    ]
    for change in changes:
        assert fingerprint(configure(**{"transform": scale(1.5)} | change)) == base, change


def test_settings_that_change_generations_change_the_fingerprint(configure: Configure, tmp_path: Path) -> None:
    base = fingerprint(configure(transform=scale(1.5)))
    changes: list[dict[str, object]] = [
        {"transform": scale(1.6)},
        {"transform": {"name": "scale", "factor": 1.5, "span": "content"}},
        {"seed": 1},
        {"sampling": {"max_tokens": 9}},
        {"model": {"id": "demo"}},
        {"prompts": {"items": ["Hi"]}},
        {"scoring": {"logprobs": 5}},
    ]
    found = {fingerprint(configure(**{"transform": scale(1.5)} | change)) for change in changes}
    assert len(found | {base}) == len(changes) + 1


def test_server_address_does_not_change_the_fingerprint(configure: Configure) -> None:
    here, there = (fingerprint(configure(engine={"name": "server", "url": f"http://{host}:8000"})) for host in "ab")
    assert here == there != fingerprint(configure())


def test_swept_engine_setting_changes_the_fingerprint(configure: Configure) -> None:
    config = configure(engine={"name": "vllm", "max_num_seqs": 3})
    assert fingerprint(config, **{"engine.max_num_seqs": 3.0}) != fingerprint(config)


def test_references_change_scores_but_not_the_fingerprint(configure: Configure) -> None:
    one, other = (
        Fingerprints().identify([Point(configure(prompts={"items": [{"prompt": "Hi", "reference": r}]}))])[0]
        for r in ("a", "b")
    )
    assert one.fingerprint == other.fingerprint and one.result_key != other.result_key


def test_files_are_fingerprinted_by_content(configure: Configure, tiny: Path, tmp_path: Path) -> None:
    def with_vector(name: str, value: float) -> SweepConfig:
        save_file({"v": torch.full((32,), value)}, tmp_path / name)
        transform = {"name": "add_vector", "coefficient": 1.0, "vector": {"path": str(tmp_path / name)}}
        return configure(transform=transform)

    here, there, other = (
        fingerprint(with_vector(n, v)) for n, v in (("a.safetensors", 1), ("b.safetensors", 1), ("c.safetensors", 2))
    )
    assert here == there != other
    moved = shutil.copytree(tiny, tmp_path / "moved")
    config = configure()
    copy = replace(config, model=replace(config.model, id=str(moved)))
    assert fingerprint(copy) == fingerprint(config)
    weights = moved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    assert fingerprint(copy) != fingerprint(config)


def test_weights_are_hashed_once(tiny: Path, tmp_path: Path) -> None:
    memory = tmp_path / "digests.json"
    first = folder_digest(tiny, ["*.safetensors"], memory)
    known = json.loads(memory.read_text())
    memory.write_text(json.dumps(dict.fromkeys(known, "0" * 64)))
    assert folder_digest(tiny, ["*.safetensors"], memory) != first
    memory.write_text(json.dumps(dict.fromkeys(known, "no digest")))
    assert folder_digest(tiny, ["*.safetensors"], memory) == first
    memory.write_text("torn {")
    assert folder_digest(tiny, ["*.safetensors"], memory) == first


@pytest.mark.parametrize("value", ["${now:%Y}", "${oc.env:HOME}", "${hydra:job.name}"])
def test_values_that_change_between_runs_are_refused(tiny: Path, tmp_path: Path, value: str) -> None:
    with pytest.raises(ConfigError, match=r"prompts\.system must have the same value on every run"):
        parse(compose(tiny, tmp_path, prompts={"items": ["Hi"], "system": value}))
    parse(compose(tiny, tmp_path, sweep={"dir": "${oc.env:HOME}"}))


def test_folder_ids_differ_and_survive_a_move(tmp_path: Path) -> None:
    here, there = (sweep_folder.folder_id(tmp_path / name) for name in ("here", "there"))
    assert here != there
    (tmp_path / "here").rename(tmp_path / "moved")
    assert sweep_folder.folder_id(tmp_path / "moved") == here
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / ".id").touch()  # as after a full disk
    assert sweep_folder.folder_id(tmp_path / "torn") == sweep_folder.folder_id(tmp_path / "torn") != ""
    base = OmegaConf.create({"seed": 0})
    assert (
        sweep_folder.make_sweep_id(base, here)
        == sweep_folder.make_sweep_id(base, here)
        != sweep_folder.make_sweep_id(base, there)
    )


def test_answers_of_older_formats_are_kept_and_reported(
    command_line: Callable[..., tuple[int, str, str]], tiny: Path, tmp_path: Path
) -> None:
    arguments = [f"model.id={tiny}", f"sweep.dir={tmp_path}", "sweep.dry_run=true", "prompts.items=[Hi]"]
    line = "The journal has answers in an older format (version 3, 4). They are not reused."
    code, out, _ = command_line(*arguments)
    assert code == 0 and "older format" not in out
    journal = tmp_path / "journal"
    for name, text in {
        "aa" * 32: '{"version":4}',
        "ab" * 32: '{"version":3}',
        "ac" * 32: '{"version":5}',
        "ad" * 32: "torn {",
        "ae" * 32: "[4]",
        "af" * 32: '{"version":"x"}',
    }.items():
        folder = journal / name[:2] / name
        folder.mkdir(parents=True)
        (folder / "identity.json").write_text(text)
        (folder / "writer.jsonl").write_text("what an older release wrote\n")
    before = {path: path.read_bytes() for path in journal.rglob("*") if path.is_file()}
    code, out, _ = command_line(*arguments)
    assert code == 0 and out.splitlines().count(line) == 1
    assert {path: path.read_bytes() for path in journal.rglob("*") if path.is_file()} == before
