import copy
import pickle
from dataclasses import dataclass, replace
from typing import Any

import pytest

from sweep.core import section
from sweep.core.section import Section, value_digest
from sweep.inputs.config import ModelConfig, PromptsConfig
from sweep.testing.scripted import ScriptedConfig


@dataclass(frozen=True, slots=True)
class Small(Section):
    values: list[Any]


@dataclass(frozen=True, slots=True)
class Other(Section):
    values: list[Any]


@dataclass(frozen=True)
class OfPlugin(ScriptedConfig):
    setting: int = 1


def test_equal_sections_have_equal_digests_and_others_do_not() -> None:
    assert ModelConfig("a").content_digest == ModelConfig("a").content_digest
    assert ModelConfig("a").content_digest != ModelConfig("b").content_digest
    assert PromptsConfig(items=["x"]).content_digest != PromptsConfig(items=["y"]).content_digest


@pytest.mark.parametrize(("one", "other"), [(1, 1.0), (1, True), ("1", 1), (None, "null"), ([1], [[1]])])
def test_values_of_different_types_have_different_digests(one: Any, other: Any) -> None:
    assert Small([one]).content_digest != Small([other]).content_digest


def test_classes_with_equal_values_have_different_digests() -> None:
    assert Small([1]).content_digest != Other([1]).content_digest


def test_the_order_of_keys_does_not_count() -> None:
    assert value_digest({"a": 1, "b": 2}) == value_digest({"b": 2, "a": 1})


@pytest.mark.parametrize("value", [{1: "a", "b": 2}, b"bytes", float("nan"), "\ud800", {"a": {1: object, "x": ()}}])
def test_any_value_has_a_digest(value: Any) -> None:
    assert Small([value]).content_digest == Small([copy.deepcopy(value)]).content_digest


def test_a_digest_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    monkeypatch.setattr(section, "value_digest", lambda value: counted.append(value) or "digest")
    model = ModelConfig("a")
    assert [model.content_digest for _ in range(3)] == ["digest"] * 3
    assert len(counted) == 1


@pytest.mark.parametrize("value", [ModelConfig("a"), ScriptedConfig(), OfPlugin()])
def test_the_digest_is_part_of_neither_equality_nor_pickles(value: Any) -> None:
    fresh = pickle.dumps(value)
    digest = value.content_digest
    assert value == pickle.loads(fresh)
    assert pickle.dumps(value) == fresh
    assert pickle.loads(pickle.dumps(value)).content_digest == replace(value).content_digest == digest
