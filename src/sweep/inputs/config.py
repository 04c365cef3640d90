"""Configuration sections `model` and `prompts`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sweep.core.section import Section
from sweep.errors import ConfigError
from sweep.util.validators import require, require_choice


@dataclass(frozen=True, slots=True)
class ModelConfig(Section):
    """Configuration section `model`.

    Attributes:
        id: Hub id, local folder, demo for the embedded model, or smollm2 for SmolLM2 135M from a package index.
        revision: Branch, tag or commit on the hub; null means the default branch.
        dtype: Data type of the weights: auto (the checkpoint's), float32, bfloat16 or float16.
        trust_remote_code: Allow the model's repository to run its own Python code.
        embedder: Source of the embedding rows: safetensors (read from the checkpoint file) or transformers (from the
            loaded model).
        lora: LoRA adapter saved by PEFT: a folder or a hub id; null means none.
    """

    id: str = "demo"
    revision: str | None = None
    dtype: str = "auto"
    trust_remote_code: bool = False
    embedder: str = "safetensors"
    lora: str | None = None

    def __post_init__(self) -> None:
        require(bool(self.id.strip()), "model.id", "must name a hub id or a folder", self.id)
        require_choice("model.dtype", self.dtype, ("auto", "float32", "bfloat16", "float16"))
        require_choice("model.embedder", self.embedder, ("safetensors", "transformers"))
        require(self.lora is None or bool(self.lora.strip()), "model.lora", "must name a folder or a hub id", self.lora)

    @property
    def base(self) -> ModelConfig:
        """The model without the adapter."""
        return self if self.lora is None else replace(self, lora=None)


SPECIAL_TOKENS = ("warn", "refuse", "escape", "allow")


@dataclass(frozen=True, slots=True)
class PromptsConfig(Section):
    """Configuration section `prompts`.

    Attributes:
        items: Prompts listed in the configuration, used without path: texts, or mappings with the three keys below.
        path: File of prompts: .jsonl, .json, .yaml, .yml, .csv, .tsv, .txt or .parquet.
        chat: Apply the model's chat template.
        system: System message; needs chat=true.
        limit: Use only this many prompts from the beginning; 1 or more.
        id_key: Key or column of a prompt's id.
        prompt_key: Key or column of a prompt's text.
        reference_key: Key or column of a prompt's reference answers.
        choices_key: Key or column of a prompt's choices, whose likelihoods are then scored; null means none are read.
        placeholders: Names whose {name} stays in the text as a unit, for a transform to replace.
        special_tokens: Control tokens in prompt texts, such as <|end|>: warn or allow (send as tokens), escape (send as
            text) or refuse (an error).
        chat_template_kwargs: Variables of the chat template, named as in vLLM, such as enable_thinking.
        date: ISO date, or date and time, for chat templates that read the clock; null means the start of the sweep.
    """

    items: list[Any] | None = None
    path: str | None = None
    chat: bool = True
    system: str | None = None
    limit: int | None = None
    id_key: str = "id"
    prompt_key: str = "prompt"
    reference_key: str = "reference"
    choices_key: str | None = None
    placeholders: list[str] = field(default_factory=list)
    special_tokens: str = "warn"
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    date: str | None = None

    def __post_init__(self) -> None:
        require(self.items is not None or self.path is not None, "prompts", "needs items or a path", None)
        require(self.limit is None or self.limit >= 1, "prompts.limit", "must be at least 1", self.limit)
        require_choice("prompts.special_tokens", self.special_tokens, SPECIAL_TOKENS)
        require(self.chat or self.system is None, "prompts.system", "needs prompts.chat=true", None)
        if self.date is not None:
            parse_date(self.date)


def parse_date(text: str) -> datetime:
    """Return the instant of `prompts.date`; a date alone means midnight.

    Raises:
        ConfigError: the text is neither a date nor a date and time.
    """
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        rule = "must be a date or a date and time, such as 2026-11-29 or 2026-11-29T09:30"
        raise ConfigError(f"prompts.date: {rule}; got {text!r}.") from error
