"""Distances of distributions against scipy, and truncated ones against the full ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.special import log_softmax, rel_entr

from sweep.scoring.distributions import FLOOR, distance, distances

VOCABULARY = 200


def logits(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two related distributions, peaked like a language model's."""
    draw = np.random.default_rng(seed)
    p = draw.normal(0, 4, VOCABULARY)
    return log_softmax(p + draw.normal(0, 1, VOCABULARY)), log_softmax(p)


def top(values: np.ndarray, k: int) -> dict[int, float]:
    return {int(token): float(values[token]) for token in np.argsort(-values)[:k]}


@pytest.mark.parametrize("seed", range(5))
def test_full_distributions_equal_scipys(seed: int) -> None:
    answer, control = logits(seed)
    found = distance(dict(enumerate(answer)), dict(enumerate(control)))
    assert found.kl == pytest.approx(rel_entr(np.exp(control), np.exp(answer)).sum(), abs=2e-6)
    assert found.js == pytest.approx(jensenshannon(np.exp(control), np.exp(answer)) ** 2, abs=2e-6)
    assert found.top1 == (answer.argmax() == control.argmax())
    assert found.unlisted < 1e-9 and found.control_unlisted < 1e-9


def test_worked_example() -> None:
    p, q = {1: math.log(0.5), 2: math.log(0.5)}, {1: math.log(0.25), 2: math.log(0.75)}
    found = distance(q, p)
    assert found.kl == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3), abs=1e-6)
    assert found.top1 == 1  # one of p's two


def test_equal_distributions_have_distance_0() -> None:
    _, control = logits(0)
    for k in (1, 5, VOCABULARY):
        found = distance(top(control, k), top(control, k))
        assert (found.kl, found.js, found.top1) == (0, 0, 1)
        assert found.unlisted == pytest.approx(1 - np.exp(np.sort(control)[-k:]).sum())


def test_top_token_estimate_improves_with_more_tokens() -> None:
    errors = {}
    for k in (5, 20, 100):
        relative = []
        for seed in range(50):
            answer, control = logits(seed)
            true = rel_entr(np.exp(control), np.exp(answer)).sum()
            relative.append(abs(distance(top(answer, k), top(control, k)).kl - true) / true)
        errors[k] = np.mean(relative)
    assert errors[100] < errors[20] < errors[5] < 0.4
    assert errors[20] < 0.1


def test_tokens_that_only_one_side_lists() -> None:
    """q lists 0.9, p something else: of q's 0.1 the missing token has the half, p's token in q likewise."""
    found = distance({1: math.log(0.9)}, {2: math.log(0.9)})
    p, q = np.array([0.9, 0.05, 0.05]), np.array([0.05, 0.9, 0.05])
    assert found.kl == pytest.approx(rel_entr(p, q).sum(), abs=1e-12)
    assert (found.top1, found.unlisted) == (0, pytest.approx(0.1))
    # Never more than what the other lists last.
    small = distance({1: math.log(0.69), 3: math.log(0.01)}, {2: math.log(0.9)})
    q = np.array([0.69, 0.01, 0.01, 0.29])  # tokens 1, 3, 2, other
    p = np.array([0.1 / 3, 0.1 / 3, 0.9, 0.1 / 3])
    assert small.kl == pytest.approx(rel_entr(p, q).sum(), abs=1e-12)


def test_disjoint_distributions_have_finite_bounded_distances() -> None:
    found = distance({1: 0.0}, {2: 0.0})
    assert 10 < found.kl < -math.log(FLOOR) + 1e-3
    assert math.log(2) - 1e-4 < found.js <= math.log(2)
    minus_infinity = distance({1: 0.0, 2: -math.inf}, {2: 0.0})
    assert minus_infinity == found


def test_sampled_token_outside_the_top_keeps_the_bound() -> None:
    q = {1: math.log(0.5), 2: math.log(0.2)}
    p = {3: math.log(0.99)}
    alone, with_drawn = distance(q, p, 2), distance(q | {9: math.log(1e-6)}, p, 2)
    assert with_drawn.kl == pytest.approx(alone.kl, rel=0.35)
    assert distance(q | {9: math.log(1e-6)}, p).kl > 2 * alone.kl


@pytest.mark.parametrize("bad", [{}, {1: -math.inf}, {1: 0.0, 2: 0.0}, {1: math.nan}])
def test_invalid_distribution_is_refused(bad: dict[int, float]) -> None:
    with pytest.raises(ValueError, match="expected log-probabilities of one distribution"):
        distance(bad, {1: 0.0})


def test_steps_on_the_same_prefix_are_averaged() -> None:
    steps = [top(logits(seed)[i], 10) for seed in range(4) for i in (0, 1)]
    answer, control = steps[::2], steps[1::2]
    each = [distance(a, c) for a, c in zip(answer, control, strict=True)]
    found = distances((1, 2, 9, 4), answer, (1, 2, 3, 4), control)
    assert found["divergence/first_token_kl"] == each[0].kl
    assert found["divergence/prefix_js"] == pytest.approx(np.mean([step.js for step in each[:3]]))
    assert found["divergence/prefix_top1"] == pytest.approx(np.mean([step.top1 for step in each[:3]]))
    same = distances((1, 2), answer[:2], (1, 2, 3, 4), control)
    assert same["divergence/prefix_kl"] == pytest.approx(np.mean([step.kl for step in each[:2]]))
    nothing = distances((), [], (1,), control[:1])
    assert set(nothing) == set(found) and all(math.isnan(value) for value in nothing.values())
    with pytest.raises(ValueError, match="for each token"):
        distances((1, 2), answer[:1], (1,), control[:1])
