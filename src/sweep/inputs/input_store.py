"""Store of a sweep's inputs, each read once: model files, prompts, and prompts encoded for each model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from sweep.errors import ConfigError
from sweep.inputs import checkpoint as checkpoints
from sweep.inputs import prompts
from sweep.inputs.checkpoint import Checkpoint
from sweep.inputs.clock import SweepClock
from sweep.inputs.config import ModelConfig, PromptsConfig
from sweep.inputs.embedding_loader import open_table
from sweep.inputs.prompt_set import PromptSet
from sweep.inputs.prompts import Prompt
from sweep.inputs.tokenization import EncodedPrompt, encode
from sweep.util.digests import file_digest

K = TypeVar("K")
V = TypeVar("V")


class InputStore:
    """All inputs of a sweep, each read once, so that fingerprints describe exactly what is sent.

    Owned by the thread that plans; lives as long as the sweep's process. Prompts keep the contents of the first read
    for all batches. Changes of other files are errors.

    Attributes:
        clock: the clock of chat templates.
    """

    def __init__(self, clock: SweepClock | None = None) -> None:
        self.clock = clock or SweepClock()
        self._prompts = ValueCache[PromptsConfig, list[Prompt]]()
        self._checkpoints = ValueCache[ModelConfig, Checkpoint]()
        self._encoded = ValueCache[tuple[Any, ...], list[EncodedPrompt]]()
        self._corpora = ValueCache[tuple[ModelConfig, PromptsConfig], PromptSet]()
        self._digests: dict[Path, str] = {}

    def prompts(self, config: PromptsConfig) -> list[Prompt]:
        """Return the prompts of a configuration. See `prompts.load` for errors."""
        cached = self._prompts.get(config)
        return cached if cached is not None else self._prompts.add(config, prompts.load(config))

    def checkpoint(self, model: ModelConfig) -> Checkpoint:
        """Return a model's checkpoint and record its file versions. See `checkpoint.find` for errors."""
        cached = self._checkpoints.get(model)
        if cached is None:
            cached = self._checkpoints.add(model, checkpoints.find(model))
            _ = cached.versions
        return cached

    def encoded(self, model: ModelConfig, config: PromptsConfig) -> list[EncodedPrompt]:
        """Return prompts encoded for a model. See `encode` for errors.

        Models with the same tokenizer files share the result.
        """
        checkpoint = self.checkpoint(model)
        key = (checkpoint.folder, model.trust_remote_code, config)
        cached = self._encoded.get(key)
        if cached is None:
            checkpoint.check_supported()  # an unsupported model is reported as such before its tokenizer is loaded
            encoded = encode(
                self.prompts(config),
                checkpoint,
                variables=config.chat_template_kwargs,
                now=partial(self.clock.read, config),
                dated=config.date is not None,
                special_tokens=config.special_tokens,
            )
            cached = self._encoded.add(key, encoded)
        return cached

    def corpus(self, model: ModelConfig, config: PromptsConfig) -> PromptSet:
        """Return prompts with a model's embedding table; the same object for equal arguments.

        Raises:
            ConfigError: see `encoded` and `open_table`; or the table has no row for a token of a prompt.
        """
        key = (model, config)
        cached = self._corpora.get(key)
        if cached is None:
            checkpoint, encoded = self.checkpoint(model), self.encoded(model, config)
            table = next((c.table for (other, _), c in self._corpora if other == model), None) or open_table(checkpoint)
            check_tokens(encoded, table.size, checkpoint)
            cached = self._corpora.add(key, PromptSet(encoded, table, checkpoint))
        return cached

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


class ValueCache(Generic[K, V]):
    """Cache for keys that need not be hashable. Keys that are the same objects as before are found directly."""

    def __init__(self) -> None:
        self._entries: list[tuple[K, V]] = []
        self._same: dict[Any, tuple[K, V]] = {}  # keeps the keys alive, so that their ids are not reused

    def get(self, key: K) -> V | None:
        """Return the value of an equal key; None if there is none."""
        if (same := self._same.get(_ids(key))) is not None:
            return same[1]
        for other, value in self._entries:
            if other == key:
                self._same[_ids(key)] = key, value
                return value
        return None

    def add(self, key: K, value: V) -> V:
        """Add a value and return it."""
        self._entries.append((key, value))
        self._same[_ids(key)] = key, value
        return value

    def __iter__(self) -> Any:
        return iter(self._entries)


def _ids(key: Any) -> Any:
    return tuple(map(id, key)) if isinstance(key, tuple) else id(key)
