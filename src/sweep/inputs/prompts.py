"""Prompts, read from the configuration or from a file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from sweep.errors import ConfigError
from sweep.inputs.choices import as_text, named_choices, read_choices
from sweep.inputs.config import PromptsConfig
from sweep.inputs.entries import PromptEntry, as_mapping, has_system, read_entry
from sweep.inputs.entry_keys import check_configured_keys, is_missing
from sweep.inputs.messages import Message, describe_type
from sweep.inputs.prompt_files import MAX_PROMPTS, Entries, find_prompt_file
from sweep.inputs.prompt_summary import PromptSummary, Reading

_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_ALMOST_PLACEHOLDER = re.compile(r"\{\s*([^\W\d]\w*)\s*\}")  # what a person would read as a placeholder


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


def load(config: PromptsConfig) -> list[Prompt]:
    """Read the prompts of a configuration, at most `config.limit`.

    Raises:
        ConfigError: the file does not exist or has an unknown format, an entry is malformed (with file and line), an id
            is repeated, no entry has a configured key, or there are no prompts.
    """
    raw, where = list(_limited(*_entries(config), config)), config.path or "prompts.items"
    if not raw:
        raise ConfigError(f"The prompt list is empty: {where} holds no prompt.")
    check_configured_keys([as_mapping(entry, place, config) for place, entry in raw], config, where)
    prompts = [_prompt(entry, place, i, config) for i, (place, entry) in enumerate(raw)]
    _require_filled_everywhere(prompts, [place for place, _ in raw], config)
    places: dict[str, str] = {}
    for prompt, (place, _) in zip(prompts, raw, strict=True):
        if (first := places.setdefault(prompt.id, place)) != place:
            raise ConfigError(f"{place}: the id {prompt.id!r} is already used at {first}. Ids must be unique.")
    return prompts


def summarise(prompts: Sequence[Prompt], config: PromptsConfig) -> PromptSummary:
    """Return a summary of a configuration's prompts."""
    references = sum(bool(prompt.references) for prompt in prompts)
    tools = sum(bool(prompt.tools) for prompt in prompts)
    choices = sum(bool(prompt.choices) for prompt in prompts)
    return PromptSummary.of([prompt.reading for prompt in prompts], references, tools, config.path or "", choices)


def _entries(config: PromptsConfig) -> tuple[Entries, str]:
    """Return an iterator over (place, entry), and the name of its source."""
    if config.path is None:
        return ((f"prompts.items[{i}]", entry) for i, entry in enumerate(config.items or [])), "prompts.items"
    file = find_prompt_file(config.path)
    return ((f"{config.path}:{place}", entry) for place, entry in file.entries(config)), config.path


def _limited(entries: Entries, where: str, config: PromptsConfig) -> Entries:
    for number, entry in enumerate(islice(entries, config.limit)):
        if number == MAX_PROMPTS:
            raise ConfigError(f"{where}: has more than {MAX_PROMPTS:,} prompts. Set prompts.limit.")
        yield entry


def _prompt(raw: Any, place: str, index: int, config: PromptsConfig) -> Prompt:
    """Build a prompt from an entry: read its form, complete its chat, fill its placeholders."""
    entry = read_entry(raw, place, config)
    _require_encodable(entry, place)
    values = _values(entry.values, place)
    messages = _chat(entry, place, config)
    texts = [message["content"] for message in messages] if messages is not None else [entry.text or ""]
    if not texts[-1] and (messages is None or messages[-1]["role"] == "user"):
        raise ConfigError(f"{place}: the prompt's text is empty.")
    for text in texts if entry.values is not None else ():
        _require_filled(text, values, config, place)
    filled = [_fill(text, i, values, config) for i, text in enumerate(texts)]
    choices = read_choices(entry.choices, f"{place}: {config.choices_key!r}")
    references = named_choices(_references(entry.reference, place, config), choices)
    answer = entry.answer["content"] if entry.answer else ""
    if answer_is_reference := not references and bool(answer.strip()):
        references = (answer,)
    reading = Reading(
        form=entry.form,
        text=entry.messages is None,
        system=messages is not None and has_system(messages),
        answer=entry.answer is not None,
        answer_is_reference=answer_is_reference,
        unused=entry.unused,
    )
    return Prompt(
        id=_id(entry.id, place, index, config),
        text=filled[-1][0],
        messages=None
        if messages is None
        else tuple(message | {"content": content} for message, (content, _) in zip(messages, filled, strict=True)),
        references=tuple(_filled_by_name(reference, values) for reference in references),
        values=tuple(values.items()),
        places=tuple(placeholder for _, places in filled for placeholder in places),
        tools=entry.tools,
        choices=tuple(_filled_by_name(choice, values) for choice in choices),
        reading=reading,
    )


def _chat(entry: PromptEntry, place: str, config: PromptsConfig) -> tuple[Message, ...] | None:
    """Return an entry's chat with its system message first; None if it is sent as plain text.

    Raises:
        ConfigError: there are two system messages, or parts that plain text cannot express.
    """
    messages = entry.messages
    if not config.chat:
        for part, description in ((messages, "messages"), (entry.system, "a system message"), (entry.tools, "tools")):
            if part:
                advice = "Remove prompts.chat, or set prompts.prompt_key to a key with a text."
                if part is entry.system:
                    advice = "Remove 'system'."
                raise ConfigError(f"{place}: has {description}, but prompts.chat=false sends plain text. {advice}")
        return None
    if messages is None:
        messages = ({"role": "user", "content": entry.text or ""},)
    system_texts = {
        "prompts.system": config.system,
        "the key 'system'": entry.system,
        "its messages": "" if has_system(messages) else None,
    }
    sources = [name for name, text in system_texts.items() if text is not None]
    if len(sources) > 1:
        raise ConfigError(f"{place}: has two system messages, from {sources[0]} and from {sources[1]}. Remove one.")
    text = config.system if config.system is not None else entry.system
    return messages if text is None else ({"role": "system", "content": text}, *messages)


def _require_encodable(entry: PromptEntry, place: str) -> None:
    pieces = [entry.text, entry.messages, entry.answer, entry.id, entry.reference, entry.values, entry.system]
    pieces.append(entry.choices)
    try:
        json.dumps([*pieces, entry.tools], ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ConfigError(
            f"{place}: {half!r} is half a character (a lone surrogate), which is not valid text."
        ) from error


def _id(value: Any, place: str, index: int, config: PromptsConfig) -> str:
    if value is None:
        return f"p{index:04d}"
    text = as_text(value)
    if not text:
        actual = "an empty string" if text is not None else describe_type(value)
        raise ConfigError(f"{place}: {config.id_key!r} must be a string or a number; got {actual}.")
    return text


def _fill(text: str, message: int, values: Mapping[str, str], config: PromptsConfig) -> tuple[str, list[Place]]:
    """Replace `{name}` by its value; names in `prompts.placeholders` stay as they are."""
    pieces, places, position, length = [], [], 0, 0
    for match in _PLACEHOLDER.finditer(text):
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


def _require_filled(text: str, values: Mapping[str, str], config: PromptsConfig, place: str) -> None:
    """Reject placeholders without a value, in an entry that has values."""
    for match in _ALMOST_PLACEHOLDER.finditer(text):
        name, exact = match[1], match[0] == f"{{{match[1]}}}"
        if exact and name not in values and name not in config.placeholders:
            available = ", ".join(values) or "none"
            raise ConfigError(
                f"{place}: 'values' has no value for {match[0]} (it has {available}). Add one, or declare "
                f"prompts.placeholders=[{name}]. A value of {match[0]!r} keeps the text as it is."
            )
        if not exact and name in values:
            raise ConfigError(f"{place}: {match[0]!r} is not a placeholder. Write {{{name}}}, without blanks.")


def _require_filled_everywhere(prompts: Sequence[Prompt], where: Sequence[str], config: PromptsConfig) -> None:
    """Reject placeholders without a value in an entry without values, if another entry has one."""
    names = {name for prompt in prompts for name, _ in prompt.values} - set(config.placeholders)
    if not names:
        return
    for prompt, place in zip(prompts, where, strict=True):
        if prompt.values:
            continue
        texts = [message["content"] for message in prompt.messages] if prompt.messages is not None else [prompt.text]
        name = next((match[1] for text in texts for match in _PLACEHOLDER.finditer(text) if match[1] in names), None)
        if name is not None:
            raise ConfigError(
                f"{place}: no value for {{{name}}}, which has one in other entries. Add it to 'values', or "
                f"declare prompts.placeholders=[{name}]. A value of '{{{name}}}' keeps the text as it is."
            )


def _filled_by_name(text: str, values: Mapping[str, str]) -> str:
    """Replace names by their values, and keep all other braces, such as those of regular expressions."""
    return _PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), text) if values else text


def _values(values: Any, place: str) -> dict[str, str]:
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


def _references(value: Any, place: str, config: PromptsConfig) -> tuple[str, ...]:
    if value is None:
        return ()
    references = []
    for item in value if isinstance(value, list) else [value]:
        text = as_text(item)
        if text is None or not text.strip():
            actual = "an empty string. Remove it, or write null" if text is not None else describe_type(item)
            hint = ". Put it in quotes" if isinstance(item, bool) else ""
            rule = f"must be a string or a list of strings; got {actual}{hint}"
            raise ConfigError(f"{place}: {config.reference_key!r} {rule}.")
        references.append(text)
    return tuple(references)
