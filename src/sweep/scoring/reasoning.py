"""Reasoning of a model, such as that between `<think>` and `</think>`, which is removed before scoring."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from sweep.engines.base import Completion


def without_reasoning(answer: Completion, tags: Sequence[str], prompt: str = "") -> Completion:
    """Return an answer with the text after its reasoning; its tokens stay.

    Reasoning that does not end is removed up to the end of the text, as in an answer that reached its maximum length.
    A closing tag without an opening one ends reasoning that began before the answer.

    Args:
        answer: the answer.
        tags: the opening and the closing tag.
        prompt: the rendered prompt. Templates may end it with the opening tag.
    """
    text = strip_reasoning(answer.text, tags, opened=prompt.rstrip().endswith(tags[0]))
    return answer if text == answer.text else replace(answer, text=text)


def strip_reasoning(text: str, tags: Sequence[str], *, opened: bool = False) -> str:
    """Return a text without its reasoning and the white space around it.

    Args:
        text: the text.
        tags: the opening and the closing tag.
        opened: whether the text begins within the reasoning.
    """
    start, stop = tags
    if start not in text and stop not in text:
        return "" if opened else text
    first_stop, first_start = text.find(stop), text.find(start)
    if opened or (first_stop >= 0 and (first_start < 0 or first_stop < first_start)):
        text = text[first_stop + len(stop) :] if first_stop >= 0 else ""
    pattern = f"{re.escape(start)}.*?(?:{re.escape(stop)}|\\Z)"
    return re.sub(pattern, "", text, flags=re.DOTALL).strip()
