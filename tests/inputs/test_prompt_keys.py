"""Keys, values, ids and references of prompts: what is read, and what is refused as a typo."""

from __future__ import annotations

from typing import Any

import pytest
from prompt_entries import TOOL, USER, read, refusal, summary


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"question": "Q", "n": 1},
            "neither 'prompt' nor messages (keys: question, n). Set prompts.promp",
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
def test_error_messages_name_what_was_found(entry: Any, message: str) -> None:
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


def test_unusual_reference_key_can_be_configured() -> None:
    assert "set prompts.reference_key=references" in refusal({"prompt": "x", "references": ["y"]})
    assert read({"prompt": "x", "references": ["y"]}, reference_key="references")[0].references == ("y",)
    assert read({"prompt": "x", "reference": "y", "references": ["z"]})[0].references == ("y",)


def test_unused_keys_are_listed_in_the_summary() -> None:
    entry = {"prompt": "x", "idx": 1, "prompt_id": "a", "source": "web", "value": 3.5}
    assert summary(entry) == "1 prompt, 0 with references, not used: idx, prompt_id, source, value"


@pytest.mark.parametrize("option", ["prompt_key", "reference_key", "id_key"])
def test_configured_keys_missing_in_all_entries_are_refused(option: str) -> None:
    entries = [{"prompt": "x", "answer": "a"}, {"prompt": "y"}]
    found = refusal(*entries, **{option: "answr"})
    expected = f"prompts.{option}: no entry of prompts.items has 'answr' (keys: prompt, answer)."
    assert found == f"{expected} Did you mean 'answer'?"
    assert read({"prompt": "x", "answer": None}, reference_key="answer")[0].references == ()


def test_nan_is_read_as_null() -> None:
    nan = float("nan")
    assert read({"prompt": "x", "reference": nan, "id": nan, "system": nan, "values": nan}) == read({"prompt": "x"})
    assert "'prompt' nor messages" in refusal({"prompt": nan})
    assert "got the number nan" in refusal({"prompt": "x", "reference": ["a", nan]})


@pytest.mark.parametrize(
    ("reference", "expected"),
    [(12.0, "12"), (12, "12"), (12.5, "12.5"), ("12.0", "12.0"), (1e300, "1e+300"), (-0.0, "0")],
)
def test_whole_numbers_are_written_without_decimals(reference: Any, expected: str) -> None:
    [prompt] = read({"prompt": "{a}", "reference": reference, "values": {"a": reference}, "id": reference})
    assert (prompt.references, prompt.text, prompt.id) == ((expected,), expected, expected)


@pytest.mark.parametrize("reference", [True, float("inf"), "", " ", {}, [["a"]], [None], b"x", [True]])
def test_invalid_reference_is_refused(reference: Any) -> None:
    assert "'reference' must be a string or a list of strings" in refusal({"prompt": "x", "reference": reference})


@pytest.mark.parametrize("name", [True, "", ["a"]])
def test_invalid_id_is_refused(name: Any) -> None:
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


def test_unfilled_placeholder_is_refused_if_other_entries_fill_it() -> None:
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


def test_values_fill_references_and_last_answers() -> None:
    chat = {"messages": [{"role": "user", "content": "Of {a}?"}, {"role": "assistant", "content": "{b}."}]}
    [prompt] = read(chat | {"values": {"a": "Japan", "b": "Tokyo"}})
    assert (prompt.text, prompt.references) == ("Of Japan?", ("Tokyo.",))
    assert read({"prompt": "{a}", "values": {"a": "x"}, "reference": r"{a}\d{2}"})[0].references == (r"x\d{2}",)


def test_long_keys_are_cut_in_messages() -> None:
    found = refusal({"k" * 1000: 1} | {f"key{i}": 1 for i in range(20)})
    assert f"(keys: {'k' * 20}…, key0, key1, key2, key3, key4, key5, key6, …)" in found
