"""Position of a prompt's own text among its tokens, which spans refer to.

A chat template is rendered twice, the second time with marks in place of the message texts. Whatever lies between the
marks belongs to the template. Tokens are mapped to characters by the tokenizer's offsets, or by decoding if it has
none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Characters = tuple[int, int]  # [start, stop) in the rendered prompt

# Private-use characters: templates do not strip, split at or escape them.
MARK_START, MARK_STOP = "\ue000", "\ue001"


@dataclass(frozen=True, slots=True)
class Content:
    """One message's own text in the rendered prompt: characters [start, stop)."""

    role: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Layout:
    """A rendered prompt and the position of each token in it.

    Attributes:
        token_ids: the prompt's tokens.
        text: the prompt as it is tokenized, template included.
        offsets: the characters of each token; empty ranges for tokens without characters.
        contents: the messages' own texts, in order; None if the template rewrites them, so that they cannot be located.
        placeholders: (name, characters) of each placeholder, kept or filled in.
    """

    token_ids: tuple[int, ...]
    text: str
    offsets: tuple[Characters, ...]
    contents: tuple[Content, ...] | None
    placeholders: tuple[tuple[str, Characters], ...] = ()

    def overlapping(self, ranges: Sequence[Characters]) -> list[int]:
        """Return the indices of tokens that share a character with any of the ranges."""
        return [i for i, (a, b) in enumerate(self.offsets) if any(a < stop and start < b for start, stop in ranges)]


def locate_contents(text: str, skeleton: str, messages: Sequence[Mapping[str, Any]]) -> tuple[Content, ...] | None:
    """Locate the messages' texts in a rendered chat.

    Args:
        text: the rendered chat.
        skeleton: the same chat, rendered with `mark(i)` in place of the i-th message's text.
        messages: the chat.

    Returns:
        One text per message, without blanks that the template strips; None if the template changes the texts otherwise.
    """
    literals = re.split(f"{MARK_START}(\\d+){MARK_STOP}", skeleton)
    if not text.startswith(literals[0]):
        return None
    contents: dict[int, Content] = {}
    position = len(literals[0])
    for number, literal in zip(literals[1::2], literals[2::2], strict=True):
        message = messages[int(number)]
        content = str(message["content"])
        for rendered in (content, content.strip(), content.rstrip(), content.lstrip()):
            if text.startswith(rendered + literal, position):
                break
        else:
            return None
        contents[int(number)] = Content(str(message["role"]), position, position + len(rendered))
        position += len(rendered) + len(literal)
    if position != len(text):
        return None
    # Messages without a text, and those that the template leaves out, get an empty range.
    return tuple(contents.get(i, Content(str(message["role"]), 0, 0)) for i, message in enumerate(messages))


def mark(index: int) -> str:
    """Return the mark that replaces the `index`-th message's text in a skeleton."""
    return f"{MARK_START}{index}{MARK_STOP}"


def decoded_offsets(token_ids: Sequence[int], text: str, tokenizer: Any) -> list[Characters] | None:
    """Return the characters of each token, found by decoding ever longer prefixes; None if they do not spell `text`.

    For tokenizers without offsets. Decoding may drop blanks. A token that holds only a part of a character gets the
    whole character.
    """
    places: list[Characters] = []
    kept: list[int] = []
    spelled, position = "", 0
    for token in token_ids:
        decoded = tokenizer.decode([*kept, token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        whole = decoded.rstrip("\ufffd")
        piece = whole[len(spelled) :] if whole.startswith(spelled) else None
        if piece is not None and not text.startswith(piece, position):
            blanks = len(text) - position - len(text[position:].lstrip())
            position, piece = (
                (position + blanks, piece) if text.startswith(piece, position + blanks) else (position, None)
            )
        if piece is None:
            if token not in tokenizer.all_special_ids:
                return None
            places.append((position, position))  # added by the tokenizer, not part of the text
            continue
        kept.append(token)
        places.append((position, min(position + max(len(piece), whole != decoded), len(text))))
        spelled, position = whole, position + len(piece)
    return places if not text[position:].strip() else None
