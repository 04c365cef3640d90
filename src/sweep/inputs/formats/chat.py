"""Chats: OpenAI's chat, batch and fine-tuning files, ShareGPT, and TRL's and verl's lists of messages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sweep.errors import ConfigError
from sweep.inputs.config import PromptsConfig
from sweep.inputs.entry_keys import describe_keys, lookup
from sweep.inputs.formats.base import Fields, Format, PromptEntry, register_format
from sweep.inputs.messages import describe_type, is_chat, read_chat, read_tools, split_answer

OPENAI_CHAT = "OpenAI chat"
SHAREGPT_FORM = "ShareGPT conversations"
PREFERENCE = ("chosen", "rejected")
LABELS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}  # of TRL's KTO, in any case


def read_messages(
    value: Any, where: str, config: PromptsConfig, form: str = "", used: tuple[str, ...] = ()
) -> PromptEntry:
    """Return a chat. Its last assistant message is the answer, unless the model is to continue it.

    Raises:
        ConfigError: see `read_chat` and `split_answer`.
    """
    messages = read_chat(parsed(value), where)
    unused: tuple[str, ...] = ()
    if any(len(message) > 2 and "weight" in message for message in messages):  # of OpenAI's fine-tuning files
        unused = ("messages.weight",)
        messages = [{key: value for key, value in message.items() if key != "weight"} for message in messages]
    if config.continue_final_message:
        return PromptEntry(messages=tuple(messages), form=form, used=used, unused=unused)
    before, answer = split_answer(messages, where)
    return PromptEntry(messages=tuple(before), answer=answer, form=form, used=used, unused=unused)


def parsed(value: Any) -> Any:
    """Return the JSON in a string, as in tables with lists in text columns; any other value unchanged."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def read_openai_chat(fields: Fields, place: str, config: PromptsConfig) -> PromptEntry:
    """Read `messages`, with `tools` or the older `functions`, and check that a `prompt` next to them is one of them."""
    entry = read_messages(fields["messages"], f"{place}: messages", config, OPENAI_CHAT, ("messages",))
    if "functions" in fields and "tools" not in fields:
        functions = parsed(fields["functions"])
        wrapped = [{"type": "function", "function": f} for f in functions] if isinstance(functions, list) else functions
        entry = replace(entry, tools=read_tools(wrapped, f"{place}: functions"), used=("messages", "functions"))
    prompt = lookup(fields, config.prompt_key)
    if prompt is None:
        return entry
    # UltraChat repeats the first message's text.
    texts = [message["content"] for message in entry.messages or ()]
    key = config.prompt_key
    if not isinstance(prompt, str) or not any(prompt.strip() in text for text in texts):
        raise ConfigError(
            f"{place}: has messages, and under {key!r} a text that is not among them. Rename or remove one of the two."
        )
    return entry


def read_sharegpt(fields: Fields, place: str, config: PromptsConfig) -> PromptEntry:
    """Read `conversations` of `from` and `value`."""
    used = ("conversations",)
    return read_messages(fields["conversations"], f"{place}: conversations", config, SHAREGPT_FORM, used)


def read_prompt(fields: Fields, place: str, config: PromptsConfig) -> PromptEntry:
    """Read this project's own `prompt`, or a list of messages there as in TRL and verl.

    TRL's `completion` is the reference, unless a `label` says that it is a bad one.
    """
    prompt, key = lookup(fields, config.prompt_key), config.prompt_key
    if is_chat(prompt) or (isinstance(prompt, str) and prompt.startswith("[{") and is_chat(parsed(prompt))):
        entry = read_messages(prompt, f"{place}: {key}", config, f"messages under {key!r}")
        entry = _completion(replace(entry, used=(key,)), fields, place, config)
        truth = lookup(fields, "reward_model.ground_truth")
        if isinstance(truth, str | int | float):
            unused = _rest(fields["reward_model"], "reward_model", ("ground_truth",))
            more = ("reward_model",)
            return replace(
                entry, reference=truth, used=(*entry.used, *more), reference_keys=more, unused=entry.unused + unused
            )
        return entry
    if not isinstance(prompt, str) or not prompt:
        actual = "an empty string" if prompt == "" else describe_type(prompt)
        rule = "must be a non-empty string or a list of messages"
        raise ConfigError(f"{place}: {key!r} {rule}; got {actual}.")
    return _completion(PromptEntry(text=prompt, used=(key,)), fields, place, config)


def _completion(entry: PromptEntry, fields: Fields, place: str, config: PromptsConfig) -> PromptEntry:
    """Take TRL's completion as the reference.

    Raises:
        ConfigError: `label` says neither that it is good nor that it is bad, and there is no other reference.
    """
    completion, label = fields.get("completion"), fields.get("label")
    if completion is None:
        return entry
    good = None if label is None else LABELS.get(str(label).strip().lower())
    if good is None and label is not None:
        if "reference" in config.map or lookup(fields, config.reference_key) is not None:
            return entry
        raise ConfigError(
            f"{place}: 'label' (TRL) must say whether 'completion' is good: true, false, 1 or 0; got "
            f"{str(label)[:40]!r}. Rename it, or set prompts.map.reference=completion."
        )
    if good is False:
        return entry
    text: Any = completion
    if is_chat(completion) and len(completion) == 1:
        text = completion[0].get("content")
    if not isinstance(text, str) or not text.strip():
        return entry
    keys = ("completion", "label") if good else ("completion",)
    form = "TRL prompt and completion"
    return replace(entry, reference=text.strip(), form=form, used=(*entry.used, *keys), reference_keys=keys)


def read_openai_batch(fields: Fields, place: str, config: PromptsConfig) -> PromptEntry:
    """Read a line of an OpenAI batch: a request to chat completions, completions or responses."""
    form, body = "OpenAI batch", fields["body"]
    unused: tuple[str, ...] = tuple(key for key in ("method", "url") if key in fields)
    if "messages" in body:
        entry = read_messages(body["messages"], f"{place}: body.messages", config, form)
        unused += entry.unused + _rest(body, "body", ("messages", "tools"))
        entry = replace(entry, tools=read_tools(body.get("tools"), f"{place}: body.tools"))
    elif str(fields.get("url", "")).endswith("/completions") and isinstance(body.get("prompt"), str):
        entry = PromptEntry(text=body["prompt"], form=form)
        unused += _rest(body, "body", ("prompt",))
    elif str(fields.get("url", "")).endswith("/responses") and isinstance(body.get("input"), str | list):
        entry = _responses(body, place, config, form)
        unused += _rest(body, "body", ("input", "instructions"))
    elif isinstance(body.get("prompt"), list):
        raise ConfigError(f"{place}: body.prompt (OpenAI batch) is a list. Write a line for each prompt.")
    else:
        raise ConfigError(
            f"{place}: OpenAI batch for {fields.get('url', '?')} without body.messages. Only chat completions, "
            f"completions and responses are supported ({describe_keys(body)})."
        )
    return replace(entry, id=fields.get("custom_id"), used=("custom_id", "body"), id_keys=("custom_id",), unused=unused)


def _responses(body: Mapping[str, Any], place: str, config: PromptsConfig, form: str) -> PromptEntry:
    chat = body["input"]
    messages = [{"role": "user", "content": chat}] if isinstance(chat, str) else list(chat)
    for i, item in enumerate(messages):
        if isinstance(item, Mapping) and "role" not in item and item.get("type") != "message":
            kind = f"is of type {item.get('type')!r}. Only messages are supported"
            raise ConfigError(f"{place}: body.input[{i}] (OpenAI responses) {kind}.")
    if isinstance(body.get("instructions"), str):
        messages = [{"role": "system", "content": body["instructions"]}, *messages]
    return read_messages(messages, f"{place}: body.input", config, form)


def refuse_batch_output(fields: Fields, place: str, config: PromptsConfig) -> PromptEntry:
    """Refuse a line of a batch's results."""
    raise ConfigError(f"{place}: is a result of an OpenAI batch, not a request. Use the batch's input file.")


def read_openai_preference(fields: Fields, place: str, config: PromptsConfig) -> PromptEntry:
    """Read a line of OpenAI's preference fine-tuning: the preferred output is the reference."""
    chat = fields["input"]
    entry = read_messages(chat["messages"], f"{place}: input.messages", config, "OpenAI preference fine-tuning")
    preferred = parsed(fields["preferred_output"])
    reference = preferred[0].get("content") if is_chat(preferred) and len(preferred) == 1 else None
    used = ("input", "preferred_output") if isinstance(reference, str) and reference else ("input",)
    return replace(
        entry,
        reference=reference or None,
        tools=read_tools(chat.get("tools"), f"{place}: input.tools"),
        used=used,
        reference_keys=used[1:],
        unused=entry.unused + _rest(chat, "input", ("messages", "tools")),
    )


def refuse_preferences(fields: Fields, place: str, config: PromptsConfig) -> PromptEntry:
    """Refuse pairs whose prompt is only within the answers."""
    raise ConfigError(
        f"{place}: has neither {config.prompt_key!r} nor messages ({describe_keys(fields)}). It looks like preference "
        "pairs. Only prompts are supported: add a key with the prompt."
    )


def _rest(mapping: Mapping[str, Any], name: str, used: tuple[str, ...]) -> tuple[str, ...]:
    """Return the paths of a mapping's keys that are not used."""
    return tuple(f"{name}.{key}" for key in mapping if key not in used)


def _is_batch(fields: Mapping[str, Any]) -> bool:
    return isinstance(fields.get("body"), dict) and bool({"custom_id", "url", "method"} & fields.keys())


def _is_preference(fields: Mapping[str, Any]) -> bool:
    chat = fields.get("input")
    return "preferred_output" in fields and isinstance(chat, Mapping) and "messages" in chat


def _is_batch_output(fields: Mapping[str, Any]) -> bool:
    return "custom_id" in fields and isinstance(fields.get("response"), Mapping)


register_format(Format("openai_chat", ("messages", "functions"), lambda f: "messages" in f, read_openai_chat))
TRL_KEYS = ("completion", "label", "reward_model")
register_format(Format("prompt", TRL_KEYS, lambda f: False, read_prompt))  # by the configured key, see `entries`
register_format(Format("sharegpt", ("conversations",), lambda f: "conversations" in f, read_sharegpt))
register_format(Format("openai_batch", ("custom_id", "method", "url", "body"), _is_batch, read_openai_batch))
register_format(Format("openai_batch_output", ("response",), _is_batch_output, refuse_batch_output))
register_format(Format("openai_preference", ("input", "preferred_output"), _is_preference, read_openai_preference))
register_format(Format("preference_pairs", PREFERENCE, lambda f: {*PREFERENCE} <= f.keys(), refuse_preferences))
