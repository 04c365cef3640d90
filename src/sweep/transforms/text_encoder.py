"""Text encoders: models of Transformers whose layers are read for a text."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.errors import ConfigError, TransformError
from sweep.util.digests import FileVersion, file_versions
from sweep.util.install_check import advice

if TYPE_CHECKING:
    from torch import Tensor

FILES = (".json", ".txt", ".model", ".safetensors", ".bin")
UNLIMITED = 512  # tokens reserved for one text if the encoder has no limit
Versions = tuple[tuple[str, FileVersion], ...]


def locate(encoder: str, revision: str | None) -> Path:
    """Return the folder of an encoder, from the hub if it is not a folder.

    Raises:
        ConfigError: there is no such folder, or the download failed.
    """
    folder = Path(encoder).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or encoder.startswith(("/", ".", "~")) or encoder.count("/") > 1:
        raise ConfigError(f"transform.encoder: there is no folder {encoder!r}.")
    return _download(encoder, revision)


@lru_cache(maxsize=8)
def _download(encoder: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        # No *.py: code from the hub is not run. No subfolders: they hold the same weights in other formats.
        patterns = [f"*{suffix}" for suffix in FILES if suffix != ".bin"]
        return Path(snapshot_download(encoder, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]))
    except Exception as error:  # unknown model or revision, gated model, or unreachable hub
        raise ConfigError(
            f"transform.encoder: {encoder!r} is not a folder, and the hub download failed ({type(error).__name__})."
        ) from error


def versions(folder: Path) -> Versions:
    """Return the versions of an encoder's files, which are part of the cache keys below."""
    return tuple(file_versions(folder, [f"*{suffix}" for suffix in FILES]).items())


@lru_cache(maxsize=2)
def _load(folder: Path, found: Versions) -> tuple[Any, Any]:
    """Return the tokenizer, and the model in fp32 on the CPU."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model, loading = AutoModel.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False, weights_only=True, output_loading_info=True
        )
    except Exception as error:  # Transformers raises almost any exception type for a broken folder
        reason = advice(error) or str(error).strip().split("\n")[0][:200]
        raise ConfigError(f"transform.encoder: {str(folder)!r} cannot be loaded: {reason}") from error
    if missing := sorted(name for name in loading["missing_keys"] if not name.startswith("pooler.")):
        raise ConfigError(f"transform.encoder: {str(folder)!r} lacks weights, such as {missing[0]}.")
    return tokenizer, (model.get_encoder() if model.config.is_encoder_decoder else model).eval()


def _limit(folder: Path) -> float:
    tokenizer, model = _load(folder, versions(folder))
    positions = getattr(model.config, "max_position_embeddings", None) or math.inf
    return float(min(tokenizer.model_max_length, positions))


def most_tokens(folder: Path) -> int:
    """Return the number of tokens to reserve for one text."""
    limit = _limit(folder)
    return int(limit) if limit < 1e6 else UNLIMITED


@dataclass(frozen=True, slots=True)
class States:
    """A layer of an encoder for a text.

    Attributes:
        rows: (n, encoder width), float32: one per token of the encoder, its special tokens included.
        is_text: (n,), bool: False for special tokens.
        characters: start and end of each token in the text; None if the tokenizer does not tell.
    """

    rows: Tensor
    is_text: Tensor
    characters: list[tuple[int, int]] | None


def states(folder: Path, text: str, layer: int | None, found: Versions) -> States:
    """Return a layer of an encoder for a text.

    Args:
        folder: the encoder.
        text: the text.
        layer: index into Transformers' `hidden_states`; None for `last_hidden_state`.
        found: the versions of the encoder's files.

    Raises:
        TransformError: the text is too long, or has no tokens that the encoder knows.
        ConfigError: the encoder cannot be loaded, or has no such layer.
    """
    import torch

    tokenizer, model = _load(folder, found)
    fast = tokenizer.is_fast
    tokens = tokenizer(text, return_tensors="pt", return_special_tokens_mask=True, return_offsets_mapping=fast)
    count = tokens["input_ids"].shape[1]
    vocabulary = model.get_input_embeddings().num_embeddings
    if count and (largest := int(tokens["input_ids"].max())) >= vocabulary:
        raise TransformError(
            f"the encoder's tokenizer returns token {largest}, but the encoder has only {vocabulary} rows"
        )
    if count > _limit(folder):
        raise TransformError(f"the text has {count} tokens for the encoder, whose limit is {_limit(folder):g}")
    is_text = tokens["special_tokens_mask"][0] == 0
    if not is_text.any():
        raise TransformError(f"the text {text[:40]!r} has no tokens for the encoder")
    inputs = {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=layer is not None)
    characters = [(int(start), int(end)) for start, end in tokens["offset_mapping"][0]] if fast else None
    if layer is None:
        return States(output.last_hidden_state[0], is_text, characters)
    layers = len(output.hidden_states)
    if not -layers <= layer < layers:
        raise ConfigError(
            f"transform.layer must be between {-layers} and {layers - 1} for {folder.name!r}; got {layer}. "
            "0 is its input embeddings."
        )
    return States(output.hidden_states[layer][0], is_text, characters)


@lru_cache(maxsize=4096)
def encode(folder: Path, text: str, pooling: str, layer: int | None, found: Versions) -> Tensor:
    """Return the pooled rows of `states`: (n, encoder width). Computed once per text, not once per point."""
    found_states = states(folder, text, layer, found)
    rows, is_text = found_states.rows, found_states.is_text
    pooled: dict[str, Callable[[], Tensor]] = {
        "none": lambda: rows[is_text],
        "mean": lambda: rows.mean(0)[None],
        "cls": lambda: rows[:1],
        "last": lambda: rows[is_text][-1:],
    }
    return pooled[pooling]()
