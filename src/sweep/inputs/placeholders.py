"""Placeholders: `{name}` in a prompt's text, filled by its own values or kept for a transform."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sweep.errors import ConfigError
from sweep.inputs.choices import as_text
from sweep.inputs.config import PromptsConfig
from sweep.inputs.entry_keys import is_missing
from sweep.inputs.messages import describe_type

PLACEHOLDER = re.compile(r"\{(\w+)\}")
_ALMOSTPLACEHOLDER = re.compile(r"\{\s*([^\W\d]\w*)\s*\}")  # what a person would read as a placeholder


@dataclass(frozen=True, slots=True)
class Place:
    """Position of a placeholder, or of the value that replaced it: characters [start, stop) of a message's text.

    Attributes:
        name: the placeholder's name.
        message: index of the message; 0 in plain text.
        start, stop: the characters.
        kept: whether the text still contains `{name}`, for a transform to replace.
    """

    name: str
    message: int
    start: int
    stop: int
    kept: bool


def fill(text: str, message: int, values: Mapping[str, str], config: PromptsConfig) -> tuple[str, list[Place]]:
    """Replace `{name}` by its value; names in `prompts.placeholders` stay as they are."""
    if "{" not in text:
        return text, []
    pieces, places, position, length = [], [], 0, 0
    for match in PLACEHOLDER.finditer(text):
        name = match[1]
        kept = name in config.placeholders
        if not kept and name not in values:
            continue
        replacement = match[0] if kept else values[name]
        length += match.start() - position
        places.append(Place(name, message, length, length + len(replacement), kept))
        pieces += [text[position : match.start()], replacement]
        position, length = match.end(), length + len(replacement)
    return "".join([*pieces, text[position:]]), places


def require_filled(text: str, values: Mapping[str, str], config: PromptsConfig, place: str) -> None:
    """Reject placeholders without a value, in an entry that has values.

    Raises:
        ConfigError: names the placeholder.
    """
    for match in _ALMOSTPLACEHOLDER.finditer(text):
        name, exact = match[1], match[0] == f"{{{match[1]}}}"
        if exact and name not in values and name not in config.placeholders:
            available = ", ".join(values) or "none"
            raise ConfigError(
                f"{place}: 'values' has no value for {match[0]} (it has {available}). Add one, or declare "
                f"prompts.placeholders=[{name}]. A value of {match[0]!r} keeps the text as it is."
            )
        if not exact and name in values:
            raise ConfigError(f"{place}: {match[0]!r} is not a placeholder. Write {{{name}}}, without blanks.")


def filled_by_name(text: str, values: Mapping[str, str]) -> str:
    """Replace names by their values, and keep all other braces, such as those of regular expressions."""
    return PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), text) if values else text


def read_values(values: Any, place: str) -> dict[str, str]:
    """Return an entry's values for placeholders, as texts.

    Raises:
        ConfigError: not a mapping, or a value is neither a string nor a number.
    """
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{place}: 'values' must be a mapping from placeholder names to texts; got {describe_type(values)}."
        )
    texts = {}
    for name, value in values.items():
        text = as_text(value)
        if text is None and not is_missing(value):
            raise ConfigError(
                f"{place}: 'values' has {describe_type(value)} under {name!r}; expected a string or a number."
            )
        if text is not None:
            texts[str(name)] = text
    return texts
