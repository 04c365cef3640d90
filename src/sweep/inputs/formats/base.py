"""Format of an entry: what it is recognised by, and how it is read. See docs/developer/adding-to-this-repository.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sweep.inputs.config import PromptsConfig
from sweep.inputs.messages import Message

Fields = dict[str, Any]  # an entry without missing values


@dataclass(slots=True, kw_only=True)
class PromptEntry:
    """An entry as written, before placeholders and defaults are filled in.

    Not frozen, because two are made for each entry, and frozen ones take three times as long. Do not change one.

    Attributes:
        text: the prompt, if the entry is not a chat.
        messages: the chat up to the point where the model answers.
        answer: the assistant message at the end of the chat, which is not sent.
        id, reference, choices, values: as written; None if absent.
        system: the entry's system message, if it is not among the messages.
        tools: tool definitions, as JSON values.
        form: name of the foreign format that was recognised; empty for this project's own.
        used: keys of the entry that the prompt, its id or its reference come from.
        id_keys, reference_keys: those of `used` that decide the id or the reference alone.
        unused: paths below used keys that have no meaning for the prompt.
    """

    text: str | None = None
    messages: tuple[Message, ...] | None = None
    answer: Message | None = None
    id: Any = None
    reference: Any = None
    choices: Any = None
    values: Any = None
    system: str | None = None
    tools: tuple[dict[str, Any], ...] = ()
    form: str = ""
    used: tuple[str, ...] = ()
    id_keys: tuple[str, ...] = ()
    reference_keys: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Format:
    """A layout of entries.

    Attributes:
        name: value of `prompts.format`.
        keys: keys that it reads. Tables read these columns.
        recognise: return whether an entry has this layout. Cheap: called for each new combination of keys.
        read: return the entry's contents. Arguments: the entry without missing values, its place for errors, and the
            configuration. Raises `ConfigError`.
    """

    name: str
    keys: tuple[str, ...]
    recognise: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Fields, str, PromptsConfig], PromptEntry]


FORMATS: dict[str, Format] = {}  # in the order in which they are tried


def register_format(entry_format: Format) -> None:
    """Add a format, or replace the one with its name. Formats are tried in the order of registration."""
    FORMATS[entry_format.name] = entry_format
