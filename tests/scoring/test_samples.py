"""pass@k and the majority vote, against all subsets and by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from sweep.config.schema import SweepConfig
from sweep.errors import ConfigError
from sweep.scoring.measures import by_measure, summarise_scores
from sweep.scoring.registry import spec
from sweep.scoring.samples import MAJORITY, majority_vote, pass_at_k, pass_sizes, sample_scores

Configure = Callable[..., SweepConfig]


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_all_subsets_with_a_correct_sample(n: int) -> None:
    for correct in range(n + 1):
        samples = [1] * correct + [0] * (n - correct)
        for k in range(1, n + 1):
            subsets = [any(subset) for subset in combinations(samples, k)]
            assert pass_at_k(n, correct, k) == pytest.approx(sum(subsets) / len(subsets), abs=1e-12)


def test_pass_at_k_is_unbiased() -> None:
    """The expectation over the number of correct samples is 1 - (1 - p)^k; the plug-in estimate is not."""
    n, k, p = 6, 3, 0.3
    chances = [math.comb(n, c) * p**c * (1 - p) ** (n - c) for c in range(n + 1)]
    expected = sum(chance * pass_at_k(n, c, k) for c, chance in enumerate(chances))
    plug_in = sum(chance * (1 - (1 - c / n) ** k) for c, chance in enumerate(chances))
    assert expected == pytest.approx(1 - (1 - p) ** k, abs=1e-12) and abs(plug_in - expected) > 0.02
    assert pass_at_k(2000, 1, 1000) == 0.5  # no overflow


@pytest.mark.parametrize(
    ("ballots", "correct", "expected"),
    [
        ("aab", [1, 1, 0], 1.0),
        ("abb", [1, 0, 0], 0.0),
        ("ab", [1, 0], 0.5),  # a tie
        ("aabbc", [1, 1, 0, 0, 1], 0.5),
        ("abc", [0, 0, 1], 1 / 3),
        ("aa", [0, 1], 0.0),  # an answer counts as its first sample
    ],
)
def test_majority_vote(ballots: str, correct: list[float], expected: float) -> None:
    assert majority_vote(ballots, correct) == pytest.approx(expected)


def test_scores_of_one_prompts_samples() -> None:
    texts, measure = ["Paris.", "the Paris", "Rome", "Lyon"], "quality/normalised_exact_match"
    scores = [{measure: 1.0}, {measure: 1.0}, {measure: 0.0}, {measure: 0.0}]
    found = sample_scores(texts, scores, measure, [2, 4, 8])
    assert found == {"quality/pass_at_2": pytest.approx(1 - 1 / 6), "quality/pass_at_4": 1.0, MAJORITY: 1.0}
    assert sample_scores(texts[:1], scores[:1], measure, [2]) == {}
    assert sample_scores(texts, scores, None, [2]) == {}
    assert sample_scores(texts, [*scores[:3], {}], measure, [2]) == {}  # without a reference


def test_numbers_vote_by_their_result() -> None:
    measure = "quality/numeric_match"
    texts = ["3 + 4 = 7", "It is 7.", "5, or 12"]
    scores = [{measure: 1.0}, {measure: 1.0}, {measure: 0.0}]
    assert sample_scores(texts, scores, measure, []) == {MAJORITY: 1.0}
    other = "quality/exact_match"  # the texts are three different votes
    found = sample_scores(texts, [{other: score[measure]} for score in scores], other, [])
    assert found == {MAJORITY: pytest.approx(2 / 3)}


def test_values_of_k() -> None:
    assert [pass_sizes(n) for n in (1, 2, 5, 8)] == [[], [2], [2, 4], [2, 4, 8]]
    assert pass_sizes(5, [1, 5]) == [1, 5]


def test_each_k_is_a_registered_measure_of_yes_or_no() -> None:
    found = spec("quality/pass_at_16")
    assert (found.title, found.range, found.yes_or_no, found.direction) == ("pass@16", (0.0, 1.0), True, "higher")
    summaries = summarise_scores(by_measure([{"quality/pass_at_16": 1.0}] * 10), 0.95)
    assert 0.5 < summaries["quality/pass_at_16"].ci_low < 1  # Wilson's


@pytest.mark.parametrize(
    ("scoring", "says"),
    [
        ({"correct": "token_f1"}, "scoring.correct: 'token_f1' is not a yes-or-no measure"),
        ({"correct": "regex_match"}, "Available: exact_match, normalised_exact_match, contains."),
        ({"pass_at": [1, 3]}, "scoring.pass_at must be at most sampling.n=2; got 3"),
        ({"pass_at": [0]}, "scoring.pass_at must list different numbers of at least 1"),
        ({"pass_at": []}, "scoring.pass_at must list"),
        ({"pass_at": [2], "quality": ["chrf"]}, "scoring.pass_at needs a yes-or-no measure"),
    ],
)
def test_what_cannot_be_computed_is_refused(configure: Configure, scoring: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        configure(scoring=scoring, sampling={"n": 2, "temperature": 1.0})
    assert says in str(refused.value)


def test_correctness_is_the_first_yes_or_no_measure(configure: Configure) -> None:
    chosen = [
        configure(scoring=scoring).scoring.correctness
        for scoring in ({}, {"quality": ["chrf", "contains"]}, {"quality": ["chrf"]}, {"correct": "contains"})
    ]
    assert chosen == ["quality/exact_match", "quality/contains", None, "quality/contains"]


def test_new_keys_left_at_their_defaults_score_nothing_again(configure: Configure) -> None:
    default = configure().scoring.score_settings()
    assert not {"correct", "pass_at", "equivalence", "primary"} & default.keys()
    assert configure(scoring={"equivalence": 0.05}).scoring.score_settings() == default
    assert configure(scoring={"correct": "contains"}).scoring.score_settings() == default | {"correct": "contains"}


def test_values_average_over_prompts() -> None:
    rows = [{"quality/pass_at_2": value} for value in (1.0, 0.5, 0.0, 0.5)]
    assert summarise_scores(by_measure(rows), 0.95)["quality/pass_at_2"].mean == np.mean([1, 0.5, 0, 0.5])


def test_samples_without_a_number_do_not_vote() -> None:
    """Five texts without a number are five answers, not the most frequent one."""
    assert majority_vote([7, 7, None, None, None], [1, 1, 0, 0, 0]) == 1
    assert majority_vote([None, None], [0, 0]) == 0
