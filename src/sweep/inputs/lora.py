"""LoRA adapters (Hu et al. 2021, arXiv:2106.09685) in PEFT's format: location, checks, and their change of embeddings.

vLLM applies an adapter's change of the embedding table to token ids, but not to prompt embeddings. `EmbeddingChange`
adds it to the rows that are sent. Valid for PEFT 0.21 and vLLM 0.32.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.errors import ConfigError
from sweep.inputs import peft
from sweep.inputs.model_files import AdapterFiles
from sweep.util.digests import FileVersion, file_versions

if TYPE_CHECKING:
    from torch import Tensor

KEY = "model.lora"
PATTERNS = [peft.CONFIG, *peft.ADAPTERS]
EMBEDDING_A, EMBEDDING_B = "lora_embedding_A", "lora_embedding_B"
PREFIX = "base_model.model."

# Options of PEFT's LoRA that change what an adapter computes and that vLLM does not implement, with harmless values.
UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, [], {}),
    "alora_invocation_tokens": (None, []),
    "layer_replication": (None, []),
    "use_bdlora": (None, False, {}),
    "use_qalora": (False, None),
}
_MERGE = "Merge it into the model with PEFT (merge_and_unload, save_pretrained) and set model.id to the result."


@dataclass(frozen=True)
class LoraAdapter:
    """An adapter in a local folder, with its files read on first use.

    Owned by the thread that plans. Copies in pool processes keep the recorded file versions.

    Attributes:
        name: value of `model.lora`.
        file: the file with the adapter's tensors, next to its `adapter_config.json`.
    """

    name: str
    file: Path

    def __reduce__(self) -> tuple[type[LoraAdapter], tuple[Any, ...], dict[str, Any]]:
        """Pickle without tensors, but with the recorded file versions."""
        return LoraAdapter, (self.name, self.file), {k: v for k, v in vars(self).items() if k == "versions"}

    @property
    def folder(self) -> Path:
        """The folder that an engine loads."""
        return self.file.parent

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """Content of `adapter_config.json`."""
        values: dict[str, Any] = json.loads((self.folder / peft.CONFIG).read_text(encoding="utf-8"))
        return values

    @property
    def rank(self) -> int:
        """Largest rank of its matrices."""
        return max(int(self.config["r"]), *map(int, (self.config.get("rank_pattern") or {}).values()), 1)

    @property
    def files(self) -> AdapterFiles:
        """The information about the adapter that an engine needs."""
        return AdapterFiles(self.folder, self.rank)

    @cached_property
    def versions(self) -> Mapping[str, FileVersion]:
        """Versions of the adapter's files, recorded on first access."""
        return file_versions(self.folder, PATTERNS)

    def expect_unchanged(self) -> None:
        """Check that the adapter's files are the same as when `versions` was first accessed.

        Raises:
            ConfigError: a file was changed, added or removed.
        """
        if file_versions(self.folder, PATTERNS) != self.versions:
            raise ConfigError(f"{KEY}: {self.name!r} has changed since this sweep read it. Run the command again.")

    @cached_property
    def embedding(self) -> EmbeddingChange | None:
        """The change of the embedding table; None if the adapter does not change it.

        Raises:
            ConfigError: the tensors cannot be read, or change several embeddings.
        """
        tensors = _read(self.file)
        found = [name for name in tensors if name.removesuffix(".default").endswith(EMBEDDING_A)]
        if not found:
            return None
        if len(found) > 1:
            raise ConfigError(f"{KEY}: {self.name!r} changes several embeddings: {', '.join(sorted(found))}. {_MERGE}")
        module = found[0].partition(f".{EMBEDDING_A}")[0].removeprefix(PREFIX)
        second = tensors[found[0].replace(EMBEDDING_A, EMBEDDING_B)]
        return EmbeddingChange(tensors[found[0]].float(), second.float(), self._scaling(module))

    def base_table(self) -> Tensor | None:
        """Return the copy of the base model's embedding table that PEFT saves with changed ones; None without one."""
        names = ("embed_tokens.base_layer.weight", "wte.base_layer.weight", "embed_tokens.weight", "wte.weight")
        return next((tensor for name, tensor in _read(self.file).items() if name.endswith(names)), None)

    def _scaling(self, module: str) -> float:
        """Return alpha / r of a module, or alpha / √r (rsLoRA, arXiv:2312.03732)."""
        rank = _matching(self.config.get("rank_pattern"), module, self.config["r"])
        alpha = _matching(self.config.get("alpha_pattern"), module, self.config.get("lora_alpha", 8))
        return float(alpha) / (math.sqrt(rank) if self.config.get("use_rslora") else float(rank))


@dataclass(frozen=True)
class EmbeddingChange:
    """Change of an embedding table, scaling × (B A)ᵀ.

    Attributes:
        a: A, (r, tokens), float32.
        b: B, (hidden_size, r), float32.
        scaling: factor.
    """

    a: Tensor
    b: Tensor
    scaling: float

    def rows(self, token_ids: Tensor | slice, dtype: Any) -> Tensor:
        """Return the change of tokens' rows: (tokens, hidden_size), float32, with A and B in the engine's dtype."""
        scaled = (self.b.to(dtype) * self.scaling).to(dtype).float()
        change: Tensor = self.a[:, token_ids].T.to(dtype).float() @ scaled.T
        return change


def find(name: str) -> LoraAdapter:
    """Locate an adapter: a local folder (a checkpoint, or a folder with one), or a download from the hub.

    Args:
        name: value of `model.lora`.

    Raises:
        ConfigError: there is no such adapter, it is not a LoRA, or vLLM does not support one of its options.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if folder.exists() or name.startswith(("/", ".", "~")) or name.count("/") != 1:
            raise ConfigError(f"{KEY}: there is no folder {name!r}.")
        folder = _download(name)
    file = peft.adapter_file(folder.resolve(), KEY)
    described = peft.read_adapter(file, KEY)
    if described is None:
        raise ConfigError(f"{KEY}: {name!r} has no {peft.CONFIG}. Set it to a folder that PEFT has saved.")
    if described.kind != "LORA":
        hint = " Use transform=soft_prompt for it." if described.kind in peft.PROMPTS else f" {_MERGE}"
        raise ConfigError(f"{KEY}: {name!r} is a PEFT adapter of type {described.kind}, not LORA.{hint}")
    adapter = LoraAdapter(name, file)
    for option, harmless in UNSUPPORTED.items():
        value = adapter.config.get(option)
        if value not in harmless:
            raise ConfigError(f"{KEY}: {name!r} has {option}={value}, which vLLM does not support. {_MERGE}")
    rank = adapter.config.get("r")
    if not isinstance(rank, int) or rank < 1:
        raise ConfigError(f"{KEY}: {peft.CONFIG} of {name!r} has r={rank!r}; expected a whole number of at least 1.")
    return adapter


def _download(name: str) -> Path:
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=PATTERNS))
    except HFValidationError as error:
        raise ConfigError(f"{KEY}: {name!r} is neither a folder nor a hub id.") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise ConfigError(
            f"{KEY}: {name!r} is not a local folder, and cannot be downloaded from the hub ({type(error).__name__})."
        ) from error


def _read(file: Path) -> dict[str, Tensor]:
    """Return an adapter's tensors; those of a safetensors file are mapped."""
    import torch
    from safetensors.torch import load_file

    try:
        if file.suffix == ".safetensors":
            return dict(load_file(file))
        return dict(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:  # PyTorch raises many types for a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ConfigError(f"{KEY}: {file} cannot be read: {reason}") from error


def _matching(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """Return the value of the first key that matches the end of a module's name, as PEFT does."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default
