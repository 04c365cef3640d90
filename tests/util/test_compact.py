"""Compact dataclasses travel as what they are."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass

import pytest

from sweep.engines.base import Completion, Request, Sampling
from sweep.util.compact import compact


@compact
@dataclass(frozen=True, slots=True)
class One:
    value: int


@pytest.mark.parametrize(
    "own",
    [
        One(3),
        Completion("hi", (1, 2), "stop", ({1: -0.5},)),
        Request((1, 2), (3,), None, Sampling(max_tokens=2, stop=("a",)), scored=1, finite=True),
    ],
)
def test_a_copy_is_equal(own: object) -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(own, protocol)) == own
    assert copy.deepcopy(own) == own and b"_dataclass_setstate" not in pickle.dumps(own)
