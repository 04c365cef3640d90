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
from typing import TYPE_CHECKING, Any, NoReturn

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
DEFAULT_ALPHA = 8  # of PEFT

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
    "arrow_config": (None, {}),
    "kasa_config": (None, {}),
}
# Initializations after which PEFT loads a saved adapter as a plain LoRA. It changes the model's own weights for others:
# PiSSA, OLoRA, CorDA and LoftQ.
PLAIN_INITIALIZATIONS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
_MERGE = "Merge it into the model with PEFT (merge_and_unload, save_pretrained) and set model.id to the result."
_CONVERT = (
    "Save it from PEFT with path_initial_model_for_weight_conversion, or merge it. If model.id already has the changed "
    f"weights, set init_lora_weights to true in {peft.CONFIG}."
)


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
        plain = (name.removesuffix(".default") for name in tensors)
        found = {name.rpartition(".")[0] for name in plain if name.endswith((EMBEDDING_A, EMBEDDING_B))}
        if not found:
            return None
        if len(found) > 1:
            raise ConfigError(f"{KEY}: {self.name!r} changes several embeddings: {', '.join(sorted(found))}. {_MERGE}")
        [module] = found
        a, b = (
            next((tensor for name, tensor in tensors.items() if name.startswith(f"{module}.{matrix}")), None)
            for matrix in (EMBEDDING_A, EMBEDDING_B)
        )
        if a is None or b is None or a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
            shapes = " and ".join("none" if one is None else str(list(one.shape)) for one in (a, b))
            raise ConfigError(
                f"{KEY}: {self.file} must have {EMBEDDING_A} of shape [r, tokens] and {EMBEDDING_B} of shape "
                f"[hidden_size, r]; got {shapes}."
            )
        return EmbeddingChange(a.float(), b.float(), self._scaling(module.removeprefix(PREFIX)))

    def base_table(self) -> Tensor | None:
        """Return the copy of the base model's embedding table that PEFT saves with changed ones; None without one."""
        names = ("embed_tokens.base_layer.weight", "wte.base_layer.weight", "embed_tokens.weight", "wte.weight")
        return next((tensor for name, tensor in _read(self.file).items() if name.endswith(names)), None)

    def _scaling(self, module: str) -> float:
        """Return alpha / r of a module, or alpha / √r (rsLoRA, arXiv:2312.03732)."""
        rank = _matching(self.config.get("rank_pattern"), module, self.config["r"])
        alpha = _matching(self.config.get("alpha_pattern"), module, self.config.get("lora_alpha", DEFAULT_ALPHA))
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
    initialization = adapter.config.get("init_lora_weights")
    if isinstance(initialization, str) and initialization.lower() not in PLAIN_INITIALIZATIONS:
        raise ConfigError(
            f"{KEY}: {name!r} has init_lora_weights={initialization}, for which PEFT changes the model's weights and "
            f"vLLM does not. {_CONVERT}"
        )
    _check_scaling(adapter)
    return adapter


def _check_scaling(adapter: LoraAdapter) -> None:
    """Check the types of ranks and of their scaling factors.

    Raises:
        ConfigError: names the option, its value and what was expected.
    """
    ranks, alphas = (adapter.config.get(key) or {} for key in ("rank_pattern", "alpha_pattern"))
    for key, patterns in (("rank_pattern", ranks), ("alpha_pattern", alphas)):
        if not isinstance(patterns, dict) or not all(map(_is_pattern, patterns)):
            _reject(adapter, key, patterns, "a mapping with regular expressions as keys")
    for key, rank in [("r", adapter.config.get("r")), *(("rank_pattern", rank) for rank in ranks.values())]:
        if type(rank) is not int or rank < 1:
            _reject(adapter, key, rank, "a whole number of at least 1")
    default = adapter.config.get("lora_alpha", DEFAULT_ALPHA)
    for key, alpha in [("lora_alpha", default), *(("alpha_pattern", alpha) for alpha in alphas.values())]:
        if type(alpha) not in (int, float) or not math.isfinite(alpha):
            _reject(adapter, key, alpha, "a finite number")


def _is_pattern(text: str) -> bool:
    try:
        re.compile(rf"(.*\.)?({text})$")
    except re.error:
        return False
    return True


def _reject(adapter: LoraAdapter, key: str, value: Any, expected: str) -> NoReturn:
    raise ConfigError(f"{KEY}: {peft.CONFIG} of {adapter.name!r} has {key}={value!r}; expected {expected}.")


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
