"""Encoded prompts of a sweep with the model's table and tokenizer; the corpus that transforms can query."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import TYPE_CHECKING, Any

from sweep.errors import TransformError
from sweep.inputs.checkpoint import Checkpoint
from sweep.inputs.embedding_table import EmbeddingTable
from sweep.inputs.layout import Characters, Layout
from sweep.inputs.prompt_digest import prompt_digest
from sweep.inputs.span import Span
from sweep.inputs.tokenization import EncodedPrompt, Tokenize
from sweep.util.linear_algebra import principal_components
from sweep.util.validators import did_you_mean

if TYPE_CHECKING:
    from torch import Tensor


class PromptSet:
    """Encoded prompts and their embedding rows, with cached statistics. Implements `transforms.context.Corpus`.

    Owned by one thread of each process. A pickled copy computes its statistics again.

    Attributes:
        table: the model's embedding table.
        prompts: the encoded prompts, in order.
        checkpoint: the model.
    """

    def __init__(self, prompts: Sequence[EncodedPrompt], table: EmbeddingTable, checkpoint: Checkpoint) -> None:
        self.table, self.prompts = table, list(prompts)
        self.checkpoint = checkpoint
        self._numbers: dict[tuple[Span, str], list[int]] = {}
        self._covered: dict[tuple[tuple[Span, ...], int], str] = {}
        self._means: dict[Span, Tensor] = {}
        self._components: dict[Span, Tensor] = {}

    def __reduce__(self) -> tuple[type[PromptSet], tuple[Any, ...]]:
        """Pickle without cached statistics."""
        return PromptSet, (self.prompts, self.table, self.checkpoint)

    def layout(self, prompt_id: str) -> Layout:
        """Return a prompt's tokens and text.

        Raises:
            TransformError: there is no such prompt.
        """
        return self._prompt(prompt_id).layout

    def values(self, prompt_id: str) -> Mapping[str, str]:
        """Return a prompt's own values."""
        return dict(self._prompt(prompt_id).prompt.values)

    def next_id(self, prompt_id: str) -> str:
        """Return the id of the next prompt; the first one follows the last."""
        place = self._places[prompt_id]
        return self.prompts[(place + 1) % len(self.prompts)].prompt.id

    def numbers(self, span: Span, prompt_id: str) -> list[int]:
        """Return the indices of a prompt's rows in a span, ascending.

        Raises:
            TransformError: the span is empty in this prompt.
        """
        key = (span, prompt_id)
        if key not in self._numbers:
            layout = self.layout(prompt_id)
            self._numbers[key] = span.rows(layout, None, len(layout.token_ids))
        return self._numbers[key]

    def covered(self, spans: Sequence[Span], number: int) -> str:
        """Return the characters [start, stop) of a rendered prompt that spans cover together, ascending, as JSON.

        Spans that are empty in this prompt, or need inserted rows, are left out.

        Args:
            spans: spans of transforms.
            number: index of the prompt.
        """
        key = (tuple(spans), number)
        if key not in self._covered:
            encoded, rows = self.prompts[number], set[int]()
            for span in spans:
                with suppress(TransformError):
                    rows |= {*self.numbers(span, encoded.prompt.id)}
            merged: list[Characters] = []
            for start, stop in sorted(encoded.layout.offsets[row] for row in rows):
                if merged and start <= merged[-1][1]:
                    start, stop = merged[-1][0], max(stop, merged.pop()[1])
                if start < stop:
                    merged.append((start, stop))
            self._covered[key] = json.dumps(merged)
        return self._covered[key]

    def mean(self, span: Span) -> Tensor:
        """Return the mean of all prompts' rows in a span: (hidden_size,), float32.

        Prompts without such rows are skipped.
        """
        if span not in self._means:
            self._means[span] = self._rows(span).mean(0)
        return self._means[span]

    def components(self, span: Span) -> Tensor:
        """Return the principal components of all prompts' rows in a span around their mean.

        Returns:
            (hidden_size, r), float32: columns, largest first.
        """
        if span not in self._components:
            self._components[span] = principal_components(self._rows(span))
        return self._components[span]

    def tokenize(self, text: str) -> list[int]:
        """Return a text's token ids, without template and special tokens.

        Raises:
            TransformError: the table has no row for one of the tokens.
        """
        return self._with_rows(self.checkpoint.tokenizer(text, add_special_tokens=False)["input_ids"])

    def tokenize_with_characters(self, text: str) -> tuple[list[int], list[Characters] | None]:
        """Return a text's token ids as `tokenize`, and the characters of each; None if they cannot be determined."""
        ids, characters = self._tokenize(text, add_special_tokens=False)
        return self._with_rows(ids), characters

    def tokenize_prompt(self, prompt_id: str, text: str) -> list[int]:
        """Return the token ids of a prompt whose rendered text was changed to `text`. See `tokenize` for errors."""
        encoded = self._prompt(prompt_id)
        ids, _ = self._tokenize(text, add_special_tokens=encoded.prompt.messages is None, plain=encoded.plain)
        return self._with_rows(ids)

    def special(self, name: str) -> int:
        """Return the id of the `pad`, `mask`, `unk`, `bos` or `eos` token.

        Raises:
            TransformError: the tokenizer has no such token, or the table has no row for it.
        """
        number = getattr(self.checkpoint.tokenizer, f"{name}_token_id", None)
        if number is None or not 0 <= number < self.table.size:
            raise TransformError(f"the model's tokenizer has no {name} token")
        return int(number)

    @cached_property
    def _tokenize(self) -> Tokenize:
        return Tokenize(self.checkpoint.tokenizer)

    @cached_property
    def digests(self) -> list[str]:
        """Digests of the prompts' content, in order. Cached: each point's rows have them."""
        return [prompt_digest(encoded.prompt) for encoded in self.prompts]

    @cached_property
    def prompt_tokens(self) -> int:
        """Total number of tokens of all prompts."""
        return sum(len(encoded.token_ids) for encoded in self.prompts)

    @cached_property
    def longest(self) -> int:
        """Number of tokens of the longest prompt."""
        return max(len(encoded.token_ids) for encoded in self.prompts)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {encoded.prompt.id: i for i, encoded in enumerate(self.prompts)}

    def _with_rows(self, token_ids: Sequence[int]) -> list[int]:
        outside = next((token for token in token_ids if not 0 <= token < self.table.size), None)
        if outside is not None:
            text = self.checkpoint.tokenizer.convert_ids_to_tokens(outside)
            raise TransformError(
                f"the token {outside} ({text!r}) is beyond the model's embedding table of {self.table.size} rows"
            )
        return list(token_ids)

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
