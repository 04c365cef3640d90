"""Dose and response against data with known truth."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from sweep.scoring.dose_thresholds import DoseSeries, _t_bound
from sweep.scoring.response import Response, dose_response
from sweep.scoring.statistics import resampled_counts

PROMPTS = 200


def yes_or_no(shares: list[float], seed: int, prompts: int = PROMPTS) -> np.ndarray:
    """Answers of which so many are right, each prompt as hard at all doses."""
    draw = np.random.default_rng(seed)
    hard = draw.normal(size=prompts)
    noise = draw.normal(size=(len(shares), prompts))
    return (hard + noise < math.sqrt(2) * stats.norm.ppf(shares)[:, None]).astype(float)


def respond(*given: Any, **options: Any) -> Response:
    """Return the response on the only side that there is."""
    [found] = dose_response(*given, **options).values()
    return found


DOSES = [1.0, 2.0, 4.0, 8.0, 16.0]
SHARES = [0.9, 0.9, 0.7, 0.3, 0.1]


def test_falling_quality_has_a_breaking_point() -> None:
    control, *values = yes_or_no([0.9, *SHARES], 0)
    found = respond(DOSES, values, control, yes_or_no=True)
    assert found.rho == pytest.approx(stats.spearmanr(DOSES, np.mean(values, axis=1)).statistic)
    assert found.rho <= -0.9 and found.rho_ci_low <= found.rho <= found.rho_ci_high <= -0.8
    assert found.first_effective == 4 and found.first_effective_ci_low <= 4 <= found.first_effective_ci_high
    assert 4 < found.breaking_point_ci_low < found.breaking_point < found.breaking_point_ci_high < 8.5
    assert found.floor == 0


def test_the_breaking_point_is_interpolated_where_half_of_the_control_is_crossed() -> None:
    control = np.full(10, 0.8)
    means = np.array([0.8, 0.6, 0.2, 0.9])
    found = respond([1, 2, 4, 5], np.tile(means[:, None], 10), control)
    assert found.breaking_point == pytest.approx(3)  # 0.4 is half way from 0.6 to 0.2; what comes later does not count
    assert (found.breaking_point_ci_low, found.breaking_point_ci_high) == (pytest.approx(3), pytest.approx(3))
    # From the neutral dose on: the control stands there.
    found = respond([3.0], np.full((1, 10), 0.2), control, neutral=1.0)
    assert found.breaking_point == pytest.approx(1 + 2 * (0.4 / 0.6))
    # Where there is no neutral dose there is nothing before to interpolate from.
    found = respond([3.0], np.full((1, 10), 0.2), control)
    assert (found.breaking_point, found.breaking_point_ci_low, found.breaking_point_ci_high) == (3, -math.inf, 3)


def test_each_side_of_the_neutral_dose_has_a_separate_response() -> None:
    doses, shares = [0.25, 0.5, 0.8, 1.0, 1.2, 2.0, 5.0], [0.1, 0.6, 0.9, 0.9, 0.9, 0.3, 0.1]
    control, *values = yes_or_no([0.9, *shares], 1)
    found = dose_response(doses, values, control, neutral=1.0, yes_or_no=True)
    assert list(found) == ["above", "below"] and {r.neutral for r in found.values()} == {1.0}
    # A side is what it would be without the other; what stands at the neutral dose is no point of its own.
    for side, kept in ("above", [4, 5, 6]), ("below", [0, 1, 2]):
        alone = respond([doses[i] for i in kept], [values[i] for i in kept], control, neutral=1.0, yes_or_no=True)
        assert alone == found[side]
    above, below = found["above"], found["below"]
    assert above.rho == below.rho == -1  # of strength: quality falls on either side
    assert (above.first_effective, above.first_effective_ci_low, above.first_effective_ci_high) == (2, 1.2, 2)
    assert below.first_effective == 0.5  # as it was given, to the last digit
    assert (below.first_effective_ci_low, below.first_effective_ci_high) == (0.5, 0.8)
    bounds = [(r.breaking_point_ci_low, r.breaking_point, r.breaking_point_ci_high) for r in (above, below)]
    assert bounds == [pytest.approx((1.742, 1.803, 1.874), abs=1e-3), pytest.approx((0.386, 0.405, 0.428), abs=1e-3)]

    mirrored = dose_response([2 - dose for dose in doses], values, control, neutral=1.0, yes_or_no=True)["above"]
    assert mirrored.breaking_point == pytest.approx(2 - below.breaking_point)
    assert mirrored.breaking_point_ci_low == pytest.approx(2 - below.breaking_point_ci_high)
    assert (mirrored.rho, mirrored.rho_ci_low, mirrored.rho_ci_high) == (below.rho, below.rho_ci_low, below.rho_ci_high)


def test_only_sides_with_doses_have_responses() -> None:
    control, *values = yes_or_no([0.9, *SHARES], 1)
    assert list(dose_response(DOSES, values, control)) == ["all"]
    assert list(dose_response(DOSES, values, control, neutral=0.0)) == ["above"]
    assert list(dose_response(DOSES, values, control, neutral=16.0)) == ["below"]
    assert dose_response([1.0, 1.0], values[:2], control, neutral=1.0) == {}


def test_strength_grows_as_the_dose_falls_below_an_infinite_neutral_dose() -> None:
    """As a signal-to-noise ratio does."""
    decibels = [40.0, 30.0, 20.0, 10.0, 0.0]
    control, *values = yes_or_no([0.9, *SHARES], 0)
    found = dose_response(decibels, values, control, neutral=math.inf, yes_or_no=True)["below"]
    assert found.rho < -0.8 and found.first_effective == 20 and 10 < found.breaking_point < 20
    # There is nothing between the control and the weakest dose that a breaking point could be interpolated to.
    assert respond([20.0], np.full((1, 10), 0.2), np.ones(10), neutral=math.inf).breaking_point == 20


def test_control_away_from_the_neutral_dose_is_not_interpolated() -> None:
    """Where another step of a composition has already halved the quality, no factor is what did."""
    control, values = np.ones(10), np.tile([[0.3], [0.4], [0.2]], 10)
    found = dose_response([0.5, 1.0, 2.0], values, control, neutral=1.0, control_is_neutral=False)
    assert {side: r.breaking_point for side, r in found.items()} == {"above": 1, "below": 1}
    assert {side: r.breaking_point_ci_low for side, r in found.items()} == {"above": 1, "below": 1}
    assert {side: r.first_effective for side, r in found.items()} == {"above": 1, "below": 1}
    found = dose_response([0.5, 2.0], values[::2], control, neutral=1.0, control_is_neutral=False)
    bounds = {side: (r.breaking_point_ci_low, r.breaking_point_ci_high) for side, r in found.items()}
    assert bounds == {"above": (1.0, 2.0), "below": (0.5, 1.0)}
    assert respond([2.0], values[2:], control, neutral=1.0, control_is_neutral=False).breaking_point == 2
    assert dose_response([1.0], values[1:2], control, neutral=1.0, control_is_neutral=False) == {}


def test_order_and_repetition_of_points_do_not_matter() -> None:
    control, *values = yes_or_no([0.9, *SHARES], 2)
    table = np.array(values)
    expected = respond(DOSES, table, control)
    order = [3, 0, 4, 2, 1]
    assert respond(np.array(DOSES)[order], table[order], control) == expected
    halves = np.vstack([table, table])
    halves[:5, ::2] = math.nan
    halves[5:, 1::2] = math.nan
    assert respond(DOSES * 2, halves, control) == expected


def test_flat_responses_have_no_thresholds() -> None:
    control, *values = yes_or_no([0.9] * 6, 3)
    found = respond(DOSES, values, control, yes_or_no=True)
    assert math.isnan(found.first_effective) and math.isnan(found.first_effective_ci_low)
    assert math.isnan(found.breaking_point) and math.isnan(found.breaking_point_ci_high)
    assert found.rho_ci_low < 0 < found.rho_ci_high
    same = respond(DOSES, np.ones((5, 20)), np.ones(20))
    assert math.isnan(same.rho) and math.isnan(same.first_effective)
    useless = respond(DOSES, np.zeros((5, 20)), np.zeros(20))
    assert math.isnan(useless.breaking_point)
    negative = respond(DOSES, -np.ones((5, 20)), -np.ones(20))  # there is no half of it to fall below
    assert math.isnan(negative.breaking_point)
    assert math.isnan(respond([1.0, 2.0], np.eye(2), np.ones(2)).rho)


def test_resamples_without_a_break_count_beyond_all_doses() -> None:
    control, *values = yes_or_no([0.9, 0.85, 0.43], 4, 60)
    found = respond([1.0, 2.0], values, control, yes_or_no=True)
    assert (found.breaking_point, found.breaking_point_ci_low) == pytest.approx((1.9643, 1.7361), abs=1e-4)
    assert found.breaking_point_ci_high == math.inf
    below = respond([-1.0, -2.0], values, control, neutral=0.0, yes_or_no=True)
    assert below.breaking_point_ci_low == -math.inf and below.breaking_point_ci_high == -found.breaking_point_ci_low


@pytest.mark.parametrize("as_values", [False, True])
def test_a_divergence_begins_above_the_noise_floor(as_values: bool) -> None:
    draw = np.random.default_rng(5)
    floor = draw.gamma(1, 0.1, PROMPTS)
    values = np.array([draw.gamma(1, scale, PROMPTS) for scale in (0.1, 0.1, 0.2, 0.4)])
    floor_given = floor if as_values else float(floor.mean())
    found = respond([1, 2, 3, 4], values, np.zeros(PROMPTS), floor_given)
    assert found.first_effective == 3 and found.floor == pytest.approx(floor.mean())
    assert found.first_effective_ci_low >= 2
    assert respond([1, 2, 3, 4], values, np.zeros(PROMPTS)).first_effective == 1
    agreement = respond([1, 2, 3, 4], 1 - values, np.ones(PROMPTS), floor_given)  # falls from 1
    assert agreement.first_effective == 3


def test_effect_missing_at_stronger_doses_is_ignored() -> None:
    control, *values = yes_or_no([0.9, 0.6, 0.9, 0.6, 0.5], 6)
    assert respond([1, 2, 3, 4], values, control).first_effective == 3
    assert respond([1, 2, 3, 4], values, control, sustained=False).first_effective == 1


def test_missing_values_are_left_out() -> None:
    control, *values = yes_or_no([0.9, *SHARES], 7)
    table = np.array(values)
    expected = respond(DOSES, table[:, 50:], control[50:], yes_or_no=True)
    table[:, :50] = math.nan
    found = respond(DOSES, table, control, yes_or_no=True)
    assert (found.rho, found.first_effective) == (expected.rho, expected.first_effective)
    assert found.breaking_point_ci_low == pytest.approx(expected.breaking_point_ci_low, abs=0.1)
    control[:50], table[:, :50] = math.nan, 0.0  # an answer whose control's is missing has nothing to be compared with
    assert respond(DOSES, table, control).breaking_point == pytest.approx(expected.breaking_point)
    table[:, :50] = math.nan
    empty_row = np.vstack([table, np.full(PROMPTS, math.nan)])
    assert respond([*DOSES, 32.0], empty_row, control).rho == found.rho


def test_unsuitable_input_is_refused() -> None:
    for given in ([1.0], np.ones((2, 3)), np.ones(3)), ([1.0, math.nan], np.ones((2, 3)), np.ones(3)):
        with pytest.raises(ValueError):
            respond(*given)
    with pytest.raises(ValueError, match="negative"):
        respond([1.0], np.ones((1, 3)), np.ones(3), -0.1)


def test_bounds_in_resamples_use_students_t() -> None:
    values = np.random.default_rng(0).normal(3, 1, (2, 15))
    values[1, :5] = math.nan
    counts = resampled_counts(15, 4, 0)
    series = DoseSeries(np.arange(2.0), values, np.zeros(15), 0.0, counts, 0.9, yes_or_no=False, seed=0)
    for side, name in ((-1, "low"), (1, "high")):
        found = _t_bound(values, series, side)
        for row in range(2):
            for column in range(4):
                sample = np.repeat(values[row], counts[column].astype(int))
                interval = stats.ttest_1samp(sample[~np.isnan(sample)], 0).confidence_interval(0.9)
                assert found[row, column] == pytest.approx(getattr(interval, name))


def simulate(shares: list[float], count: int, prompts: int) -> list[Response]:
    found = []
    for seed in range(count):
        control, *values = yes_or_no([0.9, *shares], 100 + seed, prompts)
        found.append(respond(DOSES, values, control, yes_or_no=True, resamples=1000))
    return found


def test_intervals_cover_the_truth() -> None:
    """The breaking point lies where the true means cross 0.45, between 4 and 8; the first effective dose is 4."""
    found = simulate(SHARES, 300, 100)
    truth = 4 + 4 * (0.7 - 0.45) / 0.4
    covered = np.mean([r.breaking_point_ci_low <= truth <= r.breaking_point_ci_high for r in found])
    assert 0.92 <= covered <= 0.98
    assert np.mean([r.breaking_point for r in found]) == pytest.approx(truth, abs=0.1)
    first = np.array([r.first_effective for r in found])
    assert np.mean(first == 4) > 0.85
    assert np.mean([r.first_effective_ci_low <= 4 <= r.first_effective_ci_high for r in found]) >= 0.95


def test_false_effective_doses_are_rare() -> None:
    found = simulate([0.9] * 5, 300, 100)
    assert np.mean([not math.isnan(r.first_effective) for r in found]) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 300)
    assert np.mean([r.rho_ci_low <= 0 <= r.rho_ci_high for r in found]) >= 0.92


@pytest.mark.parametrize("prompts", [2, 3, 5])
def test_doses_without_effect_on_few_prompts_are_not_effective(prompts: int) -> None:
    generator, found = np.random.default_rng(1), 0
    for _ in range(300):
        values = generator.normal(size=(1, prompts))
        response = dose_response([1.0], values, np.zeros(prompts), neutral=0.0, resamples=200)["above"]
        found += math.isfinite(response.first_effective)
    assert found <= 300 * 0.08


def test_one_prompt_has_no_intervals() -> None:
    response = dose_response([1.0, 2.0, 3.0], [[0.9], [0.4], [0.1]], [1.0], neutral=0.0)["above"]
    assert response.breaking_point == pytest.approx(1.8)
    assert all(math.isnan(getattr(response, f"{name}_ci_low")) for name in ("rho", "breaking_point", "first_effective"))
