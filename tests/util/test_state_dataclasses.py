"""Dataclasses that are read from JSON of state files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from sweep.util import state_files


@dataclass
class Made:
    number: int = 0
    real: float = 0.0
    texts: tuple[str, ...] = ()
    pairs: dict[str, int | None] | None = None


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({}, True),
        ({"number": 1, "real": 1}, True),
        ({"number": 1.0}, False),
        ({"number": True}, False),
        ({"real": "1"}, False),
        ({"texts": ["a", "b"]}, True),
        ({"texts": "ab"}, False),
        ({"texts": ["a", 1]}, False),
        ({"pairs": {"a": 1, "b": None}}, True),
        ({"pairs": {"a": "1"}}, False),
        ({"other": 1}, False),
        ([], False),
    ],
)
def test_dataclass_is_built_from_json_of_matching_types(given: Any, taken: bool) -> None:
    if taken:
        assert state_files.build(Made, given) == Made(**given)
    else:
        with pytest.raises(TypeError):
            state_files.build(Made, given)
