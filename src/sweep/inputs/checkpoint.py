"""A model's files: found or downloaded, and what can be read of them without loading the model."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.config import ModelConfig
from sweep.engines.base import ModelFiles
from sweep.errors import ConfigError
from sweep.paths import DEMO_MODEL

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

SMALL_FILES = ["*.json", "*.txt", "*.jinja", "*.model", "*.tiktoken", "*.py"]
PATTERNS = [*SMALL_FILES, "*.safetensors", "*.bin"]  # of all that a model consists of


@dataclass(frozen=True)
class Checkpoint:
    """A model in a local folder.

    Attributes:
        model: what the configuration says of it.
        folder: where its files are.
    """

    model: ModelConfig
    folder: Path

    def __reduce__(self) -> tuple[type[Checkpoint], tuple[Any, ...]]:
        """Go to another process without what was loaded."""
        return Checkpoint, (self.model, self.folder)

    @cached_property
    def config(self) -> Any:
        """The text model's `transformers` configuration.

        Raises:
            ConfigError: there is none, or Transformers does not know this kind of model.
        """
        return self._load("AutoConfig").get_text_config()

    @cached_property
    def tokenizer(self) -> Any:
        """The `transformers` tokenizer.

        Raises:
            ConfigError: the folder has none that can be loaded.
        """
        return self._load("AutoTokenizer")

    def _load(self, auto_class: str) -> Any:
        import transformers

        try:
            return getattr(transformers, auto_class).from_pretrained(
                self.folder, trust_remote_code=self.model.trust_remote_code
            )
        except Exception as error:  # Transformers raises nearly every type there is for a broken folder
            kind = "tokenizer" if auto_class == "AutoTokenizer" else "model"
            reason = str(error).strip().split("\n")[0][:200]
            raise ConfigError(f"model.id: {self.model.id!r} has no {kind} that can be loaded: {reason}") from error

    @property
    def hidden_size(self) -> int:
        """The width of an embedding row."""
        return int(self.config.hidden_size)

    @property
    def context(self) -> int:
        """The most tokens, of prompt and answer together, that the model was made for."""
        for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
            if own := getattr(self.config, name, None):
                return int(own)
        raise ConfigError(f"engine.max_model_len: {self.model.id!r} does not say how long its context is; set it here.")

    @property
    def engine_dtype(self) -> str:
        """The name of the dtype in which the engine runs the model: the one asked for, else the checkpoint's."""
        if self.model.dtype != "auto":
            return self.model.dtype
        return str(getattr(self.config, "dtype", None) or "float32").removeprefix("torch.")

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of that name."""
        import torch

        dtype: torch.dtype = getattr(torch, self.engine_dtype)
        return dtype

    @property
    def files(self) -> ModelFiles:
        """What an engine needs to know of the model."""
        return ModelFiles(self.folder, self.engine_dtype, self.model.trust_remote_code)

    def check_supported(self) -> None:
        """Refuse the architectures that vLLM cannot be given embeddings for.

        Raises:
            ConfigError: the model adds embeddings of each layer by token id (Gemma 3n and 4), has an encoder beside
                the decoder (T5), or projects its embeddings to another width (OPT-350m).
        """
        if getattr(self.config, "hidden_size_per_layer_input", 0):
            raise ConfigError(
                f"model.id: {self.model.id!r} has per-layer embeddings, which are looked up by token id: "
                "embeddings alone do not say what its prompt is."
            )
        if getattr(self.config, "is_encoder_decoder", False):
            raise ConfigError(
                f"model.id: {self.model.id!r} has an encoder and a decoder, "
                "for which vLLM takes no prompt embeddings; a model of a decoder alone is needed."
            )
        if getattr(self.config, "word_embed_proj_dim", self.hidden_size) != self.hidden_size:
            raise ConfigError(
                f"model.id: {self.model.id!r} projects its embeddings to another width, "
                "which vLLM cannot do for prompt embeddings."
            )


def find(model: ModelConfig) -> Checkpoint:
    """Return the model's checkpoint: embedded, in a local folder, or downloaded from the hub into its usual cache.

    Raises:
        ConfigError: no such model or revision; a folder that is none; a gated repository; a hub out of reach.
    """
    if model.id == "demo":
        return Checkpoint(model, DEMO_MODEL)
    folder = Path(model.id).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(f"model.id: the folder {model.id!r} is no model: it has no config.json.")
        return Checkpoint(model, folder.resolve())
    if folder.exists() or model.id.startswith(("/", ".", "~")) or model.id.count("/") > 1:
        raise ConfigError(f"model.id: there is no folder {model.id!r}.")
    return Checkpoint(model, _download(model))


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

    def get(weights: str) -> Path:
        patterns = [*SMALL_FILES, weights]
        # A second copy of the weights in Mistral's own format would be taken for the model by vLLM.
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
            f"model.id: {model.id!r} is no folder, and the hub cannot be reached to download it "
            f"({type(error).__name__}). `model=demo` needs no hub."
        ) from error
    if not (folder / "config.json").is_file():
        raise ConfigError(f"model.id: the hub's {model.id!r} is no Transformers model: it has no config.json.")
    return folder
