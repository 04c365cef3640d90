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


# Keys of `prompts` that later versions added, with their defaults. See `config.schema.ADDED`.
ADDED: dict[str, Any] = {
    "choices_key": None,
    "format": None,
    "dataset": None,
    "dataset_config": None,
    "split": None,
    "revision": None,
    "map": {},
    "template": None,
    "shots": 0,
    "shots_from": None,
    "shots_seed": 0,
    "chat_template": None,
    "template_kwargs": {},
    "continue_final_message": False,
}


@dataclass(frozen=True, slots=True)
class PromptsConfig(Section):
    """Configuration section `prompts`.

    Attributes:
        items: Prompts listed in the configuration, without path and dataset: texts, or mappings with the keys below.
        path: File of prompts, a pattern such as data/*.parquet for several, or a folder that save_to_disk has written.
        format: Format of the file or its entries, such as csv or alpaca, or both (csv+alpaca); null means guess.
        dataset: Hugging Face data set, as a hub id or a local folder; used in place of path.
        dataset_config: Name of the data set's configuration (subset); null means the only one.
        split: Split of the data set, or sheet of an Excel file; null means the only one.
        revision: Branch, tag or commit of the data set on the hub; null means the default branch.
        chat: Apply the model's chat template.
        system: System message; needs chat=true.
        limit: Use only this many prompts from the beginning; 1 or more.
        id_key: Key or column of a prompt's id.
        prompt_key: Key or column of a prompt's text.
        reference_key: Key or column of a prompt's reference answers.
        choices_key: Key or column of a prompt's choices, whose likelihoods are then scored; null means none are read.
        map: Sources of prompt, reference, id, choices, messages, system, tools and values: keys, paths such as
            doc.question, or Jinja templates over an entry's keys.
        template: Jinja template of the prompt's text over the keys of an entry, such as "Q: {{question}} A:".
        shots: Number of answered examples before each prompt; 0 (none) or more.
        shots_from: Split or file of the examples; null means the other prompts.
        shots_seed: Seed of the choice of examples.
        placeholders: Names whose {name} stays in the text as a unit, for a transform to replace.
        special_tokens: Control tokens in prompt texts, such as <|end|>: warn or allow (send as tokens), escape (send as
            text) or refuse (an error).
        chat_template: File with a chat template to use instead of the model's; null means the model's.
        template_kwargs: Variables of the chat template, such as enable_thinking.
        chat_template_kwargs: The same under vLLM's name.
        continue_final_message: Let the model continue the assistant's message that must end each chat (prefill).
        date: ISO date, or date and time, for chat templates that read the clock; null means the start of the sweep.
    """

    items: list[Any] | None = None
    path: str | None = None
    format: str | None = None
    dataset: str | None = None
    dataset_config: str | None = None
    split: str | None = None
    revision: str | None = None
    chat: bool = True
    system: str | None = None
    limit: int | None = None
    id_key: str = "id"
    prompt_key: str = "prompt"
    reference_key: str = "reference"
    choices_key: str | None = None
    map: dict[str, str] = field(default_factory=dict)
    template: str | None = None
    shots: int = 0
    shots_from: str | None = None
    shots_seed: int = 0
    placeholders: list[str] = field(default_factory=list)
    special_tokens: str = "warn"
    chat_template: str | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    continue_final_message: bool = False
    date: str | None = None

    def __post_init__(self) -> None:
        named = self.path is not None or self.dataset is not None
        require(self.items is not None or named, "prompts", "needs items, a path or a dataset", None)
        one = self.path is None or self.dataset is None
        require(one, "prompts.dataset", "cannot be used with prompts.path: set one of them to null", None)
        for key, value in (("dataset_config", self.dataset_config), ("revision", self.revision)):
            require(value is None or self.dataset is not None, f"prompts.{key}", "needs prompts.dataset", value)
        require(self.split is None or named, "prompts.split", "needs prompts.dataset or prompts.path", self.split)
        require(self.shots >= 0, "prompts.shots", "must be 0 (none) or more", self.shots)
        require(self.limit is None or self.limit >= 1, "prompts.limit", "must be at least 1", self.limit)
        require_choice("prompts.special_tokens", self.special_tokens, SPECIAL_TOKENS)
        require(self.chat or self.system is None, "prompts.system", "needs prompts.chat=true", None)
        require(self.chat or self.chat_template is None, "prompts.chat_template", "needs prompts.chat=true", None)
        if self.continue_final_message:
            require(self.chat, "prompts.continue_final_message", "needs prompts.chat=true", None)
            rule = "cannot be used with prompts.continue_final_message: examples are answered"
            require(self.shots == 0, "prompts.shots", rule, None)
        for name in self.template_kwargs.keys() & self.chat_template_kwargs.keys():
            rule = f"has {name!r}, which prompts.chat_template_kwargs also has: remove one"
            require(False, "prompts.template_kwargs", rule, None)
        if self.date is not None:
            parse_date(self.date)

    @property
    def template_variables(self) -> dict[str, Any]:
        """All variables of the chat template."""
        return self.chat_template_kwargs | self.template_kwargs


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
