"""Samples of evaluation tools: lm-evaluation-harness, Inspect AI and OpenAI evals."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from sweep.errors import ConfigError
from sweep.inputs.config import PromptsConfig
from sweep.inputs.entry_keys import lookup
from sweep.inputs.formats.base import Fields, Format, PromptEntry, register_format
from sweep.inputs.formats.documents import DocumentEntry
from sweep.inputs.messages import describe_type, is_chat, read_chat

LETTER = re.compile(r"[A-Z]")
INSPECT_LOG = ("output", "scores", "epoch", "model_usage")  # keys of samples in a log, next to input and target


def read_lm_eval(fields: Fields, place: str, config: PromptsConfig) -> PromptEntry:
    """Read a sample logged by lm-evaluation-harness (`--log_samples`), of a task with generated answers.

    With a chat template, the harness logs the chat as a list of messages in JSON.
    """
    arguments = fields["arguments"]
    calls = list(arguments.values()) if isinstance(arguments, Mapping) else arguments
    call = calls[0] if isinstance(calls, list) and len(calls) == 1 else None
    pair = list(call.values()) if isinstance(call, Mapping) else call
    if isinstance(pair, list) and pair and isinstance(pair[0], list) and len(pair[0]) == 1:
        pair = [pair[0][0], *pair[1:]]  # a chat in JSON is logged as a tuple of one text
    if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], dict)):
        raise ConfigError(
            f"{place}: lm-eval sample whose answers are not generated, such as multiple choice. Set "
            "prompts.prompt_key to the key of its text, such as doc.question, and prompts.reference_key."
        )
    target = fields.get("target")
    reference = target if isinstance(target, str) and target.strip() else None
    used = ("doc_id", "arguments", "target") if reference else ("doc_id", "arguments")
    entry = PromptEntry(
        text=pair[0] or None,
        id=fields.get("doc_id"),
        reference=reference,
        form="lm-eval samples",
        used=used,
        id_keys=("doc_id",),
        reference_keys=used[2:],
        unused=("generation arguments",),
    )
    try:
        chat = json.loads(pair[0]) if pair[0].startswith("[{") else None
    except ValueError:
        chat = None
    if is_chat(chat):
        return replace(entry, text=None, messages=tuple(read_chat(chat, f"{place}: arguments")))
    if not pair[0]:
        raise ConfigError(f"{place}: 'arguments' (lm-eval sample) has an empty prompt.")
    return entry


def without_other_filters(entries: Iterator[tuple[str, Any]], config: PromptsConfig) -> Iterator[tuple[str, Any]]:
    """Yield entries without the repetitions of lm-evaluation-harness, which logs each document once per filter.

    The first one names the other filters as unused, once these are reached.
    """
    first: dict[Any, DocumentEntry] = {}
    for place, entry in entries:
        sample = isinstance(entry, dict) and "filter" in entry and _is_lm_eval(entry)
        if not sample or lookup(entry, config.prompt_key) is not None:
            yield place, entry
            continue
        key = json.dumps([entry.get("doc_id"), entry["arguments"]], sort_keys=True, default=str)
        if key not in first:
            first[key] = DocumentEntry(entry, "")
            yield place, first[key]
        elif first[key]["filter"] == entry["filter"]:
            yield place, entry
        else:
            first[key].unused += (f"filter[{entry['filter']}]",)


def read_inspect(fields: Fields, place: str, config: PromptsConfig) -> PromptEntry:
    """Read a sample of Inspect AI: `input` and `target`. A letter as target names one of `choices`."""
    return replace(_sample(fields, place, "target"), form="Inspect samples")


def read_openai_evals(fields: Fields, place: str, config: PromptsConfig) -> PromptEntry:
    """Read a sample of OpenAI evals: `input` and `ideal`."""
    return replace(_sample(fields, place, "ideal"), form="OpenAI evals")


def _sample(fields: Fields, place: str, target_key: str) -> PromptEntry:
    given, target = fields["input"], fields.get(target_key)
    used = ["input", "id", target_key]
    choices = fields.get("choices")
    if isinstance(choices, list) and choices and all(isinstance(choice, str) for choice in choices):
        letters = target if isinstance(target, list) else [target]
        positions = [ord(t) - ord("A") for t in letters if isinstance(t, str) and LETTER.fullmatch(t)]
        if letters and len(positions) == len(letters) and all(p < len(choices) for p in positions):
            target = [choices[p] for p in positions]
            used.append("choices")
    if isinstance(target, list):
        target = [text for text in target if text != ""] or None
    if target == "":
        target = None
    common = PromptEntry(
        reference=target, id=fields.get("id"), used=tuple(used), id_keys=("id",), reference_keys=tuple(used[2:])
    )
    if is_chat(given):
        return replace(common, messages=tuple(read_chat(given, f"{place}: input")))
    if not isinstance(given, str) or not given:
        actual = "an empty string" if given == "" else describe_type(given)
        raise ConfigError(f"{place}: 'input' must be a text or a list of messages; got {actual}.")
    return replace(common, text=given)


def _is_inspect(fields: Mapping[str, Any]) -> bool:
    if "input" not in fields or "target" not in fields or not isinstance(fields["input"], str | list):
        return False
    if "prompt" in fields:
        return False
    return "messages" not in fields or any(key in fields for key in INSPECT_LOG)


def _is_evals(fields: Mapping[str, Any]) -> bool:
    own = {"prompt", "messages"} & fields.keys()
    return not own and {"input", "ideal"} <= fields.keys() and isinstance(fields["input"], str | list)


def _is_lm_eval(fields: Mapping[str, Any]) -> bool:
    return not {"prompt", "messages", "conversations"} & fields.keys() and {"arguments", "doc"} <= fields.keys()


register_format(Format("inspect", ("input", "target", "choices", *INSPECT_LOG), _is_inspect, read_inspect))
LM_EVAL = ("doc_id", "doc", "arguments", "target")
register_format(Format("lm_eval", LM_EVAL, _is_lm_eval, read_lm_eval))
register_format(Format("openai_evals", ("input", "ideal"), _is_evals, read_openai_evals))
