"""PEFT checkpoints: the prompt of each type, where its file lies, and that all other adapters are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sweep.config.dataclass_reader import build_pipeline
from sweep.errors import ConfigError
from sweep.inputs.tensors import count_rows, load_tensor, load_tensors, tensor_file
from sweep.transforms.injection import SoftPrompt

CONFIG_KEY = "transform.path"
ROWS = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
# Factors of two tasks, and what PEFT 0.21.2 makes of them: get_prompt(1, task_ids=tensor([t]))[0].
FACTORS = {
    "prompt_embeddings": torch.tensor([[1.0, 2.0], [3.0, -1.0]]),
    "prefix_task_cols": torch.tensor([[[1.0, 0.0], [2.0, 1.0]], [[0.5, 1.0], [-1.0, 2.0]]]),
    "prefix_task_rows": torch.tensor([[[3.0, -1.0], [1.0, 4.0]], [[2.0, 2.0], [0.0, -1.0]]]),
}
ANSWERS = [[[3.0, -2.0], [21.0, -2.0]], [[1.0, 0.0], [-6.0, 4.0]]]


def write(folder: Path, kind: str | None, tensors: dict[str, Tensor], **config: Any) -> Path:
    """Write a checkpoint as PEFT does; None: without its configuration.  Return its file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "adapter_model.safetensors"
    save_file(tensors, file)
    if kind is not None:
        values = {"peft_type": kind, "task_type": "CAUSAL_LM", "num_transformer_submodules": 1} | config
        (folder / "adapter_config.json").write_text(json.dumps(values))
    return file


def load(path: Path, key: str | None = None, width: int = 8, task: int | None = None) -> Tensor:
    return load_tensor(str(path), key, width=width, config_key=CONFIG_KEY, task=task)


@pytest.mark.parametrize("kind", ["PROMPT_TUNING", "P_TUNING", "CPT", None])
def test_soft_prompt_rows_are_read_from_the_file(tmp_path: Path, kind: str | None) -> None:
    file = write(tmp_path, kind, {"prompt_embeddings": ROWS}, num_virtual_tokens=3)
    for path in (tmp_path, file):
        assert torch.equal(load(path), ROWS)
        assert torch.equal(load(path, "prompt_embeddings"), ROWS)
    assert tensor_file(str(tmp_path), CONFIG_KEY) == file


def test_resized_vocabulary_is_not_read_as_the_prompt(tmp_path: Path) -> None:
    embedding = "base_model.model.embed_tokens.weight"
    write(tmp_path, "PROMPT_TUNING", {"prompt_embeddings": ROWS, embedding: -ROWS}, num_virtual_tokens=3)
    assert torch.equal(load(tmp_path), ROWS)
    with pytest.raises(
        ConfigError, match=r"^transform\.key: the soft prompt of .* is prompt_embeddings, not 'base_model"
    ):
        load(tmp_path, embedding)


@pytest.mark.parametrize("kind", ["MULTITASK_PROMPT_TUNING", None])
@pytest.mark.parametrize("task", [0, 1])
def test_task_rows_of_a_multitask_checkpoint_equal_pefts(tmp_path: Path, kind: str | None, task: int) -> None:
    file = write(tmp_path, kind, FACTORS, num_virtual_tokens=2, num_tasks=2)
    for path in (tmp_path, file):
        assert load(path, width=2, task=task).tolist() == ANSWERS[task]
        assert count_rows(str(path), None, width=2, config_key=CONFIG_KEY, task=task) == 2


def test_multitask_checkpoint_without_a_valid_task_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, "MULTITASK_PROMPT_TUNING", FACTORS, num_virtual_tokens=2)
    for path, key, task, said in [
        (
            tmp_path,
            None,
            None,
            r"^transform\.path: .* holds soft prompts of 2 tasks\. Choose one: .*task=0 \(to 1\)\.$",
        ),
        (file, "prompt_embeddings", None, r"^transform\.path: .* holds soft prompts of 2 tasks\."),
        (
            file,
            "prefix_task_rows",
            None,
            r"^transform\.key: the soft prompt of .* is prompt_embeddings, not 'prefix_task_",
        ),
        (tmp_path, None, 2, r"^transform\.task: .* holds tasks 0 to 1; got 2\.$"),
    ]:
        with pytest.raises(ConfigError, match=said):
            load(path, key, width=2, task=task)
    write(tmp_path, "MULTITASK_PROMPT_TUNING", {"prompt_embeddings": ROWS})
    with pytest.raises(
        ConfigError, match=r"is of type MULTITASK_PROMPT_TUNING, but has no prefix_task_cols and prefix_"
    ):
        load(tmp_path, task=0)
    write(tmp_path, "MULTITASK_PROMPT_TUNING", FACTORS | {"prefix_task_cols": torch.ones(2, 3, 2)})
    with pytest.raises(ConfigError, match=r"do not match: \[2, 2\], \[2, 3, 2\], \[2, 2, 2\]\.$"):
        load(tmp_path, width=2, task=0)
    write(tmp_path, "PROMPT_TUNING", {"prompt_embeddings": ROWS})
    with pytest.raises(
        ConfigError, match=r"^transform\.task: .* does not hold soft prompts of several tasks\. Remove task=0\.$"
    ):
        load(tmp_path, task=0)


def test_task_is_a_parameter_and_in_the_fingerprint(tmp_path: Path) -> None:
    write(tmp_path, "MULTITASK_PROMPT_TUNING", FACTORS, num_virtual_tokens=2)
    first, second = (build_pipeline({"name": "soft_prompt", "path": str(tmp_path), "task": task}) for task in (0, 1))
    assert [
        (a["parameters"]["task"], b["parameters"]["task"])
        for a, b in zip(first.identity(), second.identity(), strict=True)
    ] == [(0, 1)]
    assert first.parameters()["transform.task"] == 0
    assert first.max_rows(10) == 12
    for parameters, said in [
        ({"path": "a", "task": -1}, r"^transform\.task must be 0 or more; got -1\.$"),
        (
            {"random": 4, "task": 0},
            r"^transform\.task selects a task of a PEFT checkpoint and needs transform\.path; got 0\.$",
        ),
    ]:
        with pytest.raises(ConfigError, match=said):
            SoftPrompt(**parameters)


LORA = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": ROWS}
TOKENS = {"base_model.model.model.embed_tokens.trainable_tokens_delta": ROWS}
MERGE = r"Merge it into the model with PEFT .* and set model\.id to the merged model\.$"


@pytest.mark.parametrize(
    ("kind", "tensors", "said"),
    [
        (
            "PREFIX_TUNING",
            {"prompt_embeddings": ROWS},
            r"It holds keys and values of each layer, which cannot be sent",
        ),
        ("CARTRIDGE", {"prompt_embeddings": ROWS}, r"It holds keys and values of each layer, which cannot be sent"),
        (
            "TRAINABLE_TOKENS",
            TOKENS,
            r"It holds replacement rows for tokens of the vocabulary\. " + MERGE,
        ),
        ("LORA", LORA, r"It changes the model's weights\. " + MERGE),
        ("IA3", {"base_model.model.k_proj.ia3_l": ROWS}, r"It changes the model's weights\. " + MERGE),
        ("A_NEW_ONE", {"rows": ROWS}, r"It changes the model's weights\. " + MERGE),
    ],
)
def test_other_adapter_types_are_refused_by_name(
    tmp_path: Path, kind: str, tensors: dict[str, Tensor], said: str
) -> None:
    file = write(tmp_path, kind, tensors)
    for path in (tmp_path, file):
        for key in (None, *tensors):
            with pytest.raises(
                ConfigError, match=rf"^transform\.path: .* is a PEFT adapter of type {kind}, not a soft prompt\. {said}"
            ):
                load(path, key)
        with pytest.raises(ConfigError, match=rf"is a PEFT adapter of type {kind}, not layers of their own"):
            load_tensors(str(path), config_key="transform.projector")


@pytest.mark.parametrize(("kind", "tensors"), [("LORA", LORA), ("TRAINABLE_TOKENS", TOKENS)])
def test_adapter_without_configuration_is_recognised_by_tensor_names(
    tmp_path: Path, kind: str, tensors: dict[str, Tensor]
) -> None:
    file = tmp_path / "renamed.safetensors"
    save_file(tensors, file)
    for key in (None, *tensors):
        with pytest.raises(ConfigError, match=rf"is a PEFT adapter of type {kind}, not a soft prompt\."):
            load(file, key)


def test_configuration_that_contradicts_the_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "PROMPT_TUNING", {"prompt_embeddings": ROWS}, num_virtual_tokens=20)
    with pytest.raises(ConfigError, match=r"has 3 rows, but its adapter_config\.json says num_virtual_tokens=20\.$"):
        load(tmp_path)
    write(tmp_path, "PROMPT_TUNING", {"prompt_embeddings": ROWS}, num_virtual_tokens=3)  # and it is read again
    assert torch.equal(load(tmp_path), ROWS)
    with pytest.raises(ConfigError, match=r"has rows of width 8; the model's are 64 wide\.$"):
        load(tmp_path, width=64)
    write(tmp_path, "PROMPT_TUNING", {"rows": ROWS})
    with pytest.raises(
        ConfigError, match=r"is of type PROMPT_TUNING, but has no prompt_embeddings\. It holds: rows\.$"
    ):
        load(tmp_path)
    for changes in (
        {"num_transformer_submodules": 2},
        {"task_type": "SEQ_2_SEQ_LM", "num_transformer_submodules": None},
    ):
        write(tmp_path, "PROMPT_TUNING", {"prompt_embeddings": ROWS}, **changes)
        with pytest.raises(
            ConfigError, match=r"is a soft prompt for an encoder-decoder model \(task_type SEQ_2_SEQ_LM\)"
        ):
            load(tmp_path)
    for text, error in [("{", "JSONDecodeError"), ("[]", "TypeError"), ("{}", "KeyError")]:
        (tmp_path / "adapter_config.json").write_text(text)
        with pytest.raises(ConfigError, match=rf"adapter_config\.json is not a PEFT configuration; .* \({error}\)\.$"):
            load(tmp_path)


def test_checkpoint_in_pickle_format_is_read(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}')
    torch.save({"prompt_embeddings": -ROWS}, tmp_path / "adapter_model.bin")
    assert torch.equal(load(tmp_path), -ROWS)
    save_file({"prompt_embeddings": ROWS}, tmp_path / "adapter_model.safetensors")  # which PEFT prefers
    assert torch.equal(load(tmp_path), ROWS)


def test_checkpoint_in_a_trainers_folder_is_found(tmp_path: Path) -> None:
    write(tmp_path / "checkpoint-500", "PROMPT_TUNING", {"prompt_embeddings": ROWS})
    (tmp_path / "runs").mkdir()
    (tmp_path / "trainer_state.json").write_text("{}")
    assert torch.equal(load(tmp_path), ROWS)
    write(tmp_path / "checkpoint-1000", "PROMPT_TUNING", {"prompt_embeddings": -ROWS})
    said = r"holds 2 checkpoints: checkpoint-500, checkpoint-1000\. Choose one, such as transform\.path=.*/checkpoint-1000\.$"
    with pytest.raises(ConfigError, match=said):
        load(tmp_path)
    assert torch.equal(load(tmp_path / "checkpoint-500"), ROWS)
    write(tmp_path, "PROMPT_TUNING", {"prompt_embeddings": 2 * ROWS})  # as at the end of a training
    assert torch.equal(load(tmp_path), 2 * ROWS)


def test_error_for_a_folder_without_an_adapter_lists_its_files(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(
        ConfigError, match=r"holds no adapter_model\.safetensors or adapter_model\.bin\. It has: model\.safe"
    ):
        load(tmp_path)
