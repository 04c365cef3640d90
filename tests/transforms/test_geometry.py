"""Means, principal components and rotations: projections vanish, ranks are what is asked for, Gram matrices are kept."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor

from sweep.errors import ConfigError
from sweep.inputs.prompt_set import PromptSet
from sweep.transforms import Context, Span, Transform
from sweep.transforms.geometry import CLOUDS, Center, RemoveComponents, Rotate, TruncateRank

CONTENT = Span(part="content")
WIDTH = 64


@pytest.fixture(scope="module")
def context(corpus: PromptSet) -> Context:
    """The contents of the prompt `sky`."""
    return Context(1, 2, corpus, "sky", CONTENT, [(i,) for i in corpus.numbers(CONTENT, "sky")])


def cloud_of(name: str, rows: Tensor, corpus: PromptSet) -> Tensor:
    """The rows that a mean or a basis is of, found another way than the transforms do."""
    if name == "table":
        return corpus.table.rows(range(272))
    if name == "prompt":
        return rows
    contents = [corpus.layout(p).token_ids[i] for p in ("hello", "sky", "two") for i in corpus.numbers(CONTENT, p)]
    return corpus.table.rows(contents)


def basis_of(cloud: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The cloud's mean and its first principal directions, [d, at most count], in fp64."""
    mean = cloud.double().mean(0)
    _, extents, directions = torch.linalg.svd(cloud.double() - mean, full_matrices=False)
    return mean, directions[:count][extents[:count] > 1e-6].T


def random_rows(seed: int, count: int = 30) -> Tensor:
    """Rows around a mean of their own, of decreasing extent along the dimensions."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, WIDTH, generator=generator) * torch.logspace(0, -1, WIDTH) + 0.3


def close(a: Tensor, b: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=tolerance)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(CLOUDS), st.floats(-1, 2), st.integers(0, 99))
def test_center(context: Context, corpus: PromptSet, mean: str, strength: float, seed: int) -> None:
    rows = random_rows(seed)
    centred = Center(mean, strength).apply(rows, context)
    close(centred, rows - strength * cloud_of(mean, rows, corpus).mean(0))
    close(Center("prompt").apply(rows, context).mean(0), torch.zeros(WIDTH))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(CLOUDS), st.integers(1, 12), st.integers(0, 99))
def test_removed_components_are_gone(context: Context, corpus: PromptSet, basis: str, k: int, seed: int) -> None:
    rows = random_rows(seed)
    remove = RemoveComponents(k, basis)
    left = remove.apply(rows, context)
    _, directions = basis_of(cloud_of(basis, rows, corpus), k)
    close(left.double() @ directions, torch.zeros(len(rows), k))
    close(left, rows.double() @ (torch.eye(WIDTH) - directions @ directions.T), 1e-4)
    if basis != "prompt":  # whose basis would be another one the second time
        close(remove.apply(left, context), left)
    assert remove.achieved(rows, left, context) == pytest.approx(k, abs=1e-4)
    half = RemoveComponents(k, basis, 0.5)
    close(half.apply(rows, context), (rows + left) / 2)
    assert half.achieved(rows, half.apply(rows, context), context) == pytest.approx(k, abs=1e-4)


def test_all_but_the_top(context: Context, corpus: PromptSet) -> None:
    """Centring and removal one after the other leave the table with neither its mean nor its first components."""
    table = corpus.table.rows(range(272))
    done = RemoveComponents(3, "table").apply(Center("table").apply(table, context), context)
    close(done.mean(0), torch.zeros(WIDTH))
    close(torch.linalg.svdvals(done)[:-3], torch.linalg.svdvals(table - table.mean(0))[3:], 1e-3)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(CLOUDS), st.integers(0, 30), st.integers(0, 99))
def test_truncation(context: Context, corpus: PromptSet, basis: str, rank: int, seed: int) -> None:
    rows = random_rows(seed)
    truncated = TruncateRank(rank, basis).apply(rows, context)
    mean, directions = basis_of(cloud_of(basis, rows, corpus), rank)
    close(truncated, mean + (rows - mean) @ directions @ directions.T, 1e-4)
    assert int(torch.linalg.matrix_rank((truncated - mean).double(), atol=1e-4)) <= rank
    if basis != "prompt":
        close(TruncateRank(rank, basis).apply(truncated, context), truncated, 1e-4)
    half = TruncateRank(rank, basis, 0.5)
    close(half.apply(rows, context), (rows + truncated) / 2)


def test_truncation_is_the_best_approximation(context: Context) -> None:
    """Eckart-Young: the squared error is the sum of the squares of the singular values that were left out."""
    rows = random_rows(0)
    values = torch.linalg.svdvals(rows.double() - rows.double().mean(0))
    for rank in range(30):
        error = (TruncateRank(rank).apply(rows, context) - rows).double().square().sum()
        assert float(error) == pytest.approx(float(values[rank:].square().sum()), rel=1e-4, abs=1e-9)
    close(TruncateRank(64, "table").apply(rows, context), rows)
    close(TruncateRank(29).apply(rows, context), rows)
    close(TruncateRank(0).apply(rows, context), rows.mean(0).expand_as(rows))


def test_missing_components_of_a_prompt_are_not_added(context: Context) -> None:
    """Beyond a cloud's own dimensions, principal components are arbitrary and must not be taken from the rows."""
    rows = random_rows(1, count=3)
    left = RemoveComponents(9, "prompt").apply(rows, context)
    close(left, RemoveComponents(2, "prompt").apply(rows, context))
    close(left.diff(dim=0), torch.zeros(2, WIDTH))  # nothing is left by which the rows differ
    assert left.abs().max() > 0.1
    assert RemoveComponents(9, "prompt").achieved(rows, left, context) == pytest.approx(2, abs=1e-4)
    same = rows[:1].repeat(4, 1)
    for transform in (RemoveComponents(3, "prompt"), TruncateRank(3), RemoveComponents(3, "prompt", 0.5)):
        close(transform.apply(same, context), same)
        close(transform.apply(same[:1], context), same[:1])
        assert transform.apply(torch.zeros(3, WIDTH), context).isfinite().all()


def test_corpus_has_no_components_beyond_its_rank(context: Context, corpus: PromptSet) -> None:
    distinct = len(torch.unique(cloud_of("corpus", torch.empty(0), corpus), dim=0))
    assert distinct < WIDTH
    rows = random_rows(2)
    most = RemoveComponents(WIDTH, "corpus").apply(rows, context)
    close(most, RemoveComponents(distinct - 1, "corpus").apply(rows, context), 1e-4)
    assert int(torch.linalg.matrix_rank(most.double(), rtol=1e-4)) == min(len(rows), WIDTH - distinct + 1)


PLANES = st.one_of(st.none(), st.integers(1, WIDTH // 2))


@settings(max_examples=30, deadline=None)
@given(st.floats(-720, 720), PLANES, st.integers(0, 9), st.integers(0, 99))
def test_rotations(context: Context, angle: float, planes: int | None, shared_seed: int, seed: int) -> None:
    rows, context = random_rows(seed), replace(context, shared_seed=shared_seed)
    rotate = Rotate(angle, planes)
    turned = rotate.apply(rows, context)
    close(turned @ turned.T, rows @ rows.T, 1e-3)
    close(Rotate(-angle, planes).apply(turned, context), rows, 1e-4)
    close(Rotate(2 * angle, planes).apply(rows, context), rotate.apply(turned, context), 1e-4)
    assert rotate.achieved(rows, turned, context) == pytest.approx(angle, abs=0.02)
    assert torch.equal(Rotate(0.0, planes).apply(rows, context), rows)


@pytest.mark.parametrize("planes", [1, 3, 32, None])
def test_rotation_changes_exactly_its_planes(context: Context, planes: int | None) -> None:
    """Of the matrix Q, two eigenvalues for each plane are exp(±iθ), the others 1."""
    matrix = Rotate(30.0, planes).apply(torch.eye(WIDTH), context)
    close(matrix @ matrix.T, torch.eye(WIDTH))
    assert float(torch.linalg.det(matrix.double())) == pytest.approx(1, abs=1e-4)
    angles = torch.linalg.eigvals(matrix.double()).angle().abs().rad2deg()
    turned = (angles - 30).abs() < 0.01
    assert int(turned.sum()) == 2 * (planes or WIDTH // 2)
    assert (angles[~turned] < 0.01).all()


def test_random_planes_are_shared_by_prompts_and_nested(context: Context) -> None:
    rows, state = random_rows(0), torch.random.get_rng_state()
    turned = Rotate(50.0, 2).apply(rows, context)
    elsewhere = Rotate(50.0, 2).apply(rows, replace(context, seed=77, prompt_id="two"))
    assert torch.equal(turned, elsewhere)
    assert not torch.allclose(turned, Rotate(50.0, 2).apply(rows, replace(context, shared_seed=77)), atol=1e-2)
    assert torch.equal(torch.random.get_rng_state(), state)
    one, two = (Rotate(180.0, planes).apply(torch.eye(WIDTH), context) - torch.eye(WIDTH) for planes in (1, 2))
    close(two @ one, -2 * one, 1e-4)  # the first plane is one of the two


def test_rotation_of_dimensions(context: Context) -> None:
    rows = random_rows(0)
    turned = Rotate(90.0, dimensions=[[0, 1], [7, 4]]).apply(rows, context)
    expected = rows.clone()
    expected[:, [0, 1, 7, 4]] = torch.stack([-rows[:, 1], rows[:, 0], -rows[:, 4], rows[:, 7]], dim=1)
    close(turned, expected)
    others = [i for i in range(WIDTH) if i not in (0, 1, 4, 7)]
    assert torch.equal(turned[:, others], rows[:, others])


def test_dimensions_can_be_configured() -> None:
    node = OmegaConf.structured(Rotate)
    OmegaConf.set_readonly(node, None)
    made: Any = OmegaConf.to_object(OmegaConf.merge(node, {"angle": 5, "planes": None, "dimensions": [[0, 1], [2, 3]]}))
    assert made == Rotate(5.0, None, [[0, 1], [2, 3]])


@pytest.mark.parametrize(
    "transform",
    [*(Center(c) for c in CLOUDS), *(RemoveComponents(2, c) for c in CLOUDS), *(TruncateRank(2, c) for c in CLOUDS)],
    ids=lambda t: f"{t.name} {getattr(t, 'mean', getattr(t, 'basis', ''))}",
)
def test_the_neutral_dose_changes_nothing(transform: Any, context: Context) -> None:
    rows = random_rows(0)
    assert not torch.equal(transform.apply(rows, context), rows)
    neutral = replace(transform, **{transform.dose: transform.neutral})
    assert neutral.is_neutral
    assert torch.equal(neutral.apply(rows, context), rows)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Center("median"), "mean"),
        (lambda: Center(strength=math.inf), "strength"),
        (lambda: RemoveComponents(-1), "k"),
        (lambda: RemoveComponents(1, "sweep"), "basis"),
        (lambda: RemoveComponents(1, strength=math.nan), "strength"),
        (lambda: TruncateRank(-1), "rank"),
        (lambda: TruncateRank(1, "row"), "basis"),
        (lambda: TruncateRank(strength=math.nan), "strength"),
        (lambda: Rotate(math.inf), "angle"),
        (lambda: Rotate(1.0, 0), "planes"),
        (lambda: Rotate(1.0, dimensions=[]), "dimensions"),
        (lambda: Rotate(1.0, dimensions=[[0, 1, 2]]), "dimensions"),
        (lambda: Rotate(1.0, dimensions=[[0, 1], [1, 2]]), "dimensions"),
        (lambda: Rotate(1.0, dimensions=[[3, 3]]), "dimensions"),
        (lambda: Rotate(1.0, dimensions=[[0, -1]]), "dimensions"),
    ],
)
def test_bad_parameters_are_refused(make: Callable[[], Transform], field: str) -> None:
    with pytest.raises(ConfigError, match=rf"transform\.{field}\b"):
        make()


def test_parameters_that_exceed_the_width_are_refused_in_the_plan(corpus: PromptSet) -> None:
    for fits in (Rotate(1.0, None), Rotate(1.0, 32), Rotate(1.0, dimensions=[[0, 63]])):
        fits.check(corpus)
    with pytest.raises(ConfigError, match=r"transform\.planes must be at most 32"):
        Rotate(1.0, 33).check(corpus)
    with pytest.raises(ConfigError, match=r"transform\.dimensions must be below the model's width, 64; got 64"):
        Rotate(1.0, dimensions=[[0, 64]]).check(corpus)
