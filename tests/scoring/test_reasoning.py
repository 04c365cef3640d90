"""Reasoning is removed from answers before quality measures see them."""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sweep.config.scoring_config import ScoringConfig
from sweep.engines.base import Completion
from sweep.errors import ConfigError
from sweep.scoring.measures import score
from sweep.scoring.reasoning import strip_reasoning, without_reasoning
from sweep.scoring.scorers import select

TAGS = ("<think>", "</think>")


@pytest.mark.parametrize(
    ("text", "opened", "expected"),
    [
        ("<think>\nhm\n</think>\n\nParis", False, "Paris"),
        ("<think>hm", False, ""),
        ("hm</think> Paris", False, "Paris"),
        ("hm</think> Paris", True, "Paris"),
        ("hm", True, ""),
        ("<think>again</think>x", True, "x"),
        ("A <think>b</think>C<think>d</think> E", False, "A C E"),
        ("A <think>b</think>C<think>d", False, "A C"),
        (" Paris ", False, " Paris "),
        ("", False, ""),
    ],
)
def test_reasoning_is_removed(text: str, opened: bool, expected: str) -> None:
    assert strip_reasoning(text, TAGS, opened=opened) == expected


def test_template_may_open_the_reasoning() -> None:
    answer = Completion("hm</think>Paris", (1, 2), "stop")
    assert without_reasoning(answer, TAGS, "<assistant><think>\n") == replace(answer, text="Paris")
    assert without_reasoning(Completion("Paris", (1,), "stop"), TAGS, "<assistant>").text == "Paris"
    assert without_reasoning(answer, ("[T]", "[/T]")) is answer


def test_quality_is_that_of_the_text_that_is_given() -> None:
    answer = Completion("<think>Rome?</think>Paris", (1, 2), "stop")
    scorers = select(["exact_match", "contains"])
    assert score(answer, ["Paris"], None, scorers)["quality/exact_match"] == 0
    scores = score(answer, ["Paris"], None, scorers, text="Paris")
    assert scores["quality/exact_match"] == scores["quality/contains"] == 1


def test_scores_depend_on_the_tags_only_if_reasoning_is_stripped() -> None:
    default = ScoringConfig().score_settings()
    assert "strip_reasoning" not in default and "reasoning_tags" not in default
    assert ScoringConfig(reasoning_tags=["[T]", "[/T]"]).score_settings() == default
    changed = ScoringConfig(strip_reasoning=True, reasoning_tags=["[T]", "[/T]"]).score_settings()
    assert changed == default | {"strip_reasoning": True, "reasoning_tags": ["[T]", "[/T]"]}
    with pytest.raises(ConfigError, match=r"scoring\.reasoning_tags must be two texts"):
        ScoringConfig(reasoning_tags=["<think>"])


def test_unfinished_reasoning_that_the_template_opened_is_an_empty_answer(
    command_line: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code, _, err = command_line(
        "plugins=[sweep.testing.scripted]", "engine=scripted", "transform=scale", "transform.factor=1.2",
        "prompts.items=[{prompt: Hi, reference: '^$'}]", "scoring.quality=[regex_match]", "sampling.max_tokens=4",
        "scoring.strip_reasoning=true", "scoring.reasoning_tags=['<|assistant|>','</x>']", f"sweep.dir={tmp_path}",
        "tracking.in_process=true", "sweep.helpers=0",
    )  # fmt: skip
    assert code == 0, err
    [file] = tmp_path.glob("sweeps/*/report/points.csv")
    rows = list(csv.DictReader(file.open(encoding="utf-8")))
    assert len(rows) == 2 and {float(row["quality/regex_match"]) for row in rows} == {1.0}
