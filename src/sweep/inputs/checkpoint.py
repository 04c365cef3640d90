"""Model checkpoints: location or download of a model's files, and metadata that is read without loading the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.errors import ConfigError
from sweep.inputs import dtype as dtypes
from sweep.inputs import packaged_model, peft
from sweep.inputs.config import ModelConfig
from sweep.inputs.dtype import Dtype
from sweep.inputs.model_files import ModelFiles
from sweep.inputs.packaged_model import Packages
from sweep.util.digests import FileVersion, file_versions
from sweep.util.install_check import advice
from sweep.util.paths import DEMO_MODEL

if TYPE_CHECKING:
    import torch

SMALL_FILES = ["*.json", "*.txt", "*.jinja", "*.model", "*.tiktoken", "*.py"]  # downloaded along with the weights
# Files that Transformers or vLLM read. Users keep others, such as log.txt and results.json, in a model's folder.
READ_FILES = [
    *("config.json", "generation_config.json", "adapter_config.json", "params.json"),
    *("quantize_config.json", "quant_config.json", "hf_quant_config.json"),
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "tekken.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "*.model", "*.tiktoken"),
    *("chat_template*.json", "*.jinja"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
    *("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json"),
]
MAX_SIZE = 2**31  # sizes in a configuration from here on are considered a mistake


@dataclass(frozen=True)
class Checkpoint:
    """A model in a local folder, with its configuration and tokenizer loaded on first use.

    Owned by the thread that plans. Copies in pool processes keep the recorded file versions and load the rest again.

    Attributes:
        model: the `model` section of the configuration.
        folder: contains the model's files.
    """

    model: ModelConfig
    folder: Path

    def __reduce__(self) -> tuple[type[Checkpoint], tuple[Any, ...], dict[str, Any]]:
        """Pickle without loaded objects, but with the recorded file versions and the dtype."""
        kept = {name: value for name, value in vars(self).items() if name in ("versions", "resolved_dtype")}
        return Checkpoint, (self.model, self.folder), kept

    @cached_property
    def config(self) -> Any:
        """The `transformers` configuration of the text model.

        Raises:
            ConfigError: the folder has none, or Transformers does not know the model type.
        """
        return self.outer_config.get_text_config()

    @cached_property
    def outer_config(self) -> Any:
        """The whole `transformers` configuration, which contains the one of the text model.

        Raises:
            ConfigError: see `config`.
        """
        return self._load("AutoConfig")

    @cached_property
    def tokenizer(self) -> Any:
        """The `transformers` tokenizer.

        Raises:
            ConfigError: the folder has no tokenizer that can be loaded.
        """
        return self._load("AutoTokenizer")

    def _load(self, auto_class: str) -> Any:
        import transformers

        try:
            return getattr(transformers, auto_class).from_pretrained(
                self.folder, trust_remote_code=self.model.trust_remote_code
            )
        except Exception as error:  # Transformers raises almost any exception type for a broken folder
            kind = "tokenizer" if auto_class == "AutoTokenizer" else "model"
            reason = advice(error) or str(error).strip().split("\n")[0][:200]
            raise ConfigError(f"model.id: {self.model.id!r} has no {kind} that can be loaded: {reason}") from error

    @property
    def patterns(self) -> list[str]:
        """Glob patterns of the files that a loader reads. Code is included only with `trust_remote_code`."""
        return [*READ_FILES, "*.py"] if self.model.trust_remote_code else READ_FILES

    @cached_property
    def versions(self) -> Mapping[str, FileVersion]:
        """Versions of the model's files, recorded on first access."""
        return file_versions(self.folder, self.patterns)

    def expect_unchanged(self) -> None:
        """Check that the model's files are the same as when `versions` was first accessed.

        Raises:
            ConfigError: names a file that was changed, added or removed.
        """
        before = self.versions
        now = file_versions(self.folder, self.patterns)
        changed = sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name))
        if changed:
            raise ConfigError(
                f"model.id: {changed[0]} of {self.model.id!r} has changed since this sweep read it. "
                "Run the command again once the model's files no longer change."
            )

    @property
    def vocab_size(self) -> int:
        """Number of tokens with an embedding row.

        Raises:
            ConfigError: the configuration has no valid number.
        """
        return self._count("vocab_size")

    @property
    def hidden_size(self) -> int:
        """Width of an embedding row. See `vocab_size` for errors."""
        return self._count("hidden_size")

    def _count(self, name: str) -> int:
        value = getattr(self.config, name, None)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < MAX_SIZE:
            raise ConfigError(
                f"model.id: config.json of {self.model.id!r} has {name} = {str(value)[:40]}; "
                f"expected a whole number from 1 to {MAX_SIZE - 1}."
            )
        return value

    @property
    def context(self) -> int:
        """Maximum number of tokens, prompt and answer together, that the model was trained for.

        Raises:
            ConfigError: the configuration has no valid number.
        """
        for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
            if getattr(self.config, name, None):
                return self._count(name)
        raise ConfigError(
            f"engine.max_model_len: config.json of {self.model.id!r} has no context length. Set engine.max_model_len."
        )

    @cached_property
    def resolved_dtype(self) -> Dtype:
        """The dtype in which the engine runs the model: `model.dtype` if set, else the checkpoint's.

        Raises:
            ConfigError: models cannot be run in this dtype, or the weights cannot be read.
        """
        if self.model.dtype != "auto":
            return Dtype(self.model.dtype, "model.dtype")
        return dtypes.find(self.outer_config, self.folder, self.model.id)

    @property
    def engine_dtype(self) -> str:
        """Name of the engine's dtype, such as `bfloat16`."""
        return self.resolved_dtype.name

    @property
    def dtype(self) -> torch.dtype:
        """The engine's dtype as a `torch.dtype`."""
        import torch

        dtype: torch.dtype = getattr(torch, self.engine_dtype)
        return dtype

    @property
    def files(self) -> ModelFiles:
        """The information about the model that an engine needs."""
        return ModelFiles(self.folder, self.engine_dtype, self.model.trust_remote_code)

    def check_supported(self) -> None:
        """Reject architectures for which vLLM does not accept prompt embeddings.

        Raises:
            ConfigError: the model adds per-layer embeddings by token id (Gemma 3n and 4), has an encoder and a decoder
                (T5), or projects its embeddings to another width (OPT-350m).
        """
        if getattr(self.config, "hidden_size_per_layer_input", 0):
            raise ConfigError(
                f"model.id: {self.model.id!r} has per-layer embeddings, which are looked up by token id. "
                "Prompt embeddings alone do not determine its input. Choose another model."
            )
        if getattr(self.config, "is_encoder_decoder", False):
            raise ConfigError(
                f"model.id: {self.model.id!r} has an encoder and a decoder. "
                "vLLM accepts prompt embeddings for decoder-only models only. Choose one of those."
            )
        if getattr(self.config, "word_embed_proj_dim", self.hidden_size) != self.hidden_size:
            raise ConfigError(
                f"model.id: {self.model.id!r} projects its embeddings to another width, "
                "which vLLM does not support for prompt embeddings. Choose another model."
            )


def find(model: ModelConfig, packages: Packages | None = None) -> Checkpoint:
    """Locate a checkpoint: demo model, model from a package index, local folder, or download in the Hugging Face cache.

    Args:
        model: the `model` section.
        packages: see `packaged_model.Packages`; None: one in the working folder's default `sweep.dir`.

    Raises:
        ConfigError: the model or revision does not exist, the folder is not a model, the repository is gated, or the
            hub or the package index cannot be reached.
    """
    if model.id == "demo":
        return Checkpoint(model, DEMO_MODEL)
    if model.id == packaged_model.NAME:
        return Checkpoint(model, (packages or Packages(Path("outputs"))).find())
    folder = Path(model.id).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            _refuse_adapter(model, folder)
            raise ConfigError(f"model.id: the folder {model.id!r} is not a model: it has no config.json.")
        return Checkpoint(model, folder.resolve())
    if folder.exists() or model.id.startswith(("/", ".", "~")) or model.id.count("/") > 1:
        raise ConfigError(f"model.id: there is no folder {model.id!r}.")
    return Checkpoint(model, _download(model))


def _refuse_adapter(model: ModelConfig, folder: Path) -> None:
    """Refuse a folder that holds an adapter of PEFT instead of a model.

    Raises:
        ConfigError: names the adapter's type, its model and `model.lora`.
    """
    path = folder / peft.CONFIG
    if not path.is_file():
        inside = sorted(folder.glob(f"checkpoint-*/{peft.CONFIG}"))
        if not inside:
            return
        path = inside[-1]
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        kind, base = values.get("peft_type", "unknown"), values.get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        kind, base = "unknown", None
    advice = f"Set model.id={base or 'ITS_MODEL'} model.lora={model.id}"
    if kind in peft.PROMPTS:
        advice = f"Set model.id={base or 'ITS_MODEL'} transform=soft_prompt transform.path={model.id}"
    raise ConfigError(f"model.id: {model.id!r} is not a model, but a PEFT adapter of type {kind}. {advice}.")


def _download(model: ModelConfig) -> Path:
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    def get(weights_pattern: str) -> Path:
        patterns = [*SMALL_FILES, weights_pattern]
        # vLLM would load a second copy of the weights in Mistral's own format instead.
        ignored = ["*/*", "consolidated*", "params.json"]
        return Path(
            snapshot_download(model.id, revision=model.revision, allow_patterns=patterns, ignore_patterns=ignored)
        )

    try:
        folder = get("*.safetensors")
        if not any(folder.glob("*.safetensors")):
            folder = get("*.bin")
    except GatedRepoError as error:
        raise ConfigError(
            f"model.id: {model.id!r} is gated: accept its licence on the hub, "
            "then log in with `hf auth login` or $HF_TOKEN."
        ) from error
    except RevisionNotFoundError as error:
        raise ConfigError(f"model.revision: {model.id!r} has no revision {model.revision!r}.") from error
    except RepositoryNotFoundError as error:
        raise ConfigError(
            f"model.id: the hub has no model {model.id!r} (or it is private, and you are not logged in), "
            "and there is no such folder."
        ) from error
    except HFValidationError as error:
        raise ConfigError(f"model.id: {model.id!r} is neither a folder nor a hub id.") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, httpx.HTTPError, OSError) as error:
        raise ConfigError(
            f"model.id: {model.id!r} is not a local folder, and the hub cannot be reached to download it "
            f"({type(error).__name__}). `model=demo` works offline; `model=smollm2` needs a package index only."
        ) from error
    if not (folder / "config.json").is_file():
        _refuse_adapter(model, folder)
        raise ConfigError(f"model.id: {model.id!r} on the hub is not a Transformers model: it has no config.json.")
    return folder
