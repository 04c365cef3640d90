"""LoRA adapters: their change of embedding rows, and which are refused."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lora_adapters import make_adapter
from sweep.errors import ConfigError
from sweep.inputs import lora
from sweep.inputs.checkpoint import find
from sweep.inputs.config import ModelConfig
from sweep.inputs.embedding_loader import open_table
from sweep.inputs.input_store import InputStore


@pytest.fixture(scope="module")
def attention(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tiny, tmp_path_factory.mktemp("lora") / "attention", ["q_proj", "v_proj"])


@pytest.fixture(scope="module")
def embedding(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with another scaling for the embeddings than for attention."""
    folder = tmp_path_factory.mktemp("lora") / "embedding"
    return make_adapter(tiny, folder, ["q_proj", "embed_tokens"], 2, alpha_pattern={"embed_tokens": 6}, use_rslora=True)


def test_rows_equal_those_of_peft(tiny: Path, attention: Path, embedding: Path) -> None:
    checkpoint = find(ModelConfig(id=str(tiny)))
    plain = open_table(checkpoint)
    assert torch.equal(open_table(checkpoint, lora.find(str(attention))).rows(range(272)), plain.rows(range(272)))
    table = pickle.loads(pickle.dumps(open_table(checkpoint, lora.find(str(embedding)))))
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), str(embedding))
    with torch.inference_mode():
        expected = adapted.get_input_embeddings()(torch.arange(272))
    rows = table.rows(range(272))
    assert torch.allclose(rows, expected, atol=1e-6)
    assert (rows - plain.rows(range(272))).norm() > 1
    distances, ids = table.nearest(rows[[5, 70]])
    assert ids.flatten().tolist() == [5, 70] and distances.max() < 1e-4
    assert torch.allclose(table.mean, expected.mean(0), atol=1e-6)
    assert table.adapter_folder == str(embedding)


def test_the_largest_rank_counts(tiny: Path, tmp_path: Path) -> None:
    folder = make_adapter(tiny, tmp_path / "ranks", ["q_proj", "v_proj"], rank_pattern={"v_proj": 12})
    assert lora.find(str(folder)).rank == 12


def test_a_store_reads_model_and_adapter_once(tiny: Path, attention: Path) -> None:
    store, model = InputStore(), ModelConfig(id=str(tiny), lora=str(attention))
    assert store.checkpoint(model) is store.checkpoint(model.base)
    assert store.adapter(model) is store.adapter(model) and store.adapter(model.base) is None


def test_an_adapter_that_changes_is_refused(attention: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(attention, tmp_path / "copy"))
    adapter = lora.find(str(folder))
    _ = adapter.versions
    adapter.expect_unchanged()
    (folder / "adapter_config.json").write_text((folder / "adapter_config.json").read_text() + "\n")
    with pytest.raises(ConfigError, match=r"^model\.lora: .*copy' has changed since this sweep read it"):
        adapter.expect_unchanged()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dora": True}, "has use_dora=True, which vLLM does not support. Merge it"),
        ({"bias": "all"}, "has bias=all, which vLLM does not support"),
        ({"modules_to_save": ["embed_tokens"]}, r"has modules_to_save=\['embed_tokens'\], which vLLM"),
        ({"trainable_token_indices": [3]}, r"has trainable_token_indices=\[3\], which vLLM"),
        ({"peft_type": "IA3"}, "is a PEFT adapter of type IA3, not LORA. Merge it"),
        ({"peft_type": "PROMPT_TUNING"}, "of type PROMPT_TUNING, not LORA. Use transform=soft_prompt for it"),
        ({"arrow_config": {"top_k": 2}}, r"has arrow_config=\{'top_k': 2\}, which vLLM"),
        ({"kasa_config": {"beta": 1.0}}, r"has kasa_config=\{'beta': 1\.0\}, which vLLM"),
        ({"init_lora_weights": "corda"}, "has init_lora_weights=corda, for which PEFT changes .*weight_conversion"),
        ({"init_lora_weights": "loftq"}, "has init_lora_weights=loftq, for which PEFT changes the model's weights"),
        ({"r": 0}, "has r=0; expected a whole number of at least 1"),
        ({"r": True}, "has r=True; expected a whole number"),
        ({"rank_pattern": {"q_proj": "8"}}, "has rank_pattern='8'; expected a whole number of at least 1"),
        ({"rank_pattern": {"(": 8}}, r"has rank_pattern=\{'\(': 8\}; expected a mapping with regular expressions"),
        ({"alpha_pattern": ["q_proj"]}, r"has alpha_pattern=\['q_proj'\]; expected a mapping"),
        ({"alpha_pattern": {"q_proj": None}}, "has alpha_pattern=None; expected a finite number"),
        ({"lora_alpha": "a"}, "has lora_alpha='a'; expected a finite number"),
    ],
)
def test_refused_adapters(attention: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = Path(shutil.copytree(attention, tmp_path / "changed"))
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ConfigError, match=rf"^model\.lora: .*{message}"):
        lora.find(str(folder))


@pytest.mark.parametrize("init", [*lora.PLAIN_INITIALIZATIONS, "olora", "pissa", "pissa_niter_4"])
def test_initializations_that_change_the_model_are_refused(
    tiny: Path, attention: Path, tmp_path: Path, init: str
) -> None:
    """PEFT decides which initializations change the model's weights."""
    folder = Path(shutil.copytree(attention, tmp_path / "changed"))
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": init}))
    model = AutoModelForCausalLM.from_pretrained(tiny)
    before = model.model.layers[0].self_attn.q_proj.weight.clone()
    adapted = PeftModel.from_pretrained(model, str(folder)).base_model.model.model
    if torch.equal(adapted.layers[0].self_attn.q_proj.base_layer.weight, before):
        assert init in lora.PLAIN_INITIALIZATIONS and lora.find(str(folder)).rank == 4
    else:
        with pytest.raises(
            ConfigError, match=rf"^model\.lora: .* has init_lora_weights={init}, for which PEFT changes"
        ):
            lora.find(str(folder))


def test_every_variant_of_peft_is_known() -> None:
    """VeLoRA changes the backward pass alone, and MonteCLoRA samples in training alone."""
    variants = {field.name for field in fields(LoraConfig) if field.metadata.get("is_lora_variant")}
    assert "arrow_config" in variants
    assert variants <= lora.UNSUPPORTED.keys() | {"velora_config", "monteclora_config"}


@pytest.mark.parametrize("missing", [lora.EMBEDDING_A, lora.EMBEDDING_B])
def test_an_embedding_change_without_one_matrix(embedding: Path, tmp_path: Path, missing: str) -> None:
    folder = Path(shutil.copytree(embedding, tmp_path / "half"))
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file({k: v for k, v in tensors.items() if missing not in k}, folder / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match=r"^model\.lora: .* must have lora_embedding_A of shape .*; got .*none"):
        _ = lora.find(str(folder)).embedding


def test_folders_that_are_no_adapter(tiny: Path, attention: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^model\.lora: there is no folder '/nowhere'\.$"):
        lora.find("/nowhere")
    with pytest.raises(ConfigError, match=r"^model\.lora: the folder .* holds no adapter_model\.safetensors"):
        lora.find(str(tiny))
    shutil.copy(attention / "adapter_model.safetensors", tmp_path)
    with pytest.raises(ConfigError, match=r"^model\.lora: .* has no adapter_config\.json"):
        lora.find(str(tmp_path))
    (tmp_path / "checkpoint-3").mkdir()
    shutil.move(tmp_path / "adapter_model.safetensors", tmp_path / "checkpoint-3")
    shutil.copy(attention / "adapter_config.json", tmp_path / "checkpoint-3")
    assert lora.find(str(tmp_path)).folder == tmp_path / "checkpoint-3"


def test_an_adapter_of_another_model(tiny: Path, embedding: Path, tmp_path: Path) -> None:
    checkpoint = find(ModelConfig(id=str(tiny)))
    tensors = load_file(embedding / "adapter_model.safetensors")
    for name, changed, message in (
        ("lora_embedding_B", lambda tensor: tensor[:32], r"table of shape \[272, 32\], but the model's is \[272, 64\]"),
        ("base_layer.weight", lambda tensor: tensor + 1, "holds another embedding table than the model"),
    ):
        folder = Path(shutil.copytree(embedding, tmp_path / name))
        new = {key: changed(value).contiguous() if key.endswith(name) else value for key, value in tensors.items()}
        save_file(new, folder / "adapter_model.safetensors")
        with pytest.raises(ConfigError, match=rf"^model\.lora: .*{message}"):
            open_table(checkpoint, lora.find(str(folder)))


def test_an_adapter_as_the_model_names_the_key(tiny: Path, attention: Path, tmp_path: Path) -> None:
    advice = rf"Set model\.id={tiny} model\.lora={attention}\.$"
    with pytest.raises(ConfigError, match=rf"is not a model, but a PEFT adapter of type LORA\. {advice}"):
        find(ModelConfig(id=str(attention)))
    run = tmp_path / "run"  # of a trainer, which saves several
    for step in (5, 10):
        shutil.copytree(attention, run / f"checkpoint-{step}")
    with pytest.raises(ConfigError, match=rf"PEFT adapter of type LORA\. Set model\.id={tiny} model\.lora={run}\.$"):
        find(ModelConfig(id=str(run)))
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "PROMPT_TUNING"}')
    with pytest.raises(ConfigError, match=r"Set model\.id=ITS_MODEL transform=soft_prompt transform\.path="):
        find(ModelConfig(id=str(tmp_path)))


def test_adapters_share_an_engine(sweep_here: Callable[..., str], no_engine: None, attention: Path) -> None:
    """Each adapter has a control; a path to the same contents is the same point."""
    link = attention.parent / "link"
    link.symlink_to(attention)
    keys = ("engine=vllm", "transform.factor=1.5", "sweep.dry_run=true")
    out = sweep_here(*keys, f"model.lora=null,{attention}")
    assert "1 LoRA adapter" in out and "4 points, 1 engine start" in out
    same = sweep_here(*keys, f"model.lora={link}")
    assert set(re.findall("fingerprint (.*)", same)) < set(re.findall("fingerprint (.*)", out))
