"""Entries of prompt files and of `prompts.items`, in any of the supported formats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sweep.errors import ConfigError
from sweep.inputs.config import PromptsConfig
from sweep.inputs.entry_keys import (
    KEYS,
    check_keys,
    configured_keys,
    describe_keys,
    is_similar,
    lookup,
)
from sweep.inputs.entry_map import entry_map
from sweep.inputs.format_names import entry_format
from sweep.inputs.formats import FORMATS, Format, PromptEntry
from sweep.inputs.formats.base import Fields
from sweep.inputs.formats.chat import parsed
from sweep.inputs.formats.documents import DocumentEntry
from sweep.inputs.messages import SYSTEM_ROLES, Message, describe_type, read_tools
from sweep.inputs.readers.tables import UnreadText

# Columns that often hold the prompt's text; suggested in error messages.
TEXT_KEYS = ("question", "text", "instruction", "query", "problem", "input", "goal", "content", "user")


@dataclass(frozen=True, slots=True)
class _Shape:
    """What entries with the same keys have in common.

    Attributes:
        checked: whether none of the keys can be a misspelling.
        dotted: whether a configured key may be a path into a value.
    """

    checked: bool
    dotted: bool


class EntryReader:
    """Reader of the entries of one configuration: strings, or mappings in one of the formats of docs/guide/prompts.md.

    Owned by one thread. It remembers what entries with the same keys have in common.

    Attributes:
        map: the map of `prompts.map` and `prompts.template`; None if there is none.
    """

    def __init__(self, config: PromptsConfig) -> None:
        """Create a reader.

        Raises:
            ConfigError: `prompts.format` is unknown, or see `EntryMap`.
        """
        self._config = config
        self._format = entry_format(config)
        self.map = entry_map(config)
        self._names = (*configured_keys(config).values(), *KEYS)
        self._shapes: dict[tuple[str, ...], _Shape] = {}
        self._unused: dict[tuple[tuple[str, ...], tuple[str, ...]], tuple[str, ...]] = {}

    def read(self, raw: Any, place: str) -> PromptEntry:
        """Return the contents of an entry.

        Args:
            raw: the entry.
            place: file and line, or configuration key; starts every error message.

        Raises:
            ConfigError: the format is unknown, a key is misspelt, or a value has the wrong type.
        """
        entry, config = as_mapping(raw, place, self._config), self._config
        keys = tuple(entry)
        shape = self._shapes.get(keys)
        if shape is None:
            shape = self._shapes[keys] = self._shape(keys)
        if not shape.checked:
            check_keys(entry, place, config)
        # NaN is the only value that differs from itself.
        fields = {k: v for k, v in entry.items() if v is not None and (v.__class__ is not float or v == v)}
        get = (lambda key: lookup(fields, key)) if shape.dotted else fields.get
        mapped = {} if self.map is None else self.map.apply(entry, place)
        chat_key = next((key for key in ("prompt", "messages") if key in mapped), None)
        if chat_key is not None:
            result = self._remapped(fields, mapped, chat_key, place)
        elif self.map is not None and self.map.columns.keys() & {"prompt", "messages"}:
            keys_found = describe_keys(fields)
            raise ConfigError(f"{place}: prompts.map or prompts.template gives an empty prompt ({keys_found}).")
        else:
            result = self._read_format(fields, place)
        identifier, reference = get(config.id_key), get(config.reference_key)
        used = (*result.used, config.id_key, config.reference_key)
        # Formats may have a key of this name with another meaning, such as MT-bench: one reference for each turn.
        if reference is None or config.reference_key in result.used:
            reference = result.reference
        else:  # the project's own keys also apply to foreign formats
            used = _without(used, result.reference_keys)
        columns = {} if self.map is None else self.map.columns  # a mapped value that is missing stays missing
        if "reference" in columns:
            reference = mapped.get("reference")
            used = _without(used, (*result.reference_keys, config.reference_key))
        if "id" in columns:
            identifier = mapped.get("id")
            used = _without(used, (*result.id_keys, config.id_key))
        elif identifier is not None and config.id_key not in result.id_keys:
            used = _without(used, result.id_keys)
        elif identifier is None:
            identifier = result.id
        used = (*used, *(key for names in columns.values() for key in names))
        kept = {key: (mapped if key in columns else fields).get(key) for key in ("system", "tools", "values")}
        choices = None if config.choices_key is None else get(config.choices_key)
        document = raw if isinstance(raw, DocumentEntry) else None
        return PromptEntry(
            text=result.text,
            messages=result.messages,
            answer=result.answer,
            id=identifier,
            reference=reference,
            choices=mapped.get("choices") if "choices" in columns else choices,
            values=kept["values"],
            system=None if kept["system"] is None else _system(kept["system"], place),
            tools=(() if "tools" in columns else result.tools)
            or (() if kept["tools"] is None else read_tools(parsed(kept["tools"]), f"{place}: tools")),
            form=document.form if document and document.form else result.form,
            unused=self._unused_keys(keys, used) + result.unused + (document.unused if document else ()),
        )

    def plain_unused(self, keys: tuple[str, ...]) -> tuple[str, ...] | None:
        """Return the unused keys of entries that can only be a text or a chat, with id and references; None for others.

        Args:
            keys: the keys of the entries.
        """
        config = self._config
        own = (config.prompt_key, config.id_key, config.reference_key)
        chat = "messages" in keys
        foreign = {key for one in FORMATS.values() for key in one.keys} | set(KEYS)
        foreign -= {*own, "messages"}
        plain = (
            (self._format is None or self._format.name == "prompt")
            and (self.map, config.choices_key) == (None, None)
            and not (config.continue_final_message or config.placeholders)
            and not any("." in key for key in own)
            and chat is not (config.prompt_key in keys)
            and not (chat and self._format is not None)
            and not foreign & set(keys)
            and self._shape(keys).checked
        )
        return self._unused_keys(keys, (*own, "messages")) if plain else None

    def _shape(self, keys: tuple[str, ...]) -> _Shape:
        names = self._names
        checked = all(key in names or not is_similar(key, names) for key in keys)
        return _Shape(checked, any("." in name and name not in keys for name in names))

    def _unused_keys(self, keys: tuple[str, ...], used: tuple[str, ...]) -> tuple[str, ...]:
        """Return the keys that have no meaning for the prompt."""
        cached = self._unused.get((keys, used))
        if cached is None:
            choices = [self._config.choices_key] if self._config.choices_key is not None else []
            own = {"system", "tools", "values"} - (self.map.columns.keys() if self.map is not None else set())
            names = {*used, *choices, *own}
            roots = {name.split(".")[0] for name in names}
            cached = tuple(str(key) for key in keys if key not in names and key not in roots)
            self._unused[keys, used] = cached
        return cached

    def _read_format(self, fields: Fields, place: str) -> PromptEntry:
        config = self._config
        if self._format is not None:
            self._require_format(self._format, fields, place)
            return self._format.read(fields, place, config)
        found = guess_format(fields, config)
        if found is None:
            raise ConfigError(f"{place}: has neither {config.prompt_key!r} nor messages ({_advice(fields)}")
        return found.read(fields, place, config)

    def _remapped(self, fields: Fields, mapped: Fields, key: str, place: str) -> PromptEntry:
        """Return an entry whose prompt the map makes; id and reference may still come from a recognised format."""
        config = self._config
        own_key, name = (config.prompt_key, "prompt") if key == "prompt" else ("messages", "openai_chat")
        own = replace(FORMATS[name].read({own_key: mapped[key]}, place, config), form="", used=())
        found = self._format or guess_format(fields, config)
        if found is None or found.name in ("prompt", "openai_chat"):
            return own
        try:
            base = found.read(fields, place, config)
        except ConfigError:
            if self._format is not None:
                raise
            return own
        return replace(
            own,
            id=base.id,
            reference=base.reference,
            form=base.form,
            used=(*base.id_keys, *base.reference_keys),
            id_keys=base.id_keys,
            reference_keys=base.reference_keys,
            unused=tuple(path for path in base.unused if path.partition(".")[0] in base.reference_keys),
        )

    def _require_format(self, chosen: Format, fields: Fields, place: str) -> None:
        if chosen.name == "prompt":
            recognised = lookup(fields, self._config.prompt_key) is not None
        else:
            recognised = chosen.recognise(fields)
        if not recognised:
            expected = self._config.prompt_key if chosen.name == "prompt" else ", ".join(chosen.keys)
            raise ConfigError(
                f"{place}: is not in the format {chosen.name} of prompts.format ({describe_keys(fields)}). "
                f"Its keys: {expected}."
            )


def _without(keys: tuple[str, ...], dropped: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(key for key in keys if key not in dropped)


def guess_format(fields: Mapping[str, Any], config: PromptsConfig) -> Format | None:
    """Return the format of an entry; None if it is unknown.

    A configured `prompts.prompt_key` takes precedence over formats, and the key `prompt` over all but chats and logs.
    """
    prompt = fields.get("prompt") if config.prompt_key == "prompt" else lookup(fields, config.prompt_key)
    if prompt is not None and config.prompt_key != "prompt":
        return FORMATS["prompt"]
    for candidate in FORMATS.values():
        if candidate.name == "prompt":
            if prompt is not None:
                return candidate
        elif candidate.recognise(fields):
            return candidate
    return None


def as_mapping(raw: Any, place: str, config: PromptsConfig) -> dict[str, Any]:
    """Return an entry as a mapping; a string becomes the prompt's text.

    Raises:
        ConfigError: neither a string nor a mapping.
    """
    if isinstance(raw, dict):
        return raw
    if isinstance(raw, str):
        return {config.prompt_key: raw}
    raise ConfigError(f"{place}: a prompt must be a string or a mapping; got {describe_type(raw)}.")


def _system(value: Any, place: str) -> str | None:
    if value == "":
        return None
    if not isinstance(value, str):
        raise ConfigError(f"{place}: 'system' must be the text of the system message; got {describe_type(value)}.")
    return value


def has_system(messages: tuple[Message, ...]) -> bool:
    """Return whether a chat contains a system message."""
    return any(message["role"] in SYSTEM_ROLES for message in messages)


def _advice(fields: Mapping[str, Any]) -> str:
    """Return the rest of an error message: the keys that exist, and a key that may hold the text."""
    keys_found = f"{describe_keys(fields)})."
    text = next((key for key in TEXT_KEYS if isinstance(fields.get(key), str | UnreadText)), None)
    return f"{keys_found} Set prompts.prompt_key={text}." if text else keys_found
