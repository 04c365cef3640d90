"""Where a prompt's own text lies among its tokens: what spans are found by.

A chat template is rendered twice, once with marks in the place of the messages' texts; what lies between the marks is
the template.  Tokens are tied to characters by the tokenizer's offsets, or, where it has none, by decoding.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Characters = tuple[int, int]  # [start, stop) in the rendered prompt

# Private-use characters, which no template strips, splits at or escapes.
MARK_START, MARK_STOP = "\ue000", "\ue001"


@dataclass(frozen=True, slots=True)
class Content:
    """One message's own text in the rendered prompt."""

    role: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Layout:
    """A rendered prompt and its tokens' places in it.

    Attributes:
        token_ids: its tokens.
        text: the prompt as it is tokenized, template and all.
        offsets: the characters of each token; equal numbers for tokens that stand for none.
        contents: the messages' own texts, in order; None where the template rewrites them, so that they are not found.
        placeholders: (name, characters) of each place that a placeholder holds or has been filled in.
    """

    token_ids: tuple[int, ...]
    text: str
    offsets: tuple[Characters, ...]
    contents: tuple[Content, ...] | None
    placeholders: tuple[tuple[str, Characters], ...] = ()

    def overlapping(self, ranges: Sequence[Characters]) -> list[int]:
        """Return the tokens that share a character with any of the ranges."""
        return [i for i, (a, b) in enumerate(self.offsets) if any(a < stop and start < b for start, stop in ranges)]


def locate_contents(text: str, skeleton: str, messages: Sequence[dict[str, str]]) -> tuple[Content, ...] | None:
    """Find the messages' texts in a rendered chat.

    Args:
        text: the chat as it is rendered.
        skeleton: the same with `mark(i)` in the place of the i-th message's text.
        messages: the chat.

    Returns:
        One text for each message, without the blanks that a template may strip; None if the template did more to them.
    """
    literals = re.split(f"{MARK_START}(\\d+){MARK_STOP}", skeleton)
    if not text.startswith(literals[0]):
        return None
    found: dict[int, Content] = {}
    at = len(literals[0])
    for number, literal in zip(literals[1::2], literals[2::2], strict=True):
        message = messages[int(number)]
        own = message["content"]
        for rendered in (own, own.strip(), own.rstrip(), own.lstrip()):
            if text.startswith(rendered + literal, at):
                break
        else:
            return None
        found[int(number)] = Content(message["role"], at, at + len(rendered))
        at += len(rendered) + len(literal)
    if at != len(text):
        return None
    # A message without a text, or one that the template leaves out, has an empty place.
    return tuple(found.get(i, Content(message["role"], 0, 0)) for i, message in enumerate(messages))


def mark(index: int) -> str:
    """Return what stands for the `index`-th message's text in a skeleton."""
    return f"{MARK_START}{index}{MARK_STOP}"


def decoded_offsets(token_ids: Sequence[int], text: str, tokenizer: Any) -> list[Characters] | None:
    """Return the characters of each token by decoding longer and longer beginnings; None if they do not spell `text`.

    For tokenizers without offsets.  Blanks may have been swallowed; a token that holds but a part of a character has
    that character.
    """
    places: list[Characters] = []
    kept: list[int] = []
    spelled, at = "", 0
    for token in token_ids:
        begun = tokenizer.decode([*kept, token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        whole = begun.rstrip("\ufffd")
        piece = whole[len(spelled) :] if whole.startswith(spelled) else None
        if piece is not None and not text.startswith(piece, at):
            blanks = len(text) - at - len(text[at:].lstrip())
            at, piece = (at + blanks, piece) if text.startswith(piece, at + blanks) else (at, None)
        if piece is None:
            if token not in tokenizer.all_special_ids:
                return None
            places.append((at, at))  # put there by the tokenizer, not by the text
            continue
        kept.append(token)
        places.append((at, min(at + max(len(piece), whole != begun), len(text))))
        spelled, at = whole, at + len(piece)
    return places if not text[at:].strip() else None
