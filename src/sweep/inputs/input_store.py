"""Store of a sweep's inputs, each read once: model files, prompts, and prompts encoded for each model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from sweep.errors import ConfigError
from sweep.inputs import checkpoint as checkpoints
from sweep.inputs import lora, prompts
from sweep.inputs.chat_template import KWARGS
from sweep.inputs.checkpoint import Checkpoint
from sweep.inputs.clock import SweepClock
from sweep.inputs.config import ModelConfig, PromptsConfig
from sweep.inputs.embedding_loader import open_table
from sweep.inputs.embedding_table import EmbeddingTable
from sweep.inputs.lora import LoraAdapter
from sweep.inputs.packaged_model import Packages
from sweep.inputs.prompt_set import PromptSet
from sweep.inputs.prompts import Prompt
from sweep.inputs.tokenization import EncodedPrompt, encode
from sweep.util.digests import file_digest


class InputStore:
    """All inputs of a sweep, each read once, so that fingerprints describe exactly what is sent.

    Owned by the thread that plans; lives as long as the sweep's process. Prompts keep the contents of the first read
    for all batches. Changes of other files are errors.

    Attributes:
        clock: the clock of chat templates.
    """

    def __init__(self, clock: SweepClock | None = None, packages: Packages | None = None) -> None:
        self.clock = clock or SweepClock()
        self._packages = packages
        # By `content_digest` of the sections, except for `_digests`.
        self._prompts: dict[str, list[Prompt]] = {}
        self._checkpoints: dict[str, Checkpoint] = {}
        self._encoded: dict[tuple[Path, bool, str], list[EncodedPrompt]] = {}
        self._adapters: dict[str, LoraAdapter] = {}
        self._tables: dict[str, EmbeddingTable] = {}
        self._corpora: dict[tuple[str, str], PromptSet] = {}
        self._digests: dict[Path, str] = {}

    def prompts(self, config: PromptsConfig) -> list[Prompt]:
        """Return the prompts of a configuration. See `prompts.load` for errors."""
        key = config.content_digest
        if key not in self._prompts:
            self._prompts[key] = prompts.load(config)
        return self._prompts[key]

    def checkpoint(self, model: ModelConfig) -> Checkpoint:
        """Return a model's checkpoint and record its file versions. See `checkpoint.find` for errors."""
        model = model.base
        key = model.content_digest
        if key not in self._checkpoints:
            self._checkpoints[key] = checkpoints.find(model, self._packages)
            _ = self._checkpoints[key].versions
        return self._checkpoints[key]

    def adapter(self, model: ModelConfig) -> LoraAdapter | None:
        """Return a model's LoRA adapter and record its file versions; None without one. See `lora.find` for errors."""
        if model.lora is None:
            return None
        if model.lora not in self._adapters:
            self._adapters[model.lora] = lora.find(model.lora)
            _ = self._adapters[model.lora].versions
        return self._adapters[model.lora]

    def encoded(self, model: ModelConfig, config: PromptsConfig) -> list[EncodedPrompt]:
        """Return prompts encoded for a model. See `encode` for errors.

        Models with the same tokenizer files share the result.
        """
        checkpoint = self.checkpoint(model)
        key = checkpoint.folder, model.trust_remote_code, config.content_digest
        if key not in self._encoded:
            checkpoint.check_supported()  # an unsupported model is reported as such before its tokenizer is loaded
            self._encoded[key] = encode(
                self.prompts(config),
                checkpoint,
                variables=config.template_variables,
                variables_key="prompts.template_kwargs" if config.template_kwargs else KWARGS,
                template=config.chat_template,
                prefill=config.continue_final_message,
                now=partial(self.clock.read, config),
                dated=config.date is not None,
                special_tokens=config.special_tokens,
            )
        return self._encoded[key]

    def corpus(self, model: ModelConfig, config: PromptsConfig) -> PromptSet:
        """Return prompts with a model's embedding table; the same object for equal arguments.

        Raises:
            ConfigError: see `encoded` and `open_table`; or the table has no row for a token of a prompt.
        """
        key = model.content_digest, config.content_digest
        if key not in self._corpora:
            checkpoint, encoded = self.checkpoint(model), self.encoded(model, config)
            if model.content_digest not in self._tables:
                self._tables[model.content_digest] = open_table(checkpoint, self.adapter(model))
            table = self._tables[model.content_digest]
            check_tokens(encoded, table.size, checkpoint)
            self._corpora[key] = PromptSet(encoded, table, checkpoint)
        return self._corpora[key]

    def digest(self, path: Path) -> str:
        """Return the digest of a file that a transform reads.

        Raises:
            ConfigError: the file has changed since the first call.
        """
        digest = file_digest(path)
        if self._digests.setdefault(path, digest) != digest:
            raise ConfigError(f"{path} has changed since this sweep read it. Run the command again.")
        return digest


def check_tokens(encoded: Sequence[EncodedPrompt], size: int, checkpoint: Checkpoint) -> None:
    """Check that the embedding table has a row for every token of the prompts.

    Raises:
        ConfigError: names the prompt, the token and the number of rows.
    """
    for prompt in encoded:
        outside = next((token for token in prompt.token_ids if not 0 <= token < size), None)
        if outside is not None:
            text = checkpoint.tokenizer.convert_ids_to_tokens(outside)
            raise ConfigError(
                f"The prompt {prompt.prompt.id!r} has the token {outside} ({text!r}), but the embedding table of "
                f"{checkpoint.model.id!r} has {size} rows. The model was not resized for its tokenizer."
            )
