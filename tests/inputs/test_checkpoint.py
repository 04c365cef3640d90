"""What is read of a checkpoint without loading it: its dtype, against Transformers, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig

from sweep.config.schema import SweepConfig
from sweep.errors import ConfigError, TransformError
from sweep.inputs import weights
from sweep.inputs.checkpoint import Checkpoint, find
from sweep.inputs.config import ModelConfig
from sweep.inputs.embedding_loader import from_safetensors, open_table
from sweep.planning.plan import Task, describe, make_plan
from sweep.points.fingerprint import Fingerprints
from sweep.points.point import Point
from tiny_models import SIZES, make_model, make_tokenizer

Configure = Callable[..., SweepConfig]


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> Checkpoint:
    path = folder / "config.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return find(ModelConfig(id=str(folder)))


def without_dtype(document: dict[str, Any]) -> None:
    document.pop("dtype")


def with_weights(folder: Path, name: str, dtype: torch.dtype) -> None:
    """Give those tensors whose name holds `name` another dtype."""
    tensors = load_file(folder / "model.safetensors")
    changed = {key: value.to(dtype) if name in key else value for key, value in tensors.items()}
    assert any(name in key for key in tensors)
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})


def gemma_with_vision(folder: Path) -> Path:
    text = Gemma3TextConfig(**SIZES)
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Gemma3Config(text_config=text, vision_config=vision | {"image_size": 28, "patch_size": 14})
    Gemma3ForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def test_top_level_dtype_applies_to_the_text_model(tmp_path: Path) -> None:
    folder = gemma_with_vision(tmp_path / "model")

    def top_only(document: dict[str, Any]) -> None:
        assert document["dtype"] == "bfloat16"
        for inner in ("text_config", "vision_config"):
            document[inner].pop("dtype", None)

    checkpoint = edit(folder, top_only)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert str(checkpoint.resolved_dtype) == "bfloat16 from config.json"
    assert checkpoint.dtype == loaded.get_input_embeddings().weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (None, "bfloat16 from the first tensor, lm_head.weight"),
        ("lm_head", "float32 from the first tensor, lm_head.weight"),
        ("norm", "bfloat16 from the first tensor, lm_head.weight"),
    ],
)
def test_without_a_configured_dtype_the_first_tensors_dtype_is_used(
    tmp_path: Path, changed: str | None, expected: str
) -> None:
    folder = make_model(tmp_path / "model", dtype=torch.bfloat16)
    if changed:
        with_weights(folder, changed, torch.float32)
    checkpoint = edit(folder, without_dtype)
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert str(checkpoint.resolved_dtype) == expected
    assert checkpoint.dtype == loaded.dtype


def test_tensors_of_8_bits_are_skipped_when_the_dtype_is_read(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", dtype=torch.bfloat16)
    with_weights(folder, "lm_head", torch.float8_e4m3fn)
    assert str(edit(folder, without_dtype).resolved_dtype).startswith("bfloat16 from the first tensor, model.")


def test_dtype_is_read_from_the_first_file_of_several(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", dtype=torch.bfloat16, shard_size="100KB")
    first = weights.files(folder, "x")[0]
    assert first.name.startswith("model-00001-of-")
    save_file({name: tensor.float() for name, tensor in load_file(first).items()}, first, metadata={"format": "pt"})
    checkpoint = edit(folder, without_dtype)
    assert checkpoint.dtype == AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype == torch.float32


def test_without_safetensors_the_dtype_is_read_from_the_pickle(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", dtype=torch.bfloat16)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert edit(folder, without_dtype).engine_dtype == "bfloat16"


def test_plan_names_the_dtype_and_its_source(configure: Configure) -> None:
    contents = Fingerprints()
    for changes, expected in (
        ({}, "(float32 from config.json)"),
        ({"dtype": "bfloat16"}, "(bfloat16 from model.dtype)"),
    ):
        point = Point(configure(model={"id": configure().model.id} | changes))
        [point_fingerprint] = contents.identify([point])
        groups = make_plan(
            [Task(point=point, point_fingerprint=point_fingerprint, index=0)], contents.inputs, dry_run=True
        )
        assert expected in next(iter(describe(groups, 1)))


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn", "complex64", "float64", "nonsense", 5, ["bfloat16"]])
def test_unsupported_dtype_is_refused(tmp_path: Path, dtype: object) -> None:
    checkpoint = edit(make_model(tmp_path / "model"), lambda document: document.update(dtype=dtype))
    with pytest.raises(ConfigError, match=r"model\.id: .*(Set model\.dtype to one of|has no model that can be loaded)"):
        _ = checkpoint.engine_dtype


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size"])
@pytest.mark.parametrize("value", [-5, 0, True, 2**40, 2.5, "many", None])
def test_impossible_sizes_are_refused(tmp_path: Path, key: str, value: object) -> None:
    checkpoint = edit(make_model(tmp_path / "model"), lambda document: document.update({key: value}))
    with pytest.raises(
        ConfigError, match=rf"model\.id: .*({key} = .*; expected a whole number from 1 to|that can be loaded)"
    ):
        open_table(checkpoint)


@pytest.mark.parametrize(
    "index",
    [
        b'{"weight_map": {"model.embed_tokens.weight": "../x.safetensors"}}',
        b'{"weight_map": {"model.embed_tokens.weight": "/etc/x.safetensors"}}',
        b'{"weight_map": {"model.embed_tokens.weight": "sub/x.safetensors"}}',
        b'{"weight_map": {"model.embed_tokens.weight": "config.json"}}',
        b'{"weight_map": {"model.embed_tokens.weight": "a\\u0000.safetensors"}}',
        b'{"weight_map": {"model.embed_tokens.weight": 5}}',
        b'{"weight_map": {"model.embed_tokens.weight": null}}',
        b'{"weight_map": ["model.embed_tokens.weight"]}',
        b'{"weight_map": {}}',
        b'{"weight_map": {',
        b"[]",
        b"[" * 100000,
        b'{"weight_map": "\xff"}',
    ],
)
def test_broken_index_or_path_outside_the_folder_is_refused(tmp_path: Path, index: bytes) -> None:
    folder = make_model(tmp_path / "model")
    (folder / weights.INDEX).write_bytes(index)
    with pytest.raises(ConfigError, match=r"^model\.id: "):
        from_safetensors(find(ModelConfig(id=str(folder))))


@pytest.mark.parametrize("content", [b"[" * 100000, b"\xff\xfe", b"{", b"[]", b"5", b'{"model_type": 5}'])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
def test_broken_files_of_a_model_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    folder = make_model(tmp_path / "model")
    (folder / name).write_bytes(content)
    checkpoint = find(ModelConfig(id=str(folder)))
    try:
        _ = checkpoint.config, checkpoint.tokenizer
    except ConfigError as error:
        assert str(error).startswith("model.id: ")
    else:
        assert name == "tokenizer_config.json"  # of which Transformers does with little


def test_a_tokenizer_with_more_tokens_than_the_table_is_refused_where_a_prompt_has_them(
    configure: Configure, tmp_path: Path
) -> None:
    folder = make_model(tmp_path / "model")
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([f"<|{i}|>" for i in range(12)], special_tokens=True)  # 11 have a row
    tokenizer.save_pretrained(folder)
    contents = Fingerprints()

    def plan(text: str, transform: str = "one") -> None:
        mix = {"name": "lerp", "t": 0.5, "text": transform, "align": "resample"}
        config = configure(model={"id": str(folder)}, prompts={"items": [{"id": "a", "prompt": text}]}, transform=mix)
        point = Point(config)
        [point_fingerprint] = contents.identify([point])
        make_plan([Task(point=point, point_fingerprint=point_fingerprint, index=0)], contents.inputs, dry_run=True)

    plan("<|10|>")
    message = r"The prompt 'a' has the token 272 \('<\|11\|>'\), but the embedding table of .* has 272 rows"
    with pytest.raises(ConfigError, match=message):
        plan("<|11|>")
    plan("fine", "<|10|>")
    message = r"transform\.text: the token 272 \('<\|11\|>'\) is beyond the model's embedding table of 272 rows"
    with pytest.raises(ConfigError, match=message):
        plan("fine", "<|11|>")


@pytest.mark.parametrize("ids", [[0, 272], [-1]])
def test_token_ids_without_a_row_are_named(checkpoint: Checkpoint, ids: list[int]) -> None:
    with pytest.raises(TransformError, match=rf"the token {ids[-1]} is beyond the model's embedding table of 272 rows"):
        open_table(checkpoint).rows(ids)


@pytest.mark.parametrize("trusted", [False, True])
def test_only_files_that_a_loader_reads_are_hashed(configure: Configure, tmp_path: Path, trusted: bool) -> None:
    folder = make_model(tmp_path / "model")
    (folder / "merges.txt").write_text("a b")
    (folder / "eval.py").write_text("1")
    config = configure(model={"id": str(folder), "trust_remote_code": trusted})

    def fingerprint() -> str:
        return Fingerprints().identify([Point(config)])[0].fingerprint

    checkpoint, first = find(config.model), fingerprint()
    checkpoint.expect_unchanged()
    for name in ("log.txt", "results.json"):
        (folder / name).write_text("{}")
    checkpoint.expect_unchanged()
    assert fingerprint() == first
    (folder / "eval.py").write_text("12")
    assert (fingerprint() != first) == trusted
    if trusted:
        with pytest.raises(ConfigError, match=r"eval\.py of .* has changed"):
            checkpoint.expect_unchanged()
    else:
        checkpoint.expect_unchanged()
    (folder / "eval.py").write_text("1")
    (folder / "merges.txt").write_text("a b c")
    assert fingerprint() != first
    with pytest.raises(ConfigError, match=r"(merges\.txt|eval\.py) of .* has changed"):
        checkpoint.expect_unchanged()


def pickled(folder: Path) -> Path:
    """Make a model without dtype whose weights are in pytorch_model.bin; return that file."""
    make_model(folder, dtype=torch.bfloat16)
    edit(folder, without_dtype)
    file = folder / "pytorch_model.bin"
    torch.save({"step": 3} | load_file(folder / "model.safetensors"), file)
    (folder / "model.safetensors").unlink()
    return file


def test_the_dtype_of_a_pickle_is_that_of_the_weights(tmp_path: Path) -> None:
    file = pickled(tmp_path / "model")
    torch.save({"a": torch.zeros(1)}, file.with_name("optimizer.bin"))
    checkpoint = find(ModelConfig(id=str(file.parent)))
    assert checkpoint.engine_dtype == "bfloat16"
    file.rename(file.with_name("pytorch_model-00001-of-00001.bin"))
    assert find(checkpoint.model).engine_dtype == "bfloat16"
    torch.save({"a": torch.zeros(1, dtype=torch.float16)}, file.with_name("b.bin"))
    file.with_name("pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "b.bin"}}')
    assert find(checkpoint.model).engine_dtype == "float16"
    file.with_name("pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "../b.bin"}}')
    with pytest.raises(ConfigError, match=r"^model\.id: pytorch_model\.bin\.index\.json of "):
        _ = find(checkpoint.model).engine_dtype


@pytest.mark.parametrize("broken", ["short", "empty", "objects", "number"])
def test_a_broken_pickle_is_refused(tmp_path: Path, broken: str) -> None:
    file = pickled(tmp_path / "model")
    if broken in ("short", "empty"):
        file.write_bytes(file.read_bytes()[: 500 if broken == "short" else 0])
    else:
        torch.save({"a": Path("x")} if broken == "objects" else 5, file)
    message = "holds pickled objects" if broken == "objects" else "cannot be read as"
    with pytest.raises(ConfigError, match=rf"^model\.id: .*pytorch_model\.bin {message}"):
        _ = find(ModelConfig(id=str(file.parent))).engine_dtype


def test_a_single_file_and_an_index_of_others_are_refused(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    single = folder / "model.safetensors"
    (folder / weights.INDEX).write_text('{"weight_map": {"a": "other.safetensors"}}')
    assert weights.files(folder, "x") == [single]  # as Transformers does
    assert {file for file, _ in weights.tensors(folder, "x")} == {single}
    save_file({"a": torch.zeros(1)}, folder / "other.safetensors")
    message = (
        r"^model\.id: 'x' has model\.safetensors and model\.safetensors\.index\.json, which names 'other\.safetensors'\. "
        "Remove one of the two\\."
    )
    for read in (weights.files, weights.tensors):
        with pytest.raises(ConfigError, match=message):
            read(folder, "x")
    single.unlink()
    assert weights.files(folder, "x") == [folder / "other.safetensors"]
    (folder / "other.safetensors").unlink()
    with pytest.raises(ConfigError, match="which is not in its folder"):
        weights.files(folder, "x")
