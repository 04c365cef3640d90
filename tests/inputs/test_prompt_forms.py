"""Forms of prompts: chats, tools, formats of other tools, and their summary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from prompt_entries import ANSWER, CALL, SYSTEM, TOOL, USER, read, refusal, summary

from sweep.errors import ConfigError
from sweep.inputs import prompts
from sweep.inputs.config import PromptsConfig


def test_configured_system_message_is_put_before_messages() -> None:
    [prompt] = read({"messages": [USER]}, system="Be a pirate.")
    assert prompt.messages == ({"role": "system", "content": "Be a pirate."}, USER)
    assert summary({"messages": [USER]}, "Hi", system="x") == (
        "2 prompts, 0 with references, 2 with a system message, read as OpenAI chat (1)"
    )


@pytest.mark.parametrize("entry", [{"prompt": "Hi"}, {"messages": [{"role": "user", "content": "Hi"}]}])
def test_system_message_of_an_entry_overrides_the_configured_one(entry: dict[str, Any]) -> None:
    [prompt] = read(entry | {"system": "Be kind."})
    assert prompt.messages == (SYSTEM, {"role": "user", "content": "Hi"})


def test_configured_empty_system_message_is_kept() -> None:
    [prompt] = read("Hi", system="")
    assert prompt.messages == ({"role": "system", "content": ""}, {"role": "user", "content": "Hi"})
    assert read({"prompt": "Hi", "system": ""})[0].messages == ({"role": "user", "content": "Hi"},)  # an empty column


@pytest.mark.parametrize(
    ("entry", "config", "message"),
    [
        ({"messages": [SYSTEM, USER]}, {"system": "x"}, "two system messages, from prompts.system and from its mess"),
        ({"prompt": "x", "system": "y"}, {"system": "x"}, "from prompts.system and from the key 'system'"),
        ({"messages": [SYSTEM, USER], "system": "y"}, {}, "from the key 'system' and from its messages"),
        ({"messages": [USER]}, {"chat": False}, "has messages, but prompts.chat=false sends plain text"),
        ({"prompt": "x", "system": "y"}, {"chat": False}, "has a system message, but prompts.chat=false"),
        ({"prompt": "x", "tools": [TOOL]}, {"chat": False}, "has tools, but prompts.chat=false"),
    ],
)
def test_entries_that_cannot_be_sent_are_refused(entry: Any, config: dict[str, Any], message: str) -> None:
    found = refusal(entry, **config)
    assert found.startswith("prompts.items[0]: has ") and message in found


def test_system_and_plain_text_exclude_each_other() -> None:
    with pytest.raises(ConfigError, match=r"prompts\.system needs prompts\.chat=true"):
        PromptsConfig(items=["Hi"], chat=False, system="x")


def test_tools_calls_and_ids_are_kept() -> None:
    chat = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None},
        {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "rain"},
        {"role": "assistant", "tool_calls": [CALL], "reasoning_content": "again"},
        {"role": "tool", "tool_call_id": "c1", "content": None},
    ]
    [prompt] = read({"messages": chat, "tools": [TOOL]})
    assert prompt.tools == (TOOL,)
    assert prompt.messages == (
        USER,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "rain", "tool_call_id": "c1", "name": "weather"},
        {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "again"},
        {"role": "tool", "content": "", "tool_call_id": "c1"},
    )
    assert (
        summary({"messages": chat, "tools": [TOOL]}) == "1 prompt, 0 with references, 1 with tools, read as OpenAI chat"
    )
    assert read({"prompt": "Hi", "tools": json.dumps([TOOL])})[0].tools == (TOOL,)


def test_last_assistant_message_becomes_the_reference() -> None:
    [prompt] = read({"messages": [USER, ANSWER]})
    assert (prompt.messages, prompt.references, prompt.text) == ((USER,), ("Tokyo.",), "Capital of Japan?")
    assert (
        summary({"messages": [USER, ANSWER]})
        == "1 prompt, 1 with references, read as OpenAI chat, last answer taken as reference for 1"
    )
    assert read({"messages": [USER, ANSWER], "reference": "Kyoto"})[0].references == ("Kyoto",)
    said = summary({"messages": [USER, ANSWER], "reference": "Kyoto"})
    assert said == "1 prompt, 1 with references, read as OpenAI chat, last answer left out of 1"
    calls = {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]}
    assert read(calls)[0].messages == (USER,)
    assert summary(calls) == "1 prompt, 0 with references, read as OpenAI chat, last answer left out of 1"
    assert read({"messages": [USER, ANSWER, USER]})[0].messages == (USER, ANSWER, USER)
    assert "has only an assistant message" in refusal({"messages": [ANSWER]})
    assert "ends with two assistant messages" in refusal({"messages": [USER, ANSWER, ANSWER]})


def test_prompt_next_to_messages_is_ignored_or_refused() -> None:
    entry = {"prompt": "Capital of Japan?", "prompt_id": "a1", "messages": [USER, ANSWER]}
    assert summary(entry) == (
        "1 prompt, 1 with references, read as OpenAI chat, last answer taken as reference for 1, not used: prompt, prompt_id"
    )
    assert "under 'prompt' a text that is not among them" in refusal(entry | {"prompt": "Capital of Peru?"})
    assert read(entry | {"question": "Why?"}, prompt_key="question")[0].text == "Why?"


def test_texts_in_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}, "c"]
    assert read({"messages": [{"role": "user", "content": parts}]})[0].text == "a\nb\nc"
    image = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}]
    assert "messages[0].content[1] is a part of type 'image_url'" in refusal(
        {"messages": [{"role": "user", "content": image}]}
    )


def test_list_of_messages_as_prompt_is_read() -> None:
    [prompt] = read({"prompt": [SYSTEM, USER], "answer": "Tokyo"}, reference_key="answer")
    assert (prompt.messages, prompt.references) == ((SYSTEM, USER), ("Tokyo",))
    [verl] = read({"prompt": [USER], "reward_model": {"style": "rule", "ground_truth": "12"}, "ability": "math"})
    assert (verl.messages, verl.references) == ((USER,), ("12",))
    assert read({"ask": [USER]}, prompt_key="ask")[0].messages == (USER,)


def test_sharegpt_conversations() -> None:
    turns = [
        {"from": "system", "value": "Be kind."},
        {"from": "human", "value": "Capital of Japan?"},
        {"from": "gpt", "value": "Tokyo."},
    ]
    [prompt] = read({"id": "x1", "conversations": turns})
    assert (prompt.id, prompt.messages, prompt.references) == ("x1", (SYSTEM, USER), ("Tokyo.",))
    assert "read as ShareGPT conversations" in summary({"conversations": turns})
    assert "'robot' is not a ShareGPT role" in refusal({"conversations": [{"from": "robot", "value": "x"}]})


def test_openai_batch_lines() -> None:
    line = {"custom_id": "r1", "method": "POST", "url": "/v1/chat/completions"}
    [prompt] = read(line | {"body": {"model": "m", "messages": [SYSTEM, USER], "tools": [TOOL]}})
    assert (prompt.id, prompt.messages, prompt.tools) == ("r1", (SYSTEM, USER), (TOOL,))
    said = refusal({"custom_id": "r1", "url": "/v1/embeddings", "body": {"model": "m", "input": "x"}})
    assert "OpenAI batch for /v1/embeddings without body.messages" in said and "keys: model, input" in said


def test_lm_eval_samples() -> None:
    sample = {"doc_id": 3, "doc": {"question": "8+4?"}, "target": "12"}
    generated = sample | {"arguments": {"gen_args_0": {"arg_0": "Q: 8+4?\nA:", "arg_1": {"until": ["Q:"]}}}}
    [prompt] = read(generated)
    assert (prompt.id, prompt.text, prompt.references) == ("3", "Q: 8+4?\nA:", ("12",))
    choice = {"arg_0": "Q: 8+4?\nA:", "arg_1": " 11"}
    assert "whose answers are not generated" in refusal(sample | {"arguments": {"gen_args_0": choice, "b": choice}})
    assert read(generated, prompt_key="doc.question", reference_key="target")[0].text == "8+4?"


def test_advice_never_suggests_another_refused_setting() -> None:
    assert refusal({"messages": [USER], "prompt": "Other"}) == (
        "prompts.items[0]: has messages, and under 'prompt' a text that is not among them. Rename or remove one of "
        "the two."
    )
    assert refusal({"prompt": "x", "system": "y"}, chat=False) == (
        "prompts.items[0]: has a system message, but prompts.chat=false sends plain text. Remove 'system'."
    )


def test_files_are_named_in_the_summary(tmp_path: Path) -> None:
    path = tmp_path / "six.jsonl"
    lines = [{"prompt": f"{i}", "reference": "x"} for i in range(4)]
    path.write_text(
        "\n".join(map(json.dumps, [*lines, {"messages": [SYSTEM, USER, ANSWER]}, {"messages": [SYSTEM, USER]}]))
    )
    config = PromptsConfig(path=str(path))
    assert str(prompts.summarise(prompts.load(config), config)) == (
        f"{path}: 6 prompts, 5 with references, 2 with a system message, read as OpenAI chat (2), last answer taken as reference for 1"
    )
