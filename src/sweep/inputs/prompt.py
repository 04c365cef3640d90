"""Prompt: an input item of a sweep."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sweep.inputs.messages import Message
from sweep.inputs.placeholders import Place
from sweep.inputs.prompt_summary import Reading


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt.

    Attributes:
        id: unique within a sweep.
        text: the text shown for it: its text, or that of the last message.
        messages: the chat that the template renders; None for plain completion.
        references: accepted answers; empty if correctness is not measured.
        choices: answers to choose from, whose likelihoods are scored; empty if it has none of its own.
        values: (name, text) of the prompt's own values for placeholders.
        places: positions of placeholders.
        tools: tool definitions for the chat template, as JSON values.
        reading: how its entry was read; not part of the prompt's identity.
    """

    id: str
    text: str
    messages: tuple[Message, ...] | None
    references: tuple[str, ...] = ()
    values: tuple[tuple[str, str], ...] = ()
    places: tuple[Place, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    choices: tuple[str, ...] = ()
    reading: Reading = field(default=Reading(), compare=False)
