"""Recovery of tokens: attacks on rows whose leak is known, and the rows that count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sweep.config.schema import SweepConfig
from sweep.config.scoring_config import ScoringConfig
from sweep.errors import ConfigError, TransformError
from sweep.inputs.embedding_table import EmbeddingTable
from sweep.inputs.prompt_set import PromptSet
from sweep.inputs.span import Span
from sweep.planning.request_builder import build
from sweep.scoring.attacks import ATTACKS
from sweep.scoring.measures import summarise_scores
from sweep.scoring.recovery import Exposed, recovery
from sweep.scoring.ridge import PENALTIES, fit_and_apply
from sweep.transforms.geometry import Rotate

WIDTH = 64
SPAN = Span(part="content")


def exposed(ids: list[int], rows: Tensor, unrotated: Tensor | None = None, by_position: bool = True) -> Exposed:
    return Exposed(rows.numpy(), ids, None if unrotated is None else unrotated.numpy(), by_position)


def prompts_of(table: EmbeddingTable, change: Callable[[Tensor], Tensor], count: int = 40) -> list[Exposed]:
    """Return prompts of ten random tokens, whose rows are changed."""
    ids = torch.randint(0, table.size, (count, 10), generator=torch.Generator().manual_seed(0)).tolist()
    return [exposed(one, change(table.rows(one))) for one in ids]


def share(prompts: list[Exposed], table: EmbeddingTable, attack: str) -> float:
    scores = recovery(prompts, table, [attack])
    return float(np.mean([one[f"perturbation/recovered_{attack}"] for one in scores]))


def random_rotation() -> Tensor:
    q, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(1)))
    return q


def test_unchanged_rows_leak_every_token_and_random_rows_none(table: EmbeddingTable) -> None:
    unchanged = prompts_of(table, lambda rows: rows)
    rotated = [exposed(one.token_ids, torch.from_numpy(one.rows), torch.from_numpy(one.rows)) for one in unchanged]
    for scores in recovery(rotated, table, ATTACKS, controls=True):
        assert [scores[f"perturbation/recovered_{attack}"] for attack in ATTACKS] == [1.0, 1.0, 1.0]
    chance = recovery(rotated, table, ATTACKS, controls=True)
    for attack in ("nearest_random", "linear_random"):
        # 400 rows, 1 of 272 tokens each: above 4 % by chance once in 10^9.
        assert np.mean([one[f"perturbation/recovered_{attack}"] for one in chance]) < 0.04
    noise = torch.Generator().manual_seed(5)
    random = prompts_of(table, lambda rows: table.mean + table.std * torch.randn(rows.shape, generator=noise))
    assert share(random, table, "nearest") < 0.04 and share(random, table, "linear") < 0.04


def test_a_fitted_map_undoes_a_rotation_that_hides_from_the_nearest_row(table: EmbeddingTable) -> None:
    rotation = random_rotation()
    rotated = prompts_of(table, lambda rows: rows @ rotation)
    assert share(rotated, table, "nearest") < 0.04
    assert share(rotated, table, "linear") > 0.99  # 320 pairs for 64 dimensions
    assert share(rotated[:4], table, "linear") < 0.7  # 30 pairs do not determine the map
    undone = [exposed(p.token_ids, torch.from_numpy(p.rows), torch.from_numpy(p.rows) @ rotation.T) for p in rotated]
    assert share(undone, table, "rotation") == 1.0


def test_the_linear_attack_is_fitted_on_other_prompts(table: EmbeddingTable) -> None:
    """Each prompt moved by a vector of its own: its own rows would reveal the vector, those of others do not."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, table.size, (10, 40), generator=generator).tolist()
    shifts = 20 * table.std * torch.randn(10, WIDTH, generator=generator)
    prompts = [exposed(one, table.rows(one) + shift) for one, shift in zip(ids, shifts, strict=True)]
    own = fit_and_apply(torch.from_numpy(prompts[0].rows), table.rows(ids[0]), torch.from_numpy(prompts[0].rows))
    assert (table.nearest(own)[1][:, 0] == torch.tensor(ids[0])).float().mean() > 0.9
    assert recovery(prompts, table, ["linear"])[0]["perturbation/recovered_linear"] < 0.2


def test_what_cannot_be_recovered_by_position_has_no_value(table: EmbeddingTable) -> None:
    prompts = prompts_of(table, lambda rows: rows, 3)
    short = exposed([], torch.empty(0, WIDTH), by_position=False)
    assert recovery([*prompts, short], table, ATTACKS) == [{}] * 4  # one such prompt: no prompt of the point
    assert all("perturbation/recovered_rotation" not in one for one in recovery(prompts, table, ATTACKS))
    assert recovery(prompts[:1], table, ["linear"]) == [{}]
    with_empty = recovery([prompts[0], exposed([], torch.empty(0, WIDTH))], table, ["nearest"])
    assert with_empty == [{"perturbation/recovered_nearest": 1.0}, {}]


@pytest.mark.parametrize(("count", "width"), [(12, 30), (40, 7)])
def test_ridge_equals_brute_force(count: int, width: int) -> None:
    """The map that recovers the most rows when each is left out in turn, by the normal equations."""
    random = np.random.default_rng(3)
    plane = random.normal(size=(5, width))  # 12 rows determine a map of their own five directions
    x, new = random.normal(size=(count, 5)) @ plane, random.normal(size=(5, 5)) @ plane
    x += 0.1 * random.normal(size=x.shape)
    y = x @ random.normal(size=(width, width)) + 0.3 * random.normal(size=(count, width))

    def predict(penalty: float, x: Any, y: Any, at: Any) -> Any:
        mean, shift = x.mean(0), (y - x).mean(0)
        weights = np.linalg.solve((x - mean).T @ (x - mean) + penalty * np.eye(width), (x - mean).T @ (y - x - shift))
        return at + (at - mean) @ weights + shift

    # The model of one left-out row has the mean of the others, but the penalty relative to all rows.
    largest = np.linalg.eigvalsh((x - x.mean(0)).T @ (x - x.mean(0)))[-1]
    ranks = []
    for factor in PENALTIES:
        estimates = np.concatenate(
            [predict(factor * largest, np.delete(x, i, 0), np.delete(y, i, 0), x[i : i + 1]) for i in range(count)]
        )
        hits = int((np.linalg.norm(estimates[:, None] - y, axis=2).argmin(1) == np.arange(count)).sum())
        ranks.append((-hits, float(np.square(estimates - y).sum())))
    identity = int((np.linalg.norm(x[:, None] - y, axis=2).argmin(1) == np.arange(count)).sum())
    assert -min(ranks)[0] > identity and len(set(ranks)) > 1
    expected = predict(PENALTIES[ranks.index(min(ranks))] * largest, x, y, new)
    found = fit_and_apply(*(torch.from_numpy(a).float() for a in (x, y, new)))
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3, atol=1e-3)


def test_the_linear_attack_is_not_weaker_than_the_nearest_row_under_noise(table: EmbeddingTable) -> None:
    """A map with the smallest squared error shrinks noisy rows, which favours tokens with short rows."""
    generator = torch.Generator().manual_seed(4)
    noisy = prompts_of(table, lambda rows: rows + 2 * table.std * torch.randn(rows.shape, generator=generator))
    nearest, linear = share(noisy, table, "nearest"), share(noisy, table, "linear")
    assert 0.5 < nearest < 0.95 and linear > nearest - 0.05


def build_exposed(corpus: PromptSet, config: SweepConfig, prompt: int = 1) -> Exposed:
    measured = build(None, config, corpus.prompts[prompt], corpus).measure()
    assert measured.exposed is not None
    return measured.exposed


def test_only_rows_of_the_span_count(configure: Callable[..., SweepConfig], corpus: PromptSet) -> None:
    def exposed_by(transform: Any, rows: int = 999) -> Exposed:
        scoring = {"recovery": ["nearest", "rotation"], "nearest_rows": rows}
        return build_exposed(corpus, configure(transform=transform, scoring=scoring))

    layout, table = corpus.layout("sky"), corpus.table
    start = layout.text.index("sky")
    inside = [i for i, (a, b) in enumerate(layout.offsets) if a < start + 3 and b > start]
    sky = {"name": "scale", "factor": -1.0, "span": {"substring": "sky"}}
    found = exposed_by(sky)
    assert found.token_ids == [layout.token_ids[i] for i in inside] and found.unrotated is None
    torch.testing.assert_close(torch.from_numpy(found.rows), -table.rows(found.token_ids))
    assert recovery([found], table, ["nearest"])[0]["perturbation/recovered_nearest"] == 0

    # Neutral, masked in part, or untransformed: the rows of the span count, whether they are changed or not.
    assert exposed_by(sky | {"factor": 1.0}).token_ids == found.token_ids
    contents = [layout.token_ids[i] for i in corpus.numbers(SPAN, "sky")]
    assert exposed_by({"name": "mask_rows", "p": 0.5}).token_ids == contents
    control = exposed_by({"name": "identity"})
    assert control.token_ids == contents and (control.unrotated == control.rows).all()
    assert len(exposed_by({"name": "identity"}, rows=9).rows) <= 3  # 9 rows over 3 prompts
    assert not exposed_by({"name": "drop_rows", "p": 0.5}).by_position


def test_rotations_are_undone_in_a_composition(configure: Callable[..., SweepConfig], corpus: PromptSet) -> None:
    def exposed_by(*steps: dict[str, Any]) -> Exposed:
        scoring = {"recovery": ["rotation"], "nearest_rows": 999}
        return build_exposed(corpus, configure(transform=list(steps), scoring=scoring, seed=3))

    turn, sky = {"name": "rotate", "angle": 80.0, "planes": None}, {"span": {"substring": "sky"}}
    twice = exposed_by(turn | {"span": "all"}, turn | sky)
    assert twice.unrotated is not None
    clean = corpus.table.rows(twice.token_ids)
    assert not np.allclose(twice.rows, clean.numpy(), atol=1e-3)
    np.testing.assert_allclose(twice.unrotated, clean.numpy(), atol=1e-5)
    then_scaled = exposed_by(turn | {"span": "all"}, {"name": "scale", "factor": 2.0, "span": "all"})
    assert then_scaled.unrotated is not None
    np.testing.assert_allclose(then_scaled.unrotated, 2 * clean.numpy(), atol=1e-5)  # only the rotation is known
    random = exposed_by(turn | {"control": "noise"})
    assert random.unrotated is None


def test_a_plugins_error_while_undoing_fails_the_point_alone(
    configure: Callable[..., SweepConfig], corpus: PromptSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(transform={"name": "rotate", "angle": 9.0}, scoring={"recovery": ["rotation"]})
    for result, message in ((lambda *_: 1 / 0, "division by zero"), (lambda _, rows, __: rows[:-1], "of shape")):
        monkeypatch.setattr(Rotate, "undo_rotation", result)
        with pytest.raises(TransformError, match=f"rotate: undo_rotation: .*{message}"):
            build_exposed(corpus, config)


def test_refusals(configure: Callable[..., SweepConfig]) -> None:
    with pytest.raises(ConfigError, match="nearest"):
        configure(scoring={"recovery": ["nearset"]})
    with pytest.raises(ConfigError, match=r"needs scoring\.nearest_rows above 0"):
        ScoringConfig(recovery=["nearest"], nearest_rows=0)


def test_finished_points_are_not_scored_again() -> None:
    assert "recovery" not in ScoringConfig().score_settings()
    assert ScoringConfig(recovery=["nearest"]).score_settings()["recovery"] == ["nearest"]


def test_nothing_recovered_is_compatible_with_a_little() -> None:
    """With 16 prompts, a mean share above the bound would show at some prompt in all but 2.5 % of cases."""
    name = "perturbation/recovered_nearest"
    none, all_, some = (
        summarise_scores({name: np.array(values)}, 0.95)[name]
        for values in ([0.0] * 16, [1.0] * 16, [0.0] * 15 + [0.5])
    )
    assert (none.ci_low, none.ci_high) == (0.0, pytest.approx(1 - 0.025 ** (1 / 16)))
    assert (all_.ci_low, all_.ci_high) == (pytest.approx(0.025 ** (1 / 16)), 1.0)
    assert 0.03 < some.ci_high < 0.2
    assert summarise_scores({"perturbation/changed": np.zeros(16)}, 0.95)["perturbation/changed"].ci_high == 0.0
