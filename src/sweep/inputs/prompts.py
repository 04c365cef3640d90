"""Prompts, read from the configuration or from a file."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Any

from sweep.errors import ConfigError
from sweep.inputs.bounded import GROWTH, SECONDS, bounded
from sweep.inputs.choices import as_text, named_choices, read_choices
from sweep.inputs.config import PromptsConfig
from sweep.inputs.entries import EntryReader, as_mapping, has_system
from sweep.inputs.entry_keys import check_configured_keys
from sweep.inputs.formats import PromptEntry
from sweep.inputs.formats.logs import without_other_filters
from sweep.inputs.messages import ASSISTANT_ROLES, Message, describe_type
from sweep.inputs.placeholders import PLACEHOLDER, Place, fill, filled_by_name, read_values, require_filled
from sweep.inputs.plain_entries import PlainReader, half_character, numbered_id
from sweep.inputs.prompt import Prompt
from sweep.inputs.prompt_files import Source, open_shots, open_source
from sweep.inputs.prompt_summary import PromptSummary, Reading
from sweep.inputs.readers.base import MAX_PROMPTS, Entries
from sweep.inputs.shots import with_shots

__all__ = ["Prompt", "load", "summarise"]

SECONDS_PER_ENTRY, GROWTH_PER_ENTRY = 0.01, 2**16  # limits of templates


def load(config: PromptsConfig) -> list[Prompt]:
    """Read the prompts of a configuration, at most `config.limit`.

    Raises:
        ConfigError: the source does not exist or has an unknown format, an entry is malformed (with file and line), an
            id is repeated, no entry has a configured key, there are no prompts, or too few examples (see `with_shots`).
    """
    with _without_garbage_collection():
        source = open_source(config)
        prompts = _read(source, config)
        if config.shots:
            examples = open_shots(config)
            pool = prompts if examples is None else _read(examples, replace(config, limit=None))
            prompts = with_shots(prompts, pool, config, (examples or source).name or "prompts.items")
        return prompts


def _read(source: Source, config: PromptsConfig) -> list[Prompt]:
    where = source.name or "prompts.items"
    raw = list(_limited(without_other_filters(source.entries, config), where, config))
    if not raw:
        raise ConfigError(f"The prompt list is empty: {where} holds no prompt.")
    reader = EntryReader(config)
    if reader.map is not None:
        reader.map.check((as_mapping(entry, place, config) for place, entry in raw), where)
    check_configured_keys((as_mapping(entry, place, config) for place, entry in raw), config, where)
    plain = PlainReader(reader, config, source.name)
    with _limited_templates(reader, len(raw)):
        prompts = [
            plain.read(entry, i) or _prompt(reader.read(entry, place), place, i, config, source)
            for i, (place, entry) in enumerate(raw)
        ]
    _require_filled_everywhere(prompts, [place for place, _ in raw], config)
    places: dict[str, str] = {}
    for prompt, (place, _) in zip(prompts, raw, strict=True):
        if (first := places.setdefault(prompt.id, place)) != place:
            raise ConfigError(f"{place}: the id {prompt.id!r} is already used at {first}. Ids must be unique.")
    return prompts


@contextmanager
def _limited_templates(reader: EntryReader, count: int) -> Iterator[None]:
    """Limit the time and memory of `prompts.map` and `prompts.template` over all entries.

    Raises:
        ConfigError: a limit is exceeded.
    """
    if reader.map is None or not reader.map.has_templates:
        yield
        return
    try:
        with bounded(SECONDS + count * SECONDS_PER_ENTRY, GROWTH + count * GROWTH_PER_ENTRY):
            yield
    except TimeoutError as error:
        raise ConfigError(f"prompts.template or prompts.map did not finish: {error}.") from error
    except MemoryError as error:
        raise ConfigError("prompts.template or prompts.map needs too much memory.") from error


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Pause the collection of cycles, which entries do not have. With 100,000 entries it takes a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def summarise(prompts: Sequence[Prompt], config: PromptsConfig) -> PromptSummary:
    """Return a summary of a configuration's prompts."""
    references = sum(bool(prompt.references) for prompt in prompts)
    tools = sum(bool(prompt.tools) for prompt in prompts)
    choices = sum(bool(prompt.choices) for prompt in prompts)
    source = next((prompt.reading.source for prompt in prompts), "") or config.path or config.dataset or ""
    return PromptSummary.of([prompt.reading for prompt in prompts], references, tools, source, choices)


def _limited(entries: Entries, where: str, config: PromptsConfig) -> Entries:
    for number, entry in enumerate(islice(entries, config.limit)):
        if number == MAX_PROMPTS:
            raise ConfigError(f"{where}: has more than {MAX_PROMPTS:,} prompts. Set prompts.limit.")
        yield entry


def _prompt(entry: PromptEntry, place: str, index: int, config: PromptsConfig, source: Source) -> Prompt:
    """Build a prompt from an entry: complete its chat, fill its placeholders."""
    _require_encodable(entry, place)
    values = read_values(entry.values, place)
    messages = _chat(entry, place, config)
    if config.continue_final_message:
        _require_prefill(messages, place)
    elif messages and messages[-1]["role"] in ASSISTANT_ROLES:
        raise ConfigError(
            f"{place}: the chat to send ends with an assistant message. Set prompts.continue_final_message=true to let "
            "the model continue it."
        )
    texts = [message["content"] for message in messages] if messages is not None else [entry.text or ""]
    if not texts[-1] and (messages is None or messages[-1]["role"] == "user"):
        raise ConfigError(f"{place}: the prompt's text is empty.")
    for text in texts if entry.values is not None else ():
        require_filled(text, values, config, place)
    places: tuple[Place, ...] = ()
    if values or config.placeholders:
        filled = [fill(text, i, values, config) for i, text in enumerate(texts)]
        texts, places = [text for text, _ in filled], tuple(one for _, found in filled for one in found)
        if messages is not None:
            messages = tuple(m | {"content": text} for m, text in zip(messages, texts, strict=True))
    choices = read_choices(entry.choices, f"{place}: {config.choices_key!r}")
    references = named_choices(_references(entry.reference, place, config), choices)
    answer = entry.answer["content"] if entry.answer else ""
    if answer_is_reference := not references and "reference" not in config.map and bool(answer.strip()):
        references = (answer,)
    reading = Reading(
        form=entry.form,
        text=entry.messages is None,
        system=messages is not None and has_system(messages),
        answer=entry.answer is not None,
        answer_is_reference=answer_is_reference,
        unused=entry.unused,
        source=source.name,
    )
    return Prompt(
        id=_id(entry.id, place, index, config),
        text=texts[-2 if config.continue_final_message and len(texts) > 1 else -1],
        messages=messages,
        references=tuple(filled_by_name(reference, values) for reference in references),
        values=tuple(values.items()),
        places=places,
        tools=entry.tools,
        choices=tuple(filled_by_name(choice, values) for choice in choices),
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


def _require_prefill(messages: Sequence[Message] | None, place: str) -> None:
    """Check that a chat ends with a text of the assistant, which the model continues.

    Raises:
        ConfigError: it does not.
    """
    last = messages[-1] if messages else {"role": "user"}
    if last["role"] not in ASSISTANT_ROLES or not last["content"].strip():
        found = "one without a text" if last["role"] in ASSISTANT_ROLES else f"a {last['role']} message"
        raise ConfigError(
            f"{place}: prompts.continue_final_message needs a chat that ends with an assistant message; it ends with "
            f"{found}. Add the beginning of the answer."
        )


def _require_encodable(entry: PromptEntry, place: str) -> None:
    """Reject lone surrogates, which JSON can express but UTF-8 cannot.

    Raises:
        ConfigError: names the character.
    """
    for value in (
        *(entry.text, entry.messages, entry.answer, entry.id, entry.reference, entry.values, entry.system),
        *(entry.choices, entry.tools),
    ):
        if value is not None and (half := half_character(value)):
            raise ConfigError(f"{place}: {half!r} is half a character (a lone surrogate), which is not valid text.")


def _id(value: Any, place: str, index: int, config: PromptsConfig) -> str:
    if value is None:
        return numbered_id(index)
    text = as_text(value)
    if not text:
        actual = "an empty string" if text is not None else describe_type(value)
        raise ConfigError(f"{place}: {config.id_key!r} must be a string or a number; got {actual}.")
    return text


def _require_filled_everywhere(prompts: Sequence[Prompt], where: Sequence[str], config: PromptsConfig) -> None:
    """Reject placeholders without a value in an entry without values, if another entry has one."""
    names = {name for prompt in prompts for name, _ in prompt.values} - set(config.placeholders)
    if not names:
        return
    for prompt, place in zip(prompts, where, strict=True):
        if prompt.values:
            continue
        texts = [message["content"] for message in prompt.messages] if prompt.messages is not None else [prompt.text]
        name = next((match[1] for text in texts for match in PLACEHOLDER.finditer(text) if match[1] in names), None)
        if name is not None:
            raise ConfigError(
                f"{place}: no value for {{{name}}}, which has one in other entries. Add it to 'values', or "
                f"declare prompts.placeholders=[{name}]. A value of '{{{name}}}' keeps the text as it is."
            )


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
