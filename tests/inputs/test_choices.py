"""Choices of prompts: how they are read, and which of them references name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sweep.errors import ConfigError
from sweep.inputs import prompts
from sweep.inputs.choices import named_choices, right_choices
from sweep.inputs.config import PromptsConfig
from sweep.inputs.prompts import Prompt, summarise


def read(*entries: Any, **changes: Any) -> list[Prompt]:
    return prompts.load(PromptsConfig(items=list(entries), **{"choices_key": "choices"} | changes))


def test_choices_are_read_only_if_asked_for() -> None:
    entry = {"prompt": "Hi", "choices": ["a", "b"]}
    assert read(entry)[0].choices == ("a", "b")
    [prompt] = config_read = read(entry, choices_key=None)
    assert prompt.choices == ()
    assert str(summarise(config_read, PromptsConfig(items=[]))).endswith("not used: choices")
    assert str(summarise(read(entry), PromptsConfig(items=[]))) == "1 prompt, 0 with references, 1 with choices"


def test_numbers_and_placeholders_become_text() -> None:
    [prompt] = read({"prompt": "{x}?", "choices": [12.0, 0.5, "{x} or {y}"], "values": {"x": "red"}, "reference": 12})
    assert prompt.choices == ("12", "0.5", "red or {y}") and prompt.references == ("12",)


def test_choices_of_a_table_are_json(tmp_path: Path) -> None:
    path = tmp_path / "quiz.csv"
    path.write_text('prompt,options,reference\nHi,"[""a"", "" b""]",1\nHo,,a\n')
    first, second = prompts.load(PromptsConfig(path=str(path), choices_key="options"))
    assert first.choices == ("a", " b") and first.references == (" b",)
    assert second.choices == () and second.references == ("a",)


def test_key_that_no_entry_has_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"prompts.choices_key: no entry of .* has 'options'"):
        read({"prompt": "Hi", "choices": ["a", "b"]}, choices_key="options")


@pytest.mark.parametrize(
    ("references", "choices", "named"),
    [
        (("1",), ("a", "b"), ("b",)),
        (("0", "b"), ("a", "b"), ("a", "b")),
        (("2",), ("a", "b"), ("2",)),  # beyond the last
        (("1",), ("3", "b"), ("1",)),  # may be a number among numbers
        (("1",), ("-1.5", "1,000"), ("1",)),
        (("1",), (), ("1",)),
        (("-1", "1.0", "b"), ("a", "b"), ("-1", "1.0", "b")),
    ],
)
def test_references_may_be_positions(references: tuple[str, ...], choices: tuple[str, ...], named: object) -> None:
    assert named_choices(references, choices) == named


def test_white_space_does_not_hide_the_right_choice() -> None:
    assert right_choices(["Yes "], [" No", " Yes"], "p") == (1,)
    assert right_choices(["b", "c"], ["a", "b", "c"], "p") == (1, 2)
    with pytest.raises(
        ConfigError, match=r"p: none of its references \('yes'\) is one of its choices \(' No', ' Yes'\)"
    ):
        right_choices(["yes"], [" No", " Yes"], "p")
