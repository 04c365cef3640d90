"""Counts in messages are in the singular or plural."""

from __future__ import annotations

import pytest

from sweep.config.schema import SweepSettings
from sweep.errors import TooManyFailures
from sweep.util.counts import counted


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [(0, "point", "0 points"), (1, "point", "1 point"), (2, "engine start", "2 engine starts")],
)
def test_noun_agrees_with_its_number(number: int, noun: str, text: str) -> None:
    assert counted(number, noun) == text


@pytest.mark.parametrize(("failed", "text"), [(1, "1 point failed"), (2, "2 points failed")])
def test_failures_are_counted_in_words(failed: int, text: str) -> None:
    with pytest.raises(TooManyFailures, match=f"stopped: {text} "):
        SweepSettings(on_error="stop").check_failures(failed)
