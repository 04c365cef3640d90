"""Fewer or more rows that say the same."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sweep.errors import ConfigError
from sweep.inputs.prompt_set import PromptSet
from sweep.transforms import Context, Pipeline, Rows, Span, Stage
from sweep.transforms.length import Merge, Repeat, Stretch

COUNTS = st.integers(1, 40)
ROWS = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def context(corpus: PromptSet) -> Context:
    return Context(1, 2, corpus, "sky", Span("content"), ())


@settings(max_examples=30)
@given(COUNTS, st.integers(1, 5), st.sampled_from(["block", "each"]))
def test_repeat(context: Context, count: int, times: int, mode: str) -> None:
    transform = Repeat(times, mode)
    done = transform.rearrange(ROWS[:count], context)
    one = [(i,) for i in range(count)]
    assert list(done.parents) == (one * times if mode == "block" else [i for i in one for _ in range(times)])
    assert torch.equal(done.rows, ROWS[[i for (i,) in done.parents]])
    assert len(done.rows) == transform.max_rows(count) == times * count
    assert transform.achieved(ROWS[:count], done.rows, context) == times


@settings(max_examples=40)
@given(COUNTS, st.integers(1, 50), st.sampled_from(["mean", "norm_weighted"]))
def test_merge(context: Context, count: int, window: int, method: str) -> None:
    rows = ROWS[:count]
    done = Merge(window, method).rearrange(rows, context)
    groups = [list(range(i, min(i + window, count))) for i in range(0, count, window)]
    assert [list(parents) for parents in done.parents] == groups
    assert len(done.rows) == math.ceil(count / window)
    for merged, group in zip(done.rows, groups, strict=True):
        weights = rows[group].norm(dim=1, keepdim=True) if method == "norm_weighted" else torch.ones(len(group), 1)
        assert torch.allclose(merged, (weights * rows[group]).sum(0) / weights.sum(), atol=1e-6)
    assert Merge(window).achieved(rows, done.rows, context) == count / len(groups)


@pytest.mark.parametrize("method", ["mean", "norm_weighted"])
def test_merging_equal_rows_changes_none_and_one_row_nothing(context: Context, method: str) -> None:
    constant = ROWS[:1].repeat(7, 1)
    assert torch.allclose(Merge(3, method).apply(constant, context), ROWS[:1].expand(3, -1), atol=1e-6)
    assert torch.equal(Merge(1, method).apply(ROWS, context), ROWS)
    assert torch.equal(Merge(2, method).apply(torch.zeros(3, 8), context), torch.zeros(2, 8))


def test_merging_by_norm_weights_long_rows(context: Context) -> None:
    rows = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0], [5.0, 5.0]])
    assert torch.allclose(Merge(2, "norm_weighted").apply(rows, context), torch.tensor([[2.25, 0.25], [5.0, 5.0]]))


@settings(max_examples=60)
@given(COUNTS, st.floats(0.01, 5))
def test_stretch_interpolates_linear_rows_exactly(context: Context, count: int, rate: float) -> None:
    line = torch.arange(count, dtype=torch.float32)[:, None] * torch.tensor([1.0, -2.0])
    done = Stretch(rate).rearrange(line, context)
    wanted = max(1, math.floor(rate * count + 0.5))
    places = torch.linspace(0, count - 1, wanted) if wanted > 1 else torch.tensor([(count - 1) / 2])
    assert torch.allclose(done.rows, places[:, None] * torch.tensor([1.0, -2.0]), atol=1e-4)
    for place, parents in zip(done.rows[:, 0].tolist(), done.parents, strict=True):
        assert len(parents) == 1 or parents[1] == parents[0] + 1
        assert parents[0] <= place <= parents[-1]
        assert len(parents) == 2 or place == parents[0]
    assert Stretch(rate).achieved(line, done.rows, context) == wanted / count


@settings(max_examples=30)
@given(COUNTS, st.integers(1, 4))
def test_stretch_keeps_the_ends_and_whole_steps(context: Context, count: int, steps: int) -> None:
    rows = ROWS[:count]
    assert torch.equal(Stretch(1.0).apply(rows, context), rows)
    finer = Stretch(((count - 1) * steps + 1) / count).rearrange(rows, context)
    assert torch.equal(finer.rows[::steps], rows)
    assert list(finer.parents[::steps]) == [(i,) for i in range(count)]


@settings(max_examples=40)
@given(st.lists(st.booleans(), min_size=1, max_size=26).filter(any), st.floats(0.05, 4), st.integers(1, 4))
def test_no_span_exceeds_the_declared_length(corpus: PromptSet, inside: list[bool], rate: float, times: int) -> None:
    tensor = corpus.table.rows(corpus.layout("sky").token_ids)
    positions = tuple(i for i, chosen in enumerate(inside[: len(tensor)]) if chosen)
    for transform in (Stretch(rate), Repeat(times), Merge(times)):
        pipeline = Pipeline((Stage(transform, Span(positions=positions)),))
        rows, _ = pipeline.apply(tensor, "sky", corpus, 0, torch.float32)
        assert isinstance(rows, Rows)
        assert len(rows.tensor) <= pipeline.max_rows(len(tensor))


def test_stretch_reaches_its_declared_length(context: Context) -> None:
    assert len(Stretch(1.5).apply(ROWS, context)) == 60 == Stretch(1.5).max_rows(40)
    assert Stretch(0.5).max_rows(40) == 40
    assert Stretch(1.001).max_rows(2000) == 2003  # not 2002: three stretches of 500 rows gain one each, by rounding


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Repeat(0), r"transform\.times must be 1 or more"),
        (lambda: Repeat(2, "blok"), r"transform\.mode: 'blok'.*'block'"),
        (lambda: Merge(0), r"transform\.window must be 1 or more"),
        (lambda: Merge(2, "max"), r"transform\.method: 'max'"),
        (lambda: Stretch(0.0), r"transform\.rate must be more than 0"),
        (lambda: Stretch(float("inf")), r"transform\.rate must be a finite number"),
    ],
)
def test_bad_parameters_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
