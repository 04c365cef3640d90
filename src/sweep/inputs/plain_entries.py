"""Plain entries: a text or a chat, with an id and references.

Most files have nothing else. Their entries are read several times faster here than by `EntryReader`.
"""

from __future__ import annotations

from typing import Any

from sweep.inputs.config import PromptsConfig
from sweep.inputs.entries import EntryReader
from sweep.inputs.formats.chat import OPENAI_CHAT
from sweep.inputs.messages import ASSISTANT_ROLES, ROLES, SYSTEM_ROLES, Message
from sweep.inputs.prompt import Prompt
from sweep.inputs.prompt_summary import Reading


class PlainReader:
    """Reads plain entries without looking for other formats, and leaves all others to `EntryReader`.

    Owned by one thread. It gives the same prompts as the long way (`tests/inputs/test_prompt_mixtures.py`).
    """

    def __init__(self, reader: EntryReader, config: PromptsConfig, source: str) -> None:
        """Create a reader.

        Args:
            reader: reader of the same configuration, which knows the keys.
            config: the configuration.
            source: name of the file or data set.
        """
        self._reader, self._source = reader, source
        self._keys = config.prompt_key, config.id_key, config.reference_key
        self._chat = config.chat
        self._system: tuple[Message, ...] = ()
        if config.system is not None:
            self._system = ({"role": "system", "content": config.system},)
        self._unused: dict[tuple[str, ...], tuple[str, ...] | None] = {}
        self._readings: dict[tuple[tuple[str, ...], bool, bool, bool, bool], Reading] = {}

    def read(self, entry: Any, index: int) -> Prompt | None:
        """Return the prompt of a plain entry; None if the entry is not plain, or wrong.

        Args:
            entry: the entry.
            index: its position, which names it if it has no id.
        """
        if entry.__class__ is not dict:
            return None
        keys = tuple(entry)
        if keys not in self._unused:
            self._unused[keys] = self._reader.plain_unused(keys)
        unused = self._unused[keys]
        name, references = self._name(entry, index), self._references(entry)
        if unused is None or name is None or references is None:
            return None
        if "messages" in entry:
            return self._of_messages(entry["messages"], name, references, unused)
        text = entry[self._keys[0]]
        if not _is_text(text) or text.startswith("[{"):
            return None
        messages = (*self._system, {"role": "user", "content": text}) if self._chat else None
        reading = self._reading(unused, True, bool(self._system), False, False)
        return Prompt(name, text, messages, references, reading=reading)

    def _of_messages(
        self, written: Any, name: str, references: tuple[str, ...], unused: tuple[str, ...]
    ) -> Prompt | None:
        if written.__class__ is not list or not self._chat:
            return None
        messages: list[Message] = []
        system = bool(self._system)
        for message in written:
            if message.__class__ is not dict or len(message) != 2:
                return None
            role, content = message.get("role"), message.get("content")
            if role not in ROLES or not _is_text(content):
                return None
            if role in SYSTEM_ROLES:
                if self._system:
                    return None
                system = True
            messages.append({"role": role, "content": content})
        if len(messages) > 1 and (answer := messages[-1])["role"] in ASSISTANT_ROLES:
            if messages[-2]["role"] in ASSISTANT_ROLES:
                return None
            del messages[-1]
            is_reference = not references and bool(answer["content"].strip())
            references = (answer["content"],) if is_reference else references
            reading = self._reading(unused, False, system, True, is_reference)
        elif not messages or messages[-1]["role"] in ASSISTANT_ROLES:
            return None
        else:
            reading = self._reading(unused, False, system, False, False)
        return Prompt(name, messages[-1]["content"], (*self._system, *messages), references, reading=reading)

    def _reading(
        self, unused: tuple[str, ...], text: bool, system: bool, answer: bool, answer_is_reference: bool
    ) -> Reading:
        key = unused, text, system, answer, answer_is_reference
        if key not in self._readings:
            self._readings[key] = Reading(
                form="" if text else OPENAI_CHAT,
                text=text,
                system=system,
                answer=answer,
                answer_is_reference=answer_is_reference,
                unused=unused,
                source=self._source,
            )
        return self._readings[key]

    def _name(self, entry: dict[str, Any], index: int) -> str | None:
        name = entry.get(self._keys[1])
        if name is None:
            return numbered_id(index)
        if name.__class__ is int:
            return str(name)
        return name if _is_text(name) else None

    def _references(self, entry: dict[str, Any]) -> tuple[str, ...] | None:
        reference = entry.get(self._keys[2])
        if reference is None:
            return ()
        references = tuple(reference) if reference.__class__ is list else (reference,)
        for one in references:
            if not _is_text(one) or one.isspace():
                return None
        return references


def numbered_id(index: int) -> str:
    """Return the id of the entry at a position that has none of its own."""
    return f"p{index:04d}"


def _is_text(value: Any) -> bool:
    """Return whether a value is a text that is not empty and has no lone surrogates."""
    return value.__class__ is str and bool(value) and (value.isascii() or not half_character(value))


def half_character(value: Any) -> str:
    """Return a lone surrogate in a value, which JSON can express but UTF-8 cannot; an empty string if there is none."""
    if isinstance(value, str):
        if value.isascii():
            return ""
        try:
            value.encode()
        except UnicodeEncodeError as error:
            return str(error.object[error.start])
        return ""
    if isinstance(value, dict):
        value = [item for pair in value.items() for item in pair]
    if isinstance(value, list | tuple):
        for item in value:
            if item.__class__ is str and item.isascii():
                continue
            if half := half_character(item):
                return half
    return ""
