"""Entries of prompt files and of `prompts.items`, in any of the supported forms."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sweep.errors import ConfigError
from sweep.inputs.config import PromptsConfig
from sweep.inputs.entry_keys import check_keys, describe_keys, is_missing, lookup, unused_keys
from sweep.inputs.messages import SYSTEM_ROLES, Message, describe_type, is_chat, read_chat, read_tools, split_answer
from sweep.inputs.prompt_tables import UnreadText

# Columns that often hold the prompt's text; suggested in error messages.
TEXT_KEYS = ("question", "text", "instruction", "query", "problem", "input", "goal", "content", "user")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptEntry:
    """An entry as written, before placeholders and defaults are filled in.

    Attributes:
        text: the prompt, if the entry is not a chat.
        messages: the chat up to the point where the model answers.
        answer: the assistant message at the end of the chat, which is not sent.
        id, reference, choices, values: as written; None if absent.
        system: the entry's system message, if it is not among the messages.
        tools: tool definitions, as JSON values.
        form: name of the foreign format that was recognised; empty for this project's own.
        unused: keys without meaning for the prompt.
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
    unused: tuple[str, ...] = ()


def read_entry(raw: Any, place: str, config: PromptsConfig) -> PromptEntry:
    """Read an entry: a string, or a mapping in one of the forms listed in docs/guide/prompts.md.

    Args:
        raw: the entry.
        place: file and line, or configuration key; starts every error message.
        config: names the keys.

    Raises:
        ConfigError: the form is unknown, a key is misspelt, or a value has the wrong type.
    """
    entry = as_mapping(raw, place, config)
    check_keys(entry, place, config)
    fields = {key: value for key, value in entry.items() if not is_missing(value)}
    result, used_keys = _read_form(fields, place, config)
    reference = lookup(fields, config.reference_key)
    # The project's own keys also apply to foreign formats that have no field for them.
    return replace(
        result,
        id=result.id if (configured_id := lookup(fields, config.id_key)) is None else configured_id,
        reference=result.reference if reference is None else reference,
        choices=None if config.choices_key is None else lookup(fields, config.choices_key),
        values=fields.get("values"),
        system=_system(fields.get("system"), place),
        tools=result.tools or read_tools(_parsed(fields.get("tools")), f"{place}: tools"),
        unused=unused_keys(entry, config, used_keys) + result.unused,
    )


def as_mapping(raw: Any, place: str, config: PromptsConfig) -> dict[str, Any]:
    """Return an entry as a mapping; a string becomes the prompt's text.

    Raises:
        ConfigError: neither a string nor a mapping.
    """
    if isinstance(raw, str):
        return {config.prompt_key: raw}
    if not isinstance(raw, dict):
        raise ConfigError(f"{place}: a prompt must be a string or a mapping; got {describe_type(raw)}.")
    return raw


def _read_form(fields: dict[str, Any], place: str, config: PromptsConfig) -> tuple[PromptEntry, tuple[str, ...]]:
    """Return the prompt in an entry, and the keys of its form that were used."""
    prompt = lookup(fields, config.prompt_key)
    explicit = config.prompt_key != "prompt" and prompt is not None  # the configured key takes precedence over messages
    if "messages" in fields and not explicit:
        return _with_text(_chat(fields["messages"], f"{place}: messages"), prompt, place, config), ()
    if is_chat(prompt):
        return _verl(fields, _chat(prompt, f"{place}: {config.prompt_key}", f"messages under {config.prompt_key!r}"))
    if prompt is not None:
        if not isinstance(prompt, str) or not prompt:
            actual = "an empty string" if prompt == "" else describe_type(prompt)
            rule = "must be a non-empty string or a list of messages"
            raise ConfigError(f"{place}: {config.prompt_key!r} {rule}; got {actual}.")
        return PromptEntry(text=prompt), ()
    if "conversations" in fields:
        return _chat(fields["conversations"], f"{place}: conversations", "ShareGPT conversations"), ()
    if isinstance(body := fields.get("body"), dict) and {"custom_id", "url", "method"} & fields.keys():
        return _openai_batch(fields, body, place), ("custom_id", "method", "url", "body")
    if "arguments" in fields and "doc" in fields:
        return _lm_eval(fields, place), ("doc_id", "doc", "arguments", "target")
    raise ConfigError(f"{place}: has neither {config.prompt_key!r} nor messages ({_advice(fields)}")


def _chat(value: Any, where: str, form: str = "") -> PromptEntry:
    messages, answer = split_answer(read_chat(_parsed(value), where), where)
    return PromptEntry(messages=tuple(messages), answer=answer, form=form)


def _with_text(entry: PromptEntry, prompt: Any, place: str, config: PromptsConfig) -> PromptEntry:
    """Check that a text next to messages is part of them, as in UltraChat."""
    if prompt is None:
        return entry
    key = config.prompt_key
    texts = [message["content"] for message in entry.messages or ()]
    if not isinstance(prompt, str) or not any(prompt.strip() in text for text in texts):
        raise ConfigError(
            f"{place}: has messages, and under {key!r} a text that is not among them. Rename or remove one of the two."
        )
    return replace(entry, unused=(key,))


def _verl(fields: dict[str, Any], entry: PromptEntry) -> tuple[PromptEntry, tuple[str, ...]]:
    """Take the reference answer from its place in verl's files."""
    truth = lookup(fields, "reward_model.ground_truth")
    if isinstance(truth, str | int | float):
        return replace(entry, reference=truth), ("reward_model",)
    return entry, ()


def _openai_batch(fields: dict[str, Any], body: dict[str, Any], place: str) -> PromptEntry:
    form = "OpenAI batch"
    rest = tuple(f"body.{key}" for key in body if key not in ("messages", "tools"))
    if "messages" not in body:
        url = fields.get("url", "?")
        raise ConfigError(
            f"{place}: OpenAI batch for {url} without body.messages. Only chat completions are supported "
            f"({describe_keys(body)})."
        )
    chat = _chat(body["messages"], f"{place}: body.messages", form)
    tools = read_tools(body.get("tools"), f"{place}: body.tools")
    return replace(chat, id=fields.get("custom_id"), tools=tools, unused=rest)


def _lm_eval(fields: dict[str, Any], place: str) -> PromptEntry:
    """Read a sample logged by lm-evaluation-harness, of a task with generated answers."""
    arguments = fields["arguments"]
    calls = list(arguments.values()) if isinstance(arguments, Mapping) else arguments
    call = calls[0] if isinstance(calls, list) and len(calls) == 1 else None
    pair = list(call.values()) if isinstance(call, Mapping) else call
    if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], dict)):
        raise ConfigError(
            f"{place}: lm-eval sample whose answers are not generated, such as multiple choice. Set "
            "prompts.prompt_key to the key of its text, such as doc.question, and prompts.reference_key."
        )
    target = fields.get("target")
    reference = target if isinstance(target, str) and target.strip() else None
    return PromptEntry(text=pair[0], id=fields.get("doc_id"), reference=reference, form="lm-eval samples")


def _system(value: Any, place: str) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ConfigError(f"{place}: 'system' must be the text of the system message; got {describe_type(value)}.")
    return value


def has_system(messages: tuple[Message, ...]) -> bool:
    """Return whether a chat contains a system message."""
    return any(message["role"] in SYSTEM_ROLES for message in messages)


def _parsed(value: Any) -> Any:
    """Return the JSON in a string, as in tables with lists in text columns; any other value unchanged."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _advice(fields: Mapping[str, Any]) -> str:
    """Return the rest of an error message: the keys that exist, and what the entry looks like."""
    keys_found = f"{describe_keys(fields)})."
    keys = fields.keys()
    if {"chosen", "rejected"} <= keys:
        return f"{keys_found} It looks like preference pairs. Only prompts are supported."
    if {"instruction", "output"} <= keys:
        note = "" if not fields.get("input") else " This ignores 'input'."
        return (
            f"{keys_found} It looks like Alpaca's format. "
            f"Set prompts.prompt_key=instruction prompts.reference_key=output.{note}"
        )
    text = next((key for key in TEXT_KEYS if isinstance(fields.get(key), str | UnreadText)), None)
    return f"{keys_found} Set prompts.prompt_key={text}." if text else keys_found
