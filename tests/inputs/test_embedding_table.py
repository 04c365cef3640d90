"""Rows read lazily against those of Transformers' own embedding layer, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from sweep.errors import ConfigError
from sweep.inputs.checkpoint import find
from sweep.inputs.config import ModelConfig
from sweep.inputs.embedding_loader import from_safetensors, from_transformers, open_table
from tiny_models import make_model

FAMILIES = ["llama", "llama-tied", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "granite", "gpt2", "opt"]
IDS = [7, 1, 200, 7, 33]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("stored", "run"), [("float32", "auto"), ("bfloat16", "auto"), ("bfloat16", "float32")])
def test_lazy_rows_equal_those_of_transformers(tmp_path: Path, family: str, stored: str, run: str) -> None:
    folder = make_model(tmp_path / family, family, getattr(torch, stored))
    checkpoint = find(ModelConfig(id=str(folder), dtype=run))
    dtype = torch.float32 if run == "float32" else getattr(torch, stored)
    layer = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).get_input_embeddings()
    with torch.inference_mode():
        expected = layer(torch.tensor(IDS))
    lazy, classical = from_safetensors(checkpoint), from_transformers(checkpoint)
    assert lazy.rows(IDS).dtype == torch.float32
    assert torch.equal(lazy.rows(IDS), expected.float())
    assert torch.equal(classical.rows(IDS), expected.float())


def test_fp32_checkpoint_in_bf16_has_the_rows_of_the_engine(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "gemma3", "gemma3")
    checkpoint = find(ModelConfig(id=str(folder), dtype="bfloat16"))
    assert torch.equal(from_safetensors(checkpoint).rows(IDS), from_transformers(checkpoint).rows(IDS))


def test_sharded_checkpoints(tmp_path: Path) -> None:
    whole = make_model(tmp_path / "whole")
    shards = make_model(tmp_path / "shards", shard_size="100KB")
    assert (shards / "model.safetensors.index.json").is_file()
    one, many = (open_table(find(ModelConfig(id=str(folder)))) for folder in (whole, shards))
    assert torch.equal(one.rows(IDS), many.rows(IDS))


def test_without_safetensors_the_model_is_loaded_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make_model(tmp_path / "bin")
    expected = open_table(find(ModelConfig(id=str(folder)))).rows(IDS)
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    del model
    table = open_table(find(ModelConfig(id=str(folder))))
    assert torch.equal(table.rows(IDS), expected)
    assert "has no safetensors" in caplog.text


def test_std_is_computed_over_all_entries(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "gemma", "gemma", torch.bfloat16)
    table = open_table(find(ModelConfig(id=str(folder))))
    everything = table.rows(range(table.weight.shape[0])).double()
    assert table.std == pytest.approx(float(everything.std(correction=0)), rel=1e-6)


def test_broken_checkpoint_is_named(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "broken")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ConfigError, match="cannot be read"):
        open_table(find(ModelConfig(id=str(folder))))


@pytest.mark.parametrize("change", [{"hidden_size_per_layer_input": 16}, {"word_embed_proj_dim": 32}])
def test_architectures_that_cannot_be_given_embeddings_are_refused(tmp_path: Path, change: dict[str, int]) -> None:
    checkpoint = find(ModelConfig(id=str(make_model(tmp_path / "model"))))
    for key, value in change.items():
        setattr(checkpoint.config, key, value)
    with pytest.raises(ConfigError, match=r"per-layer|projects"):
        checkpoint.check_supported()
