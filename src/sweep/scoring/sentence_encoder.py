"""Sentence encoder: unit vectors of texts, by the mean of a Transformers model's last hidden states.

The same as sentence-transformers computes for a model with mean pooling (Reimers & Gurevych 2019, arXiv:1908.10084).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

KEY = "scoring.similarity_model"
BATCH = 32  # texts that are encoded at once
FILES = ["*.json", "*.txt", "*.model", "*.safetensors", "1_Pooling/config.json"]
MEAN = {"pooling_mode_mean_tokens", "mean"}
MODULES = ("Transformer", "Pooling", "Normalize")
CODE_FOLDERS = ["onnx/*", "openvino/*"]


@dataclass(frozen=True)
class SentenceEncoder:
    """A loaded encoder. Owned by one thread.

    Attributes:
        tokenizer: the `transformers` tokenizer.
        model: the `transformers` model, in float32 on the CPU.
        max_tokens: longer texts are cut to this many tokens.
    """

    tokenizer: Any
    model: Any
    max_tokens: int

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return one vector of length 1 per text: (len(texts), width), float32."""
        import torch

        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))  # little padding
        vectors: list[Tensor] = [torch.empty(0)] * len(texts)
        for start in range(0, len(order), BATCH):
            numbers = order[start : start + BATCH]
            chosen = [texts[number] for number in numbers]
            inputs = self.tokenizer(
                chosen, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
            )
            with torch.inference_mode():
                hidden = self.model(**inputs).last_hidden_state
            mask = inputs["attention_mask"][..., None].to(hidden.dtype)
            means = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
            for number, vector in zip(numbers, torch.nn.functional.normalize(means), strict=True):
                vectors[number] = vector.clone()
        return torch.stack(vectors)


def check_encoder(name: str, *, download: bool = True) -> None:
    """Find an encoder and check that it can be loaded and pools by the mean.

    Args:
        name: folder or hub id.
        download: whether to download a hub id, which is not checked otherwise.

    Raises:
        ConfigError: there is no such folder or hub model, it is not an encoder, it pools in another way, or it changes
            the mean by further layers.
    """
    if not download and not Path(name).expanduser().is_dir() and _is_hub_id(name):
        return
    folder = _find(name)
    _load(name, "AutoConfig", folder)
    _load(name, "AutoTokenizer", folder)
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(f"{KEY}: {name!r} has no weights in the safetensors format. Choose another model.")
    pooling = _read(folder / "1_Pooling" / "config.json")
    modes = [key for key, value in pooling.items() if key.startswith("pooling_mode_") and value is True]
    modes += [value for key, value in pooling.items() if key == "pooling_mode" and isinstance(value, str)]
    further = [module for module in _modules(folder) if module not in MODULES]
    difference = f"pools by {', '.join(modes)}" if modes and not MEAN.issuperset(modes) else ""
    if not difference and further:
        difference = f"has the module {further[0]}"
    if difference:
        raise ConfigError(
            f"{KEY}: {name!r} {difference}, but only the mean of tokens is supported. "
            "Choose another model, such as sentence-transformers/all-MiniLM-L6-v2."
        )


@lru_cache(maxsize=1)
def load_encoder(name: str) -> SentenceEncoder:
    """Return the encoder of a folder or hub id, loaded once for each process.

    Raises:
        ConfigError: see `check_encoder`.
    """
    import torch

    folder = _find(name)
    tokenizer = _load(name, "AutoTokenizer", folder)
    model = _load(name, "AutoModel", folder, dtype=torch.float32).eval()
    limits = [_read(folder / "sentence_bert_config.json").get("max_seq_length"), tokenizer.model_max_length]
    limits.append(getattr(model.config, "max_position_embeddings", None))
    return SentenceEncoder(tokenizer, model, min(int(limit) for limit in limits if limit))


def _find(name: str) -> Path:
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if not _is_hub_id(name):
        raise ConfigError(f"{KEY}: there is no folder {name!r}.")
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=FILES, ignore_patterns=CODE_FOLDERS))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError) as error:
        raise ConfigError(
            f"{KEY}: {name!r} is not a folder, and cannot be downloaded from the hub ({type(error).__name__}). "
            "Set a folder with the model."
        ) from error


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is not None and not Path(name).exists()


def _load(name: str, auto_class: str, folder: Path, **options: Any) -> Any:
    import transformers

    try:
        return getattr(transformers, auto_class).from_pretrained(folder, **options)
    except Exception as error:  # Transformers raises almost any exception type for a broken folder
        reason = str(error).strip().split("\n")[0][:200]
        raise ConfigError(f"{KEY}: {name!r} cannot be loaded ({auto_class}): {reason}") from error


def _modules(folder: Path) -> list[str]:
    """Return the class names of a sentence-transformers model's modules, in order; none for other models."""
    listed = _load_json(folder / "modules.json")
    modules = listed if isinstance(listed, list) else []
    return [
        str(module["type"]).rpartition(".")[2] for module in modules if isinstance(module, dict) and "type" in module
    ]


def _read(file: Path) -> dict[str, Any]:
    content = _load_json(file)
    return content if isinstance(content, dict) else {}


def _load_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return None
