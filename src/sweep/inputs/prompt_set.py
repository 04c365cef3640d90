"""The prompts of a sweep with the model's table and tokenizer: what transforms may ask beyond their rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sweep.checks import did_you_mean
from sweep.errors import TransformError
from sweep.inputs.checkpoint import Checkpoint
from sweep.inputs.embedding import EmbeddingTable
from sweep.inputs.encoding import EncodedPrompt
from sweep.inputs.layout import Layout
from sweep.transforms._math import principal_components
from sweep.transforms.span import Span

if TYPE_CHECKING:
    from torch import Tensor


class Corpus:
    """Encoded prompts and their embedding rows, with what is computed of them kept.

    Attributes:
        table: the model's embedding table.
        prompts: the prompts, in order.
        checkpoint: the model's.
    """

    def __init__(self, prompts: Sequence[EncodedPrompt], table: EmbeddingTable, checkpoint: Checkpoint) -> None:
        self.table, self.prompts = table, list(prompts)
        self.checkpoint = checkpoint
        self._numbers: dict[tuple[Span, str], list[int]] = {}
        self._means: dict[Span, Tensor] = {}
        self._components: dict[Span, Tensor] = {}

    def __reduce__(self) -> tuple[type[Corpus], tuple[Any, ...]]:
        """Go to another process without what was computed."""
        return Corpus, (self.prompts, self.table, self.checkpoint)

    def layout(self, prompt_id: str) -> Layout:
        """Return a prompt's tokens and text."""
        return self._prompt(prompt_id).layout

    def values(self, prompt_id: str) -> Mapping[str, str]:
        """Return a prompt's own values."""
        return dict(self._prompt(prompt_id).prompt.values)

    def next_id(self, prompt_id: str) -> str:
        """Return the id of the prompt after this one; of the first after the last."""
        place = self._places[prompt_id]
        return self.prompts[(place + 1) % len(self.prompts)].prompt.id

    def numbers(self, span: Span, prompt_id: str) -> list[int]:
        """Return the numbers of a prompt's rows in a span, ascending."""
        key = (span, prompt_id)
        if key not in self._numbers:
            layout = self.layout(prompt_id)
            self._numbers[key] = span.rows(layout, None, len(layout.token_ids))
        return self._numbers[key]

    def mean(self, span: Span) -> Tensor:
        """Return the mean of all prompts' rows in a span, [hidden_size]; prompts that have none are left out."""
        if span not in self._means:
            self._means[span] = self._rows(span).mean(0)
        return self._means[span]

    def components(self, span: Span) -> Tensor:
        """Return the principal components of those rows around their mean, [hidden_size, r]: columns, largest first."""
        if span not in self._components:
            self._components[span] = principal_components(self._rows(span))
        return self._components[span]

    def tokenize(self, text: str) -> list[int]:
        """Return a text's tokens, without template and special tokens."""
        return list(self.checkpoint.tokenizer(text, add_special_tokens=False)["input_ids"])

    def tokenize_prompt(self, prompt_id: str, text: str) -> list[int]:
        """Return the tokens of a prompt whose rendered text has become `text`."""
        chat = self._prompt(prompt_id).prompt.messages is not None
        return list(self.checkpoint.tokenizer(text, add_special_tokens=not chat)["input_ids"])

    def special(self, name: str) -> int:
        """Return the id of the `pad`, `mask`, `unk`, `bos` or `eos` token."""
        number = getattr(self.checkpoint.tokenizer, f"{name}_token_id", None)
        if number is None or not 0 <= number < self.table.size:
            raise TransformError(f"the model's tokenizer has no {name} token")
        return int(number)

    @cached_property
    def prompt_tokens(self) -> int:
        """The number of tokens of all prompts."""
        return sum(len(encoded.token_ids) for encoded in self.prompts)

    @cached_property
    def longest(self) -> int:
        """The number of tokens of the longest prompt."""
        return max(len(encoded.token_ids) for encoded in self.prompts)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {encoded.prompt.id: i for i, encoded in enumerate(self.prompts)}

    def _rows(self, span: Span) -> Tensor:
        ids: list[int] = []
        for encoded in self.prompts:
            try:
                ids += [encoded.token_ids[i] for i in self.numbers(span, encoded.prompt.id)]
            except TransformError:
                continue
        if not ids:
            raise TransformError(f"the span {span} is empty in all prompts")
        return self.table.rows(ids)

    def _prompt(self, prompt_id: str) -> EncodedPrompt:
        if prompt_id not in self._places:
            raise TransformError(f"there is no prompt {prompt_id!r}. {did_you_mean(prompt_id, list(self._places))}")
        return self.prompts[self._places[prompt_id]]
