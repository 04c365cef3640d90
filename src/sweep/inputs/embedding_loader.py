"""Loading of a checkpoint's input-embedding table."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from sweep.errors import ConfigError
from sweep.inputs import weights
from sweep.inputs.checkpoint import Checkpoint
from sweep.inputs.embedding_table import EmbeddingTable
from sweep.inputs.lora import LoraAdapter
from sweep.inputs.model_class import auto_class
from sweep.util.install_check import advice

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)

MULTIPLIERS: dict[str, Callable[[Any], float]] = {
    "gemma": lambda config: math.sqrt(config.hidden_size),
    "gemma2": lambda config: math.sqrt(config.hidden_size),
    "gemma3_text": lambda config: math.sqrt(config.hidden_size),
    "vaultgemma": lambda config: math.sqrt(config.hidden_size),
    "minicpm": lambda config: config.scale_emb,
}

# Tensor names of the table in checkpoints, after any prefix.
TABLE_NAMES = (
    "embed_tokens.weight",  # Llama and most others
    "wte.weight",  # GPT-2, GPT-J, Falcon
    "word_embeddings.weight",  # BLOOM, Falcon
    "embed_in.weight",  # GPT-NeoX
    "tok_embeddings.weight",
    "embeddings.weight",  # Mamba
    "embedding.weight",
)


def open_table(checkpoint: Checkpoint, adapter: LoraAdapter | None = None) -> EmbeddingTable:
    """Return a checkpoint's embedding table, read as `model.embedder` says, with the change of an adapter.

    Without safetensors in the folder, the model is loaded with Transformers instead, and a warning is logged.

    Raises:
        ConfigError: no table is found, or its shape does not match the model's configuration, or the adapter does not
            fit it.
    """
    table = _open_table(checkpoint)
    if adapter is None:
        return table
    _require_fit(adapter, table)
    return replace(table, adapter=adapter)


def _require_fit(adapter: LoraAdapter, table: EmbeddingTable) -> None:
    """Refuse an adapter whose change of the table has another shape, or belongs to another table."""
    change = adapter.embedding
    if change is not None and (change.a.shape[1] < table.size or change.b.shape[0] != table.hidden_size):
        shape = [change.a.shape[1], change.b.shape[0]]
        raise ConfigError(
            f"model.lora: {adapter.name!r} changes an embedding table of shape {shape}, but the model's is "
            f"[{table.size}, {table.hidden_size}]. It belongs to another model."
        )
    if (saved := adapter.base_table()) is not None:
        kept = saved[: table.size].to(table.weight.dtype)
        if kept.shape != table.weight[: table.size].shape or not kept.equal(table.weight[: table.size]):
            raise ConfigError(
                f"model.lora: {adapter.name!r} holds another embedding table than the model, such as one with new "
                "tokens, which vLLM does not load. Merge it into the model with PEFT."
            )


def _open_table(checkpoint: Checkpoint) -> EmbeddingTable:
    use_safetensors = checkpoint.model.embedder == "safetensors"
    indexed = (checkpoint.folder / weights.INDEX).is_file()  # then `from_safetensors` reports missing files
    if use_safetensors and not indexed and not any(checkpoint.folder.glob("*.safetensors")):
        log.warning(
            "%s has no safetensors files. The whole model is loaded to read its embeddings.", checkpoint.model.id
        )
        use_safetensors = False
    return from_safetensors(checkpoint) if use_safetensors else from_transformers(checkpoint)


def from_safetensors(checkpoint: Checkpoint) -> EmbeddingTable:
    """Memory-map the table from its safetensors file. The model is not loaded, and unread pages stay on disk.

    Raises:
        ConfigError: no tensor with a known name has the shape of the table.
    """
    size, hidden_size = checkpoint.vocab_size, checkpoint.hidden_size
    shape = f"[{size} or more, {hidden_size}]"
    family = MULTIPLIERS.get(checkpoint.config.model_type)
    multiplier = family(checkpoint.config) if family else None
    with weights.translate_errors(checkpoint.model.id):
        for file, name in _table_candidates(checkpoint):
            with safe_open(file, framework="numpy") as tensors:  # does not import PyTorch
                rows, *width = tensors.get_slice(name).get_shape()
            if rows >= size and width == [hidden_size]:
                mapped = partial(_mapped, checkpoint, file, name)
                return EmbeddingTable(mapped, size, hidden_size, checkpoint.engine_dtype, multiplier)
    raise ConfigError(
        f"model.id: {checkpoint.model.id!r} has no embedding table of shape {shape} under a known name. "
        "Set model.embedder=transformers to load the model and find it."
    )


def from_transformers(checkpoint: Checkpoint) -> EmbeddingTable:
    """Load the model with Transformers and read all rows from its embedding layer."""
    size, hidden_size = checkpoint.vocab_size, checkpoint.hidden_size
    return EmbeddingTable(partial(_loaded, checkpoint), size, hidden_size, checkpoint.engine_dtype)


def _mapped(checkpoint: Checkpoint, file: Path, name: str) -> Tensor:
    with weights.translate_errors(checkpoint.model.id), safe_open(file, framework="pt") as tensors:
        weight: Tensor = tensors.get_tensor(name)
        checkpoint.expect_unchanged()
        return weight


def _loaded(checkpoint: Checkpoint) -> Tensor:
    import torch

    trust = checkpoint.model.trust_remote_code
    try:
        model = auto_class(checkpoint.folder, trust).from_pretrained(
            checkpoint.folder, dtype=checkpoint.dtype, trust_remote_code=trust, weights_only=True
        )
    except Exception as error:  # Transformers raises almost any exception type for a broken folder
        reason = advice(error) or str(error).strip().split("\n")[0][:200]
        raise ConfigError(f"model.id: {checkpoint.model.id!r} cannot be loaded: {reason}") from error
    with torch.inference_mode():
        layer = model.get_input_embeddings()
        rows: Tensor = layer(torch.arange(layer.num_embeddings)).clone()
        checkpoint.expect_unchanged()
        return rows


def _table_candidates(checkpoint: Checkpoint) -> list[tuple[Path, str]]:
    """Return (file, tensor name) of all tensors with a known name of an embedding table."""
    tensors = weights.tensors(checkpoint.folder, checkpoint.model.id)
    named = [(file, name) for file, name in tensors if name.endswith(TABLE_NAMES)]
    return sorted(named, key=lambda pair: len(pair[1]))
