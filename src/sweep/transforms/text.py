"""Changes of the text itself, to compare those of its embeddings with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from sweep.checks import require
from sweep.errors import ConfigError, TransformError
from sweep.inputs.layout import Characters, Layout
from sweep.transforms.base import Rearranged, Rearrangement, register
from sweep.transforms.context import Context, Corpus
from sweep.transforms.rows import stretches

if TYPE_CHECKING:
    from torch import Tensor

WORD = re.compile(r"[^\W\d_]{4,}")  # four letters and more: two of them have a letter on either side


@register("other_prompt")
@dataclass(frozen=True, slots=True)
class OtherPrompt(Rearrangement):
    """[.. ; E_other ; ..]: the span's rows become those of another prompt in the same span, untransformed.

    A control: what is left of an answer when all that the prompt says is wrong bounds the damage that any other
    transform can do.  If the span has several stretches, as the contents of a conversation, the other prompt must have
    as many, and each becomes its counterpart.

    Attributes:
        other: the other prompt's id; null for the next prompt, after the last the first.
    """

    other: str | None = None

    def rearrange(self, rows: Tensor, context: Context) -> Rearranged:
        """Return the other prompt's rows in the place of the rows, at their own number."""
        corpus = context.corpus
        other = corpus.next_id(context.prompt_id) if self.other is None else self.other
        if self.other is None and other == context.prompt_id:
            raise TransformError("there is no other prompt")
        mine = stretches(corpus.numbers(context.span, context.prompt_id))
        theirs = stretches(corpus.numbers(context.span, other))
        if len(mine) != len(theirs):
            raise TransformError(
                f"the span {context.span} has {len(mine)} stretches, and {len(theirs)} in the prompt {other!r}"
            )
        tokens = {token for stem in context.origins for token in stem}
        place = min(tokens, default=0), max(tokens, default=-1) + 1
        if place not in mine:
            raise TransformError("an earlier transform has moved or split the span's rows: put other_prompt first")
        start, stop = theirs[mine.index(place)]
        ids = corpus.layout(other).token_ids[start:stop]
        return Rearranged(corpus.table.rows(ids), [()] * len(ids), ids)

    def max_rows(self, count: int) -> int:
        """Return twice `count`: no prompt of that many rows has more of them in the span."""
        return 2 * count

    def check(self, corpus: Corpus) -> None:
        """Check that there is such a prompt."""
        if self.other is not None:
            try:
                corpus.layout(self.other)
            except TransformError as error:
                raise ConfigError(f"transform.other: {error}") from error


@register("typo")
@dataclass(frozen=True, slots=True)
class Typo(Rearrangement):
    """rows(tokens(text')): in text', neighbouring letters within words have changed places.

    A control: noise in the input itself, the "swap" of Belinkov & Bisk 2018 (arXiv:1711.02173).  A word's letters but
    the first and the last are taken in pairs, and each pair is swapped with probability `rate`; words are four letters
    or more, and only those of the messages count, not the template's, nor `{placeholder}`s.  The prompt is tokenized
    anew, and its span's tokens are taken from there; those before and after must stay as they are.  At one seed, a
    higher rate has the swaps of the lower ones, and more.

    Attributes:
        rate: in [0, 1].
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
            raise TransformError("must be the first transform: the rows are not those of the prompt's tokens any more")
        text = self._misspelt(layout, layout.offsets[start:stop], context)
        if text == layout.text:
            return Rearranged(rows, [(i,) for i in range(len(rows))])
        tokens = context.corpus.tokenize_prompt(context.prompt_id, text)
        count = len(tokens) - len(before) - len(after)
        if count < 1 or tokens[:start] != before or tokens[start + count :] != after:
            raise TransformError("the tokens beside the span change with its text; take a span of whole words")
        new = tokens[start : start + count]
        return Rearranged(context.table.rows(new), _aligned(ids, new), new)

    def max_rows(self, count: int) -> int:
        """Return three times `count`, which misspelt words hardly ever need."""
        return 3 * count

    def _misspelt(self, layout: Layout, offsets: Sequence[Characters], context: Context) -> str:
        """Return the prompt's text with letters swapped among some of its characters."""
        import torch

        places = [place for place in offsets if place[0] < place[1]]
        first, last = min((a for a, _ in places), default=0), max((b for _, b in places), default=0)
        pairs = _pairs(layout)
        letters = list(layout.text)
        for i, chance in zip(pairs, torch.rand(len(pairs), generator=context.generator()).tolist(), strict=True):
            if chance < self.rate and first <= i and i + 2 <= last:
                letters[i : i + 2] = letters[i + 1], letters[i]
        return "".join(letters)


@lru_cache(maxsize=1024)  # once for each prompt, not for each point's
def _pairs(layout: Layout) -> list[int]:
    """Return the first of every two neighbouring letters that can be swapped."""
    if layout.contents is None:
        raise TransformError("the messages' texts cannot be found in the prompt: its chat template rewrites them")
    names = [place for name, place in layout.placeholders if layout.text[slice(*place)] == f"{{{name}}}"]
    found: list[int] = []
    for content in layout.contents:
        for word in WORD.finditer(layout.text, content.start, content.stop):
            if not any(start <= word.start() < stop for start, stop in names):
                found += range(word.start() + 1, word.end() - 2, 2)
    return found


def _aligned(old: Sequence[int], new: Sequence[int]) -> list[tuple[int, ...]]:
    """Return for each new token the old ones, by number, in whose place it stands."""
    if len(old) == len(new):
        return [(i,) for i in range(len(old))]
    parents: list[tuple[int, ...]] = []
    a = b = 0
    for block in SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks():
        # What differs between two blocks stands for what was there, or beside it if there was nothing.
        between = tuple(range(a, block.a)) or (max(a - 1, 0),)
        parents += [between] * (block.b - b) + [(block.a + i,) for i in range(block.size)]
        a, b = block.a + block.size, block.b + block.size
    return parents
