"""Measures of health against cases worked out by hand, and against slow definitions."""

from __future__ import annotations

import math
import random
import time
import zlib
from itertools import pairwise

import pytest

from sweep.engines.base import Completion
from sweep.scoring import divergence
from sweep.scoring.divergence import prefix_agreement
from sweep.scoring.health import (
    LOOP_LONG,
    LOOP_REPETITIONS,
    LOOP_SHARE,
    LOOP_TOKENS,
    REFUSAL_CHARACTERS,
    REFUSALS,
    compression_ratio,
    distinct,
    empty,
    health,
    longest_repeat,
    loop,
    non_printable,
    refusal,
)
from sweep.scoring.measures import score
from sweep.scoring.registry import measures_of


def test_distinct() -> None:
    ids = [1, 2, 1, 2, 1]
    assert [distinct(ids, n) for n in (1, 2, 3)] == [2 / 5, 2 / 4, 2 / 3]
    assert distinct([1, 2], 2) == 1
    assert math.isnan(distinct([1, 2], 3)) and math.isnan(distinct([], 1))


@pytest.mark.parametrize(
    ("ids", "longest"),
    [([], 0), ([7], 0), ([1, 2, 3], 0), ([1, 2, 1], 1), ([1, 2, 3, 9, 1, 2, 3], 3), ([5] * 6, 5), ([1, 2, 1, 2, 1], 3)],
)
def test_longest_repeat(ids: list[int], longest: int) -> None:
    assert longest_repeat(ids) == longest


def slow_longest_repeat(ids: list[int]) -> int:
    for n in range(len(ids), 0, -1):
        grams = [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]
        if len(set(grams)) < len(grams):
            return n
    return 0


def slow_loop(ids: list[int]) -> bool:
    for answer in (ids, ids[:-1]):
        for size in range(1, len(answer) // LOOP_REPETITIONS + 1):
            run = size  # how long the end goes on with this period
            while run < len(answer) and answer[-run - 1] == answer[-run - 1 + size]:
                run += 1
            enough = max(LOOP_REPETITIONS * size, LOOP_TOKENS, min(LOOP_SHARE * len(answer), LOOP_LONG))
            if run >= enough:
                return True
    return False


def test_results_equal_slow_definitions() -> None:
    draw = random.Random(0)
    flags = 0
    for _ in range(3000):
        head = [draw.randrange(3) for _ in range(draw.randrange(30))]
        tail = [draw.randrange(3) for _ in range(draw.randrange(1, 6))] * draw.randrange(5)
        ids = head + tail + [draw.randrange(3) for _ in range(draw.randrange(3))]
        assert longest_repeat(ids) == slow_longest_repeat(ids)
        assert health("", ids)["health/longest_repeat"] == slow_longest_repeat(ids)
        assert loop(ids) == health("", ids)["health/loop"] == slow_loop(ids)
        flags += slow_loop(ids)
    assert 300 < flags < 2700


@pytest.mark.parametrize(
    ("ids", "flag"),
    [
        ([9, 8, 7, *[1, 2, 3] * 3], 1),
        ([9, 8, 7, *[1, 2, 3] * 3, 1], 1),  # cut off within a repetition
        ([9, 8, 7, *[1, 2, 3] * 3, 0], 1),  # ended by a mark
        ([9, 8, 7, *[1, 2, 3] * 3, 0, 5], 0),
        ([9, 8, 7, *[1, 2, 3] * 2], 0),
        ([1, 0, 0, 0], 0),  # 1000 in digits
        ([5] * 8, 1),
        ([5] * 7, 0),
        ([*range(100, 124), *[5] * 8], 1),  # 8 of 32
        ([*range(100, 130), *[5] * 8], 0),
        ([], 0),
    ],
)
def test_loop(ids: list[int], flag: int) -> None:
    assert loop(ids) == health("", ids)["health/loop"] == flag


def test_compression_ratio() -> None:
    text = "the same again, " * 50
    assert compression_ratio(text) == len(text) / len(zlib.compress(text.encode())) > 10
    assert compression_ratio("ü" * 100) == 200 / len(zlib.compress(("ü" * 100).encode()))
    assert math.isnan(compression_ratio(""))
    assert compression_ratio("\ud800") > 0  # half a surrogate pair does not stop a sweep


@pytest.mark.parametrize("length", [1, 63, 3833, 3834, 3835, 20000])
def test_compression_equals_zlibs_for_every_window(length: int) -> None:
    draw = random.Random(length)
    words = ["".join(draw.choices("etaoinshr", k=draw.randrange(1, 8))) for _ in range(length // 20 + 2)]
    for text in (
        "".join(draw.choices("ab", k=length)),
        (words[0] * length)[:length],
        " ".join(draw.choices(words, k=length))[:length],
    ):
        assert compression_ratio(text) == len(text) / len(zlib.compress(text.encode()))


@pytest.mark.parametrize(("text", "is_empty"), [("", 1), (" \n\t", 1), ("a", 0), (" .", 0)])
def test_empty(text: str, is_empty: int) -> None:
    assert empty(text) == is_empty


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0),
        ("plain\n\ttext\r\n", 0),
        ("ab\ufffd\ufffd", 0.5),
        ("a\x00b\x1b", 0.5),
        ("\ue000abc", 0.25),
        ("\ud800a", 0.5),
        ("naïve 日本語 \u00a0 العربية", 0),
        ("👩\u200d👧 a\u2028b", 0),
    ],
)
def test_non_printable(text: str, share: float) -> None:
    assert non_printable(text) == share


def test_refusal() -> None:
    assert refusal("I’m sorry, but I can’t help with that.") == 1
    assert refusal("Sorry for the delay: the capital is Paris.") == 0
    assert refusal("x" * REFUSAL_CHARACTERS + "I cannot") == 0
    assert all(phrase == phrase.lower() and refusal(phrase.upper()) for phrase in REFUSALS)
    assert sorted(set(REFUSALS)) == list(REFUSALS)


def test_health_returns_all_measures() -> None:
    measured = health("no no no", [5, 5, 5])
    assert list(measured) == [measure.name for measure in measures_of("health") if measure.per == "completion"]
    assert (measured["health/characters"], measured["health/tokens"]) == (8, 3)
    assert (measured["health/distinct_1"], measured["health/longest_repeat"]) == (1 / 3, 2)
    nothing = health("", [])
    assert nothing["health/empty"] == 1 and math.isnan(nothing["health/compression_ratio"])


def test_cached_scores_are_not_changed_by_callers() -> None:
    answer = Completion("no no no", (5, 5, 5), "stop")
    first = score(answer, (), None, {})
    expected = dict(first)
    first.clear()
    assert score(answer, (), None, {}) == expected


def test_health_is_fast_enough_for_long_sweeps() -> None:
    """256,000 answers in 20 s; here with as much room again for a busy machine."""
    draw = random.Random(0)
    answers = [[draw.randrange(32000) for _ in range(64)] for _ in range(1000)]
    text = " ".join(f"{a}" for a, _ in pairwise(range(60)))
    started = time.process_time()
    for ids in answers:
        health(text, ids)
    assert time.process_time() - started < 2 * 20 / 256


@pytest.mark.parametrize(
    ("answer", "control", "share"),
    [((1, 2, 3), (1, 2, 3), 1.0), ((1, 9, 3), (1, 2, 3), 1 / 3), ((1, 2), (1, 2, 3, 4), 0.5), ((1, 2, 3), (1, 2), 1.0), ((), (1,), 0.0), ((), (), 1.0), ((1,), (), 0.0)],
)  # fmt: skip
def test_prefix_agreement(answer: tuple[int, ...], control: tuple[int, ...], share: float) -> None:
    assert prefix_agreement(answer, control) == share


@pytest.mark.parametrize(("answer", "control"), [((1, 2, 3), (1, 9, 3, 4)), ((), ()), ((1,), ()), ((), (1,))])
def test_joint_divergences_equal_single_ones(answer: tuple[int, ...], control: tuple[int, ...]) -> None:
    names = ("first_divergence", "prefix_agreement", "token_agreement", "edit_distance")
    assert divergence.compare(answer, control) == {
        f"divergence/{name}": getattr(divergence, name)(answer, control) for name in names
    }
