"""Changes of the text itself, as controls for changes of its embeddings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from sweep.errors import ConfigError, TransformError
from sweep.inputs.layout import Characters, Layout
from sweep.transforms.base import Rearranged, Rearrangement, register
from sweep.transforms.context import Context, Corpus
from sweep.transforms.rows import contiguous_ranges
from sweep.util.validators import require

if TYPE_CHECKING:
    from torch import Tensor

WORD = re.compile(r"[^\W\d_]{4,}")  # at least four letters, so that two inner letters can be swapped


@register("other_prompt")
@dataclass(frozen=True, slots=True)
class OtherPrompt(Rearrangement):
    """[.. ; E_other ; ..]: the span's rows become those of another prompt in the same span, untransformed.

    A control: it gives the model entirely wrong content, which bounds the damage of any other transform. If the span
    has several ranges, such as the contents of a conversation, the other prompt must have as many. Each is replaced by
    its counterpart.

    Attributes:
        other: id of the other prompt; null for the next prompt (the first one follows the last).
    """

    other: str | None = None

    def rearrange(self, rows: Tensor, context: Context) -> Rearranged:
        """Return the other prompt's rows, in their own number, in place of the rows."""
        corpus = context.corpus
        other = corpus.next_id(context.prompt_id) if self.other is None else self.other
        if self.other is None and other == context.prompt_id:
            raise TransformError("there is no other prompt. Add prompts, or set transform.other")
        own_ranges = contiguous_ranges(corpus.numbers(context.span, context.prompt_id))
        other_ranges = contiguous_ranges(corpus.numbers(context.span, other))
        if len(own_ranges) != len(other_ranges):
            raise TransformError(
                f"the span {context.span} has {len(own_ranges)} ranges, but {len(other_ranges)} in the prompt {other!r}"
            )
        tokens = {token for origin in context.origins for token in origin}
        current = min(tokens, default=0), max(tokens, default=-1) + 1
        if current not in own_ranges:
            raise TransformError("an earlier transform has moved or split the span's rows. Put other_prompt first")
        start, stop = other_ranges[own_ranges.index(current)]
        ids = corpus.layout(other).token_ids[start:stop]
        return Rearranged(corpus.table.rows(ids), [()] * len(ids), ids)

    def max_rows(self, count: int) -> int:
        """Return twice `count`: no prompt of `count` rows has more of them in the span."""
        return 2 * count

    def check(self, corpus: Corpus) -> None:
        """Check that the other prompt exists."""
        if self.other is not None:
            try:
                corpus.layout(self.other)
            except TransformError as error:
                raise ConfigError(f"transform.other: {error}") from error


@register("typo")
@dataclass(frozen=True, slots=True)
class Typo(Rearrangement):
    """rows(tokens(text')): in text', neighbouring letters within words have changed places.

    A control: noise in the input itself, the "swap" of Belinkov & Bisk 2018 (arXiv:1711.02173). A word's letters
    without the first and the last are divided into pairs, and each pair is swapped with probability `rate`. Only words
    of at least four letters in the messages' texts count, not the template or `{placeholder}`s. The prompt is tokenized
    again, and the span's tokens are taken from the result; tokens before and after the span must stay the same. For a
    given seed, a higher rate includes the swaps of lower ones.

    Attributes:
        rate: probability of a swap, in [0, 1].
    """

    dose: ClassVar[str | None] = "rate"
    neutral: ClassVar[float | None] = 0.0
    examples: ClassVar = ({"rate": 1.0},)

    rate: float = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.rate <= 1, "transform.rate", "must be in [0, 1]", self.rate)

    def rearrange(self, rows: Tensor, context: Context) -> Rearranged:
        """Return the rows of the misspelt text's tokens."""
        import torch

        layout = context.corpus.layout(context.prompt_id)
        start = context.origins[0][0] if context.origins[0] else 0
        stop = start + len(rows)
        before, ids, after = (list(layout.token_ids[i:j]) for i, j in ((0, start), (start, stop), (stop, None)))
        in_order = list(context.origins) == [(token,) for token in range(start, stop)]
        if not in_order or not torch.equal(rows, context.table.rows(ids)):
            raise TransformError("must be the first transform: the rows are no longer those of the prompt's tokens")
        text = self._misspelt(layout, layout.offsets[start:stop], context)
        if text == layout.text:
            return Rearranged(rows, [(i,) for i in range(len(rows))])
        tokens = context.corpus.tokenize_prompt(context.prompt_id, text)
        count = len(tokens) - len(before) - len(after)
        if count < 1 or tokens[:start] != before or tokens[start + count :] != after:
            raise TransformError("the tokens next to the span change with its text. Use a span of whole words")
        new = tokens[start : start + count]
        return Rearranged(context.table.rows(new), _aligned(ids, new), new)

    def max_rows(self, count: int) -> int:
        """Return three times `count`, more than misspelt words normally need."""
        return 3 * count

    def _misspelt(self, layout: Layout, offsets: Sequence[Characters], context: Context) -> str:
        """Return the prompt's text with letters swapped within the given tokens' characters."""
        import torch

        ranges = [characters for characters in offsets if characters[0] < characters[1]]
        first, last = min((a for a, _ in ranges), default=0), max((b for _, b in ranges), default=0)
        pairs = _pairs(layout)
        letters = list(layout.text)
        for i, draw in zip(pairs, torch.rand(len(pairs), generator=context.generator()).tolist(), strict=True):
            if draw < self.rate and first <= i and i + 2 <= last:
                letters[i : i + 2] = letters[i + 1], letters[i]
        return "".join(letters)


@lru_cache(maxsize=1024)  # computed once per prompt, not once per point
def _pairs(layout: Layout) -> list[int]:
    """Return the position of the first letter of each pair that can be swapped."""
    if layout.contents is None:
        raise TransformError(
            "the messages' texts cannot be located in the prompt, because its chat template rewrites them"
        )
    placeholders = [
        characters for name, characters in layout.placeholders if layout.text[slice(*characters)] == f"{{{name}}}"
    ]
    positions: list[int] = []
    for content in layout.contents:
        for word in WORD.finditer(layout.text, content.start, content.stop):
            if not any(start <= word.start() < stop for start, stop in placeholders):
                positions += range(word.start() + 1, word.end() - 2, 2)
    return positions


def _aligned(old: Sequence[int], new: Sequence[int]) -> list[tuple[int, ...]]:
    """Return, for each new token, the indices of the old tokens that it replaces."""
    if len(old) == len(new):
        return [(i,) for i in range(len(old))]
    parents: list[tuple[int, ...]] = []
    a = b = 0
    for block in SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks():
        # New tokens between two blocks replace the old ones there, or belong to the preceding one if there are none.
        between = tuple(range(a, block.a)) or (max(a - 1, 0),)
        parents += [between] * (block.b - b) + [(block.a + i,) for i in range(block.size)]
        a, b = block.a + block.size, block.b + block.size
    return parents
