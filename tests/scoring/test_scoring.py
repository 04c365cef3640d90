"""Measures against cases worked out by hand, intervals against data with known truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sweep.core.values import Summary
from sweep.engines.base import Completion
from sweep.inputs.embedding_table import EmbeddingTable
from sweep.scoring import divergence, text
from sweep.scoring.measures import by_measure, mean_scores, score, summarise_scores
from sweep.scoring.perturbation import Comparison, Neighbours, nearest_token_flips, perturbation
from sweep.scoring.scorers import select


def completion(answer: str, ids: tuple[int, ...], reason: str = "stop") -> Completion:
    return Completion(answer, ids, reason)


def test_text() -> None:
    assert text.exact_match(" Paris.\n", ["Rome.", "Paris."]) == 1
    assert text.exact_match("paris.", ["Paris."]) == 0
    assert text.contains("It is Paris, of course.", ["Paris"]) == 1
    assert text.contains("It is Rome.", ["Paris"]) == 0


@pytest.mark.parametrize(
    ("answer", "control", "first", "agreement", "distance"),
    [
        ((1, 2, 3), (1, 2, 3), 3, 1.0, 0.0),
        ((1, 9, 3), (1, 2, 3), 1, 2 / 3, 1 / 3),
        ((1, 2), (1, 2, 3, 4), 2, 0.5, 0.5),
        ((2, 3, 4), (1, 2, 3, 4), 0, 0.0, 0.25),
        ((), (1, 2), 0, 0.0, 1.0),
        ((), (), 0, 1.0, 0.0),
    ],
)
def test_divergence(
    answer: tuple[int, ...], control: tuple[int, ...], first: int, agreement: float, distance: float
) -> None:
    assert divergence.first_divergence(answer, control) == first
    assert divergence.token_agreement(answer, control) == agreement
    assert divergence.edit_distance(answer, control) == distance


def test_scores_need_a_reference_and_a_control() -> None:
    scorers = select(["exact_match"])
    answer = completion("Paris", (4, 5), "length")
    bare = score(answer, [], None, scorers)
    assert (bare["cost/output_tokens"], bare["cost/truncated"], bare["health/empty"]) == (2.0, 1.0, 0.0)
    assert not any(name.startswith(("quality/", "divergence/")) for name in bare)
    full = score(answer, ["Paris"], completion("Rome", (4, 6)), scorers)
    assert full["quality/exact_match"] == 1 and full["divergence/first_divergence"] == 1
    assert "divergence/prefix_kl" not in full  # no log-probabilities were asked for


def test_samples_are_averaged_within_their_prompt() -> None:
    samples = [{"quality/exact_match": 1.0}, {"quality/exact_match": 0.0}]
    assert mean_scores(samples) == {"quality/exact_match": 0.5}


def test_measures_are_summarised_over_the_prompts_that_have_them() -> None:
    values = by_measure([{"health/x": 1.0, "health/y": 2.0}, {"health/x": 3.0}])
    summaries = summarise_scores(values, 0.95)
    assert (summaries["health/x"].mean, summaries["health/x"].n) == (2.0, 2)
    assert (summaries["health/y"].mean, summaries["health/y"].n) == (2.0, 1)
    assert math.isnan(summaries["health/y"].ci_low)


ROWS = torch.tensor([[3.0, 4.0], [0.0, 5.0]])


def test_perturbation_of_a_scaled_matrix() -> None:
    measured = perturbation(Comparison.of(ROWS * 1.5, ROWS))
    assert measured["perturbation/relative_l2"] == pytest.approx(0.5)
    assert measured["perturbation/snr_db"] == pytest.approx(20 * math.log10(2))
    assert measured["perturbation/norm_ratio"] == pytest.approx(1.5)
    assert measured["perturbation/cosine"] == pytest.approx(1.0)
    assert measured["perturbation/changed"] == 0.75  # zero stays zero
    assert (measured["perturbation/largest_entry"], measured["perturbation/rows"]) == (7.5, 2)


def test_change_lost_in_the_cast_is_reported_as_0() -> None:
    rows = torch.ones(4, 8)
    measured = perturbation(Comparison.of((rows * 1.001).to(torch.bfloat16), rows))
    assert measured["perturbation/changed"] == 0.0 and measured["perturbation/relative_l2"] == 0.0
    assert "perturbation/snr_db" not in measured


def test_perturbation_of_moved_rows_is_measured_by_position() -> None:
    measured = perturbation(Comparison.of(ROWS.flip(0), ROWS, [(1,), (0,)]))
    assert measured["perturbation/relative_l2"] == pytest.approx(math.sqrt(20 / 50))


def test_inserted_and_removed_rows_count_as_changed() -> None:
    """‖E‖² is 25 + 25."""
    injected = torch.tensor([[5.0, 5.0]])
    longer = perturbation(Comparison.of(torch.cat([injected, ROWS]), ROWS, [(), (0,), (1,)]))
    assert longer["perturbation/relative_l2"] == pytest.approx(1.0)
    assert longer["perturbation/norm_ratio"] == pytest.approx(math.sqrt(2))
    assert longer["perturbation/cosine"] == pytest.approx(1.0)
    assert longer["perturbation/changed"] == pytest.approx(1 / 3)
    assert (longer["perturbation/rows"], longer["perturbation/rows_kept"]) == (3, pytest.approx(2 / 3))
    shorter = perturbation(Comparison.of(ROWS[:1], ROWS, [(0,)]))
    assert shorter["perturbation/relative_l2"] == pytest.approx(math.sqrt(25 / 50))
    assert (shorter["perturbation/rows_kept"], shorter["perturbation/changed"]) == (0.5, 0.5)
    merged = perturbation(Comparison.of(ROWS.mean(0, keepdim=True), ROWS, [(0, 1)]))
    assert merged["perturbation/relative_l2"] == pytest.approx(math.sqrt((1.5**2 + 0.5**2 + 25) / 50))
    twice = perturbation(Comparison.of(torch.cat([ROWS, ROWS]), ROWS, [(0,), (1,), (0,), (1,)]))
    assert (twice["perturbation/relative_l2"], twice["perturbation/rows_kept"]) == (pytest.approx(1.0), 0.5)
    other = perturbation(Comparison.of(injected, ROWS, [()]))
    assert other["perturbation/rows_kept"] == 0 and "perturbation/cosine" not in other
    assert other["perturbation/relative_l2"] == pytest.approx(math.sqrt((50 + 50) / 50))


def test_perturbations_with_overflowing_squares_are_finite() -> None:
    measured = perturbation(Comparison.of(ROWS * 1e30, ROWS))
    assert measured["perturbation/relative_l2"] == pytest.approx(1e30)
    assert measured["perturbation/snr_db"] == pytest.approx(-600)
    assert measured["perturbation/cosine"] == pytest.approx(1.0)


def test_nearest_token_flips(table: EmbeddingTable) -> None:
    ids = [10, 20, 30, 40]
    rows = table.rows(ids)
    moved = rows.clone()
    moved[1], moved[2] = table.rows([50])[0], rows[2] * 1.01  # one at another token, one still nearest to its own
    taken = [Neighbours.sample(Comparison.of(sent, rows), ids, 4) for sent in (rows, moved)]
    assert [len(n.rows) for n in taken] == [0, 2]
    assert nearest_token_flips(taken, table) == [0.0, 0.25]
    assert [n.unmatched_share for n in taken] == [0, 0]
    dropped = Neighbours.sample(Comparison.of(moved[1:], rows, [(1,), (2,), (3,)]), ids, 4)
    assert nearest_token_flips([dropped], table) == [pytest.approx(0.5)]  # one at another token, one left out
    one_by_one = [nearest_token_flips([n], table)[0] for n in taken]
    assert one_by_one == [0.0, 0.25]


@pytest.mark.parametrize("towards", [True, False])
@pytest.mark.parametrize("share", [0.1, 0.45, 0.49, 0.51, 0.55, 0.9, 3.0])
def test_only_rows_that_may_have_flipped_are_looked_up(
    table: EmbeddingTable, monkeypatch: pytest.MonkeyPatch, share: float, towards: bool
) -> None:
    """Rows that have moved a share of the way to the nearest other token, towards it or anywhere."""
    ids = list(range(60, 90))
    rows, every = table.rows(ids), table.rows(range(table.size))
    distances, nearest = table.nearest(rows, k=2)
    assert torch.allclose(table.gaps(ids), distances[:, 1]) and (nearest[:, 0] == torch.tensor(ids)).all()
    away = torch.nn.functional.normalize(torch.randn(rows.shape, generator=torch.Generator().manual_seed(3)))
    direction = (table.rows(nearest[:, 1]) - rows) / distances[:, 1:] if towards else away
    moved = rows + direction * distances[:, 1:] * share
    expected = (torch.cdist(moved, every).argmin(1) != torch.tensor(ids)).double().mean()
    looked_up: list[int] = []
    look_up = table.nearest

    def nearest_of(_: EmbeddingTable, rows: torch.Tensor, **on: bool) -> tuple[torch.Tensor, torch.Tensor]:
        looked_up.append(len(rows))
        return look_up(rows, **on)

    monkeypatch.setattr(EmbeddingTable, "nearest", nearest_of)
    sample = Neighbours.sample(Comparison.of(moved, rows), ids, len(ids))
    assert nearest_token_flips([sample], table) == [pytest.approx(float(expected))]
    assert looked_up == ([] if share < 0.5 else [len(ids)])


def test_sampled_neighbours_estimate_the_flip_share(table: EmbeddingTable) -> None:
    ids = list(range(40))
    far = table.rows([t + 100 for t in ids])
    sample = Neighbours.sample(Comparison.of(far, table.rows(ids)), ids, 5)
    assert len(sample.rows) == 5 and nearest_token_flips([sample], table) == [1.0]


def test_intervals_of_worked_examples() -> None:
    def of(name: str, *values: float) -> Summary:
        return summarise_scores({name: np.array(values)}, 0.95)[name]

    wilson = of("quality/exact_match", *[1.0] * 10)
    assert (wilson.ci_low, wilson.ci_high) == (pytest.approx(0.722467, rel=1e-5), 1.0)
    shares = of("divergence/token_agreement", 0.9, 1.0, 1.0)
    assert shares.ci_low < shares.mean < shares.ci_high <= 1.0
    assert math.isnan(of("health/tokens", 1.0).ci_low)
    assert of("health/tokens", 1.0, math.nan, 3.0).n == 2


@pytest.mark.parametrize("kind", ["normal", "yes_or_no"])
def test_intervals_have_their_nominal_coverage(kind: str) -> None:
    random, trials = np.random.default_rng(0), 2000
    if kind == "normal":
        truth, samples = 2.0, {f"quality/mine_{i}": random.normal(2.0, 3.0, 20) for i in range(trials)}
        summaries = list(summarise_scores(samples, 0.95).values())
    else:
        truth, name = 0.8, "quality/exact_match"
        drawn = [(random.random(40) < truth).astype(float) for _ in range(trials)]
        summaries = [summarise_scores({name: sample}, 0.95)[name] for sample in drawn]
    covered = sum(summary.ci_low <= truth <= summary.ci_high for summary in summaries)
    assert 0.93 <= covered / trials <= 0.97
