"""Prompts are what the user wrote: chats, references, values and keys in the forms that files have them in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sweep.errors import ConfigError
from sweep.inputs import prompts
from sweep.inputs.config import PromptsConfig
from sweep.inputs.prompts import Prompt

USER = {"role": "user", "content": "Capital of Japan?"}
ANSWER = {"role": "assistant", "content": "Tokyo."}
SYSTEM = {"role": "system", "content": "Be kind."}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "minProperties": 1}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}


def read(*entries: Any, **config: Any) -> list[Prompt]:
    return prompts.load(PromptsConfig(items=list(entries), **config))


def summary(*entries: Any, **config: Any) -> str:
    made = PromptsConfig(items=list(entries), **config)
    return str(prompts.summarise(prompts.load(made), made))


def refusal(*entries: Any, **config: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read(*entries, **config)
    return str(caught.value)


def test_the_system_message_goes_before_messages_too() -> None:
    [prompt] = read({"messages": [USER]}, system="Be a pirate.")
    assert prompt.messages == ({"role": "system", "content": "Be a pirate."}, USER)
    assert summary({"messages": [USER]}, "Hi", system="x") == "2 prompts, 0 with references, 2 with a system message"


@pytest.mark.parametrize("entry", [{"prompt": "Hi"}, {"messages": [{"role": "user", "content": "Hi"}]}])
def test_an_entry_brings_its_own_system_message(entry: dict[str, Any]) -> None:
    [prompt] = read(entry | {"system": "Be kind."})
    assert prompt.messages == (SYSTEM, {"role": "user", "content": "Hi"})


def test_an_empty_system_message_is_one_where_it_was_asked_for() -> None:
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
def test_what_cannot_be_sent_is_refused(entry: Any, config: dict[str, Any], message: str) -> None:
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
    assert summary({"messages": chat, "tools": [TOOL]}) == "1 prompt, 0 with references, 1 with tools"
    assert read({"prompt": "Hi", "tools": json.dumps([TOOL])})[0].tools == (TOOL,)


def test_a_last_answer_is_left_out_and_is_the_reference() -> None:
    [prompt] = read({"messages": [USER, ANSWER]})
    assert (prompt.messages, prompt.references, prompt.text) == ((USER,), ("Tokyo.",), "Capital of Japan?")
    assert summary({"messages": [USER, ANSWER]}) == "1 prompt, 1 with references, last answer taken as reference for 1"
    assert read({"messages": [USER, ANSWER], "reference": "Kyoto"})[0].references == ("Kyoto",)
    said = summary({"messages": [USER, ANSWER], "reference": "Kyoto"})
    assert said == "1 prompt, 1 with references, last answer left out of 1"
    calls = {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]}
    assert read(calls)[0].messages == (USER,)
    assert summary(calls) == "1 prompt, 0 with references, last answer left out of 1"
    assert read({"messages": [USER, ANSWER, USER]})[0].messages == (USER, ANSWER, USER)
    assert "has only an assistant message" in refusal({"messages": [ANSWER]})
    assert "ends with two assistant messages" in refusal({"messages": [USER, ANSWER, ANSWER]})


def test_a_prompt_beside_messages_is_mentioned_or_contradicts_them() -> None:
    entry = {"prompt": "Capital of Japan?", "prompt_id": "a1", "messages": [USER, ANSWER]}
    assert summary(entry) == (
        "1 prompt, 1 with references, last answer taken as reference for 1, not used: prompt_id, prompt"
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


def test_a_prompt_may_be_messages() -> None:
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


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"question": "Q", "n": 1},
            "neither 'prompt' nor messages (keys: question, n). Set prompts.promp",
        ),
        (
            {"instruction": "Q", "input": "", "output": "A"},
            "It looks like Alpaca's format. Set prompts.prompt_key=instr",
        ),
        ({"chosen": "a", "rejected": "b"}, "It looks like preference pairs"),
        ({"prompt": 7}, "'prompt' must be a non-empty string or a list of messages; got the number 7"),
        ({"prompt": ["a", "b"]}, "'prompt' must be a non-empty string or a list of messages; got a list"),
        ({"prompt": ""}, "'prompt' must be a non-empty string or a list of messages; got an empty string"),
        ({"messages": [{"role": "user"}]}, "messages[0] (role user) has no content"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0] (role user) has the number 7 as its content"),
        ({"messages": [USER, {"content": "x"}]}, "messages[1] has no role (keys: content)"),
        ({"messages": [USER, "x"]}, "messages[1] must be a mapping with role and content; got a string"),
        ({"messages": {}}, "messages must be a list of mappings with role and content; got a mapping"),
        ({"messages": [USER | {"n": float("inf")}]}, "messages[0].n is the number inf, which is not a JSON value"),
        ({"messages": [USER], "tools": {"a": 1}}, "tools must be a list of tool definitions"),
        ({"prompt": "x", "system": 7}, "'system' must be the text of the system message; got the number 7"),
    ],
)
def test_errors_say_what_was_found(entry: Any, message: str) -> None:
    found = refusal(entry)
    assert found.startswith("prompts.items[0]: ") and message in found


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        ("refrence", "x", "reference"),
        ("references", ["x"], "reference"),
        ("Reference", "x", "reference"),
        ("ID", "x", "id"),
        ("sytem", "x", "system"),
        ("value", {"a": "b"}, "values"),
        ("tool", [TOOL], "tools"),
    ],
)
def test_mistyped_keys_are_refused(key: str, value: Any, meant: str) -> None:
    found = refusal({"prompt": "x", key: value})
    assert f"unknown key {key!r}. Did you mean {meant!r}?" in found
    assert read({"prompt": "x", key: None})  # an empty column


@pytest.mark.parametrize(
    ("entry", "meant"),
    [
        ({"prompt": "x", "refrence": "y"}, "reference"),
        ({"prompt": "x", "refernece": "y"}, "reference"),
        ({"prompt": "x", "references": "y"}, "reference"),
        ({"promt": "x"}, "prompt"),
        ({"mesages": [USER]}, "messages"),
        ({"conversation": [USER]}, "conversations"),
        ({"prompt": "x", "preference": "y"}, None),
        ({"prompt": "x", "reference_id": "y"}, None),
        ({"prompt": "x", "reference_1": "y"}, None),
        ({"prompt": "x", "reference2": "y"}, None),
        ({"prompt": "x", "prompts": "y"}, None),
        ({"prompt": "x", "conversation": [USER]}, None),
        ({"prompt": "x", "mesages": [USER]}, None),
        ({"messages": [USER], "conversation": [USER]}, None),
    ],
)
def test_only_likely_typos_are_refused(entry: dict[str, Any], meant: str | None) -> None:
    key = list(entry)[-1]
    if meant:
        assert f"unknown key {key!r}. Did you mean {meant!r}?" in refusal(entry)
    else:
        assert summary(entry).endswith(f", not used: {key}")


def test_a_mistyped_reference_can_be_meant() -> None:
    assert "set prompts.reference_key=references" in refusal({"prompt": "x", "references": ["y"]})
    assert read({"prompt": "x", "references": ["y"]}, reference_key="references")[0].references == ("y",)
    assert read({"prompt": "x", "reference": "y", "references": ["z"]})[0].references == ("y",)


def test_other_keys_are_counted() -> None:
    entry = {"prompt": "x", "idx": 1, "prompt_id": "a", "source": "web", "value": 3.5}
    assert summary(entry) == "1 prompt, 0 with references, not used: idx, prompt_id, source, value"


@pytest.mark.parametrize("option", ["prompt_key", "reference_key", "id_key"])
def test_keys_that_no_entry_has_are_refused(option: str) -> None:
    entries = [{"prompt": "x", "answer": "a"}, {"prompt": "y"}]
    found = refusal(*entries, **{option: "answr"})
    expected = f"prompts.{option}: no entry of prompts.items has 'answr' (keys: prompt, answer)."
    assert found == f"{expected} Did you mean 'answer'?"
    assert read({"prompt": "x", "answer": None}, reference_key="answer")[0].references == ()


def test_nan_is_none() -> None:
    nan = float("nan")
    assert read({"prompt": "x", "reference": nan, "id": nan, "system": nan, "values": nan}) == read({"prompt": "x"})
    assert "'prompt' nor messages" in refusal({"prompt": nan})
    assert "got the number nan" in refusal({"prompt": "x", "reference": ["a", nan]})


@pytest.mark.parametrize(
    ("reference", "expected"),
    [(12.0, "12"), (12, "12"), (12.5, "12.5"), ("12.0", "12.0"), (1e300, "1e+300"), (-0.0, "0")],
)
def test_numbers_are_written_short(reference: Any, expected: str) -> None:
    [prompt] = read({"prompt": "{a}", "reference": reference, "values": {"a": reference}, "id": reference})
    assert (prompt.references, prompt.text, prompt.id) == ((expected,), expected, expected)


@pytest.mark.parametrize("reference", [True, float("inf"), "", " ", {}, [["a"]], [None], b"x", [True]])
def test_what_is_no_reference_is_refused(reference: Any) -> None:
    assert "'reference' must be a string or a list of strings" in refusal({"prompt": "x", "reference": reference})


@pytest.mark.parametrize("name", [True, "", ["a"]])
def test_what_is_no_id_is_refused(name: Any) -> None:
    assert "'id' must be a string or a number" in refusal({"prompt": "x", "id": name})


def test_values_fill_all_placeholders_or_are_refused() -> None:
    entry = {"prompt": "{a} in {b}", "values": {"a": "x"}}
    assert "'values' has no value for {b} (it has a)" in refusal(entry)
    assert read(entry, placeholders=["b"])[0].text == "x in {b}"
    assert read(entry | {"values": {"a": "x", "b": "{b}"}})[0].text == "x in {b}"
    assert "'values' has no value for {a} (it has none)" in refusal({"prompt": "{a}", "values": {"a": None}})
    assert "'{ a }' is not a placeholder" in refusal({"prompt": "{ a }", "values": {"a": "x"}})
    assert "under 'a'; expected a string" in refusal({"prompt": "{a}", "values": {"a": True}})
    assert read({"prompt": "f{x} and {2}"})[0].text == "f{x} and {2}"  # no values at all
    assert read({"prompt": "{a}, x^{2}", "values": {"a": "b"}})[0].text == "b, x^{2}"


def test_a_placeholder_that_other_entries_fill_is_refused_where_nothing_fills_it() -> None:
    filled, bare = {"prompt": "In {country}?", "values": {"country": "Peru"}}, {"prompt": "To {country}?"}
    message = (
        "prompts.items[{}]: no value for {{country}}, which has one in other entries. Add it to 'values', or declare "
        "prompts.placeholders=[country]. A value of '{{country}}' keeps the text as it is."
    )
    assert refusal(filled, bare) == message.format(1)
    assert refusal(bare, filled) == message.format(0)
    assert refusal(filled, {"messages": [USER | {"content": "To {country}?"}]}) == message.format(1)
    assert "'values' has no value for {country} (it has none)" in refusal(bare | {"values": {}})
    assert read(bare)[0].text == "To {country}?"
    assert len(read(filled, {"prompt": "f{x}"}, bare | {"values": {"country": "{country}"}})) == 3
    assert len(read(filled, bare, placeholders=["country"])) == 2


def test_advice_does_not_lead_in_a_circle() -> None:
    assert refusal({"messages": [USER], "prompt": "Other"}) == (
        "prompts.items[0]: has messages, and under 'prompt' a text that is not among them. Rename or remove one of "
        "the two."
    )
    assert refusal({"prompt": "x", "system": "y"}, chat=False) == (
        "prompts.items[0]: has a system message, but prompts.chat=false sends plain text. Remove 'system'."
    )


def test_values_fill_references_and_last_answers() -> None:
    chat = {"messages": [{"role": "user", "content": "Of {a}?"}, {"role": "assistant", "content": "{b}."}]}
    [prompt] = read(chat | {"values": {"a": "Japan", "b": "Tokyo"}})
    assert (prompt.text, prompt.references) == ("Of Japan?", ("Tokyo.",))
    assert read({"prompt": "{a}", "values": {"a": "x"}, "reference": r"{a}\d{2}"})[0].references == (r"x\d{2}",)


def test_files_are_named_in_the_summary(tmp_path: Path) -> None:
    path = tmp_path / "six.jsonl"
    lines = [{"prompt": f"{i}", "reference": "x"} for i in range(4)]
    path.write_text(
        "\n".join(map(json.dumps, [*lines, {"messages": [SYSTEM, USER, ANSWER]}, {"messages": [SYSTEM, USER]}]))
    )
    config = PromptsConfig(path=str(path))
    assert str(prompts.summarise(prompts.load(config), config)) == (
        f"{path}: 6 prompts, 5 with references, 2 with a system message, last answer taken as reference for 1"
    )


def test_long_keys_are_cut_in_messages() -> None:
    found = refusal({"k" * 1000: 1} | {f"key{i}": 1 for i in range(20)})
    assert f"(keys: {'k' * 20}…, key0, key1, key2, key3, key4, key5, key6, …)" in found
