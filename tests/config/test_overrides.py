"""Tests of overrides: the axis, the text and the number of each."""

from __future__ import annotations

import math

import pytest

from sweep.config.overrides import Override, axis_key


@pytest.mark.parametrize(
    ("spelled", "meant"),
    [
        (r"Be\ brief.", "Be brief."),
        ("'lr=0.1/text.jsonl'", "lr=0.1/text.jsonl"),
        (r"'it\'s'", "it's"),
        (r"a\=b\,c", "a=b,c"),
        ("'1.5'", "'1.5'"),  # a string, unlike the number 1.5
        ("'null'", "'null'"),
        ("''", "''"),
        ("{positions: [0]}", "{positions: [0]}"),
        (r"C:\\dir", r"C:\dir"),
    ],
)
def test_a_text_is_read_as_it_was_meant(spelled: str, meant: str) -> None:
    override = Override.read(f"prompts.system={spelled}")
    assert (override.text, override.number, override.plain) == (meant, None, None)
    assert override.line == f"prompts.system={spelled}"


@pytest.mark.parametrize("text", ["0", "-3", "1.50", "-0.0", "1e-05", "2.0e+3", "1e999", "123456789012345678"])
def test_a_plain_number_is_read_once_for_axis_and_configuration(text: str) -> None:
    override = Override.read(f"seed={text}")
    assert override.number == float(text) and override.text == text
    assert repr(override.plain) == (repr(int(text)) if text.lstrip("-").isdecimal() else repr(float(text)))


@pytest.mark.parametrize("text", ["007", "1_0", ".5", "5.", "inf", "nan", "1e4000", "1234567890123456789"])
def test_another_number_is_one_on_an_axis_and_left_to_hydra_in_the_configuration(text: str) -> None:
    override = Override.read(f"seed={text}")
    assert override.plain is None and override.number is not None
    assert override.number == float(text) or math.isnan(override.number)


@pytest.mark.parametrize(
    ("key", "axis", "is_axis"),
    [
        ("transform.factor", "transform.factor", True),
        ("+transform@transform.0", "transform.0.name", True),
        ("++prompts.chat_template_kwargs.x", "prompts.chat_template_kwargs.x", True),
        ("hydra/launcher", "hydra.launcher", False),
        ("sweep.dir", "sweep.dir", False),
        ("scoring", "scoring", False),
        ("~experiment", "experiment", True),
    ],
)
def test_keys_become_axes(key: str, axis: str, is_axis: bool) -> None:
    assert axis_key(key) == axis
    override = Override.read(f"{key}=1")
    assert (override.key, override.axis, override.is_axis) == (key, axis, is_axis)
