"""Rows in another order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sweep.errors import ConfigError
from sweep.inputs.prompt_set import PromptSet
from sweep.transforms import Context, Span
from sweep.transforms.order import Reordering, Reverse, Roll, Shuffle

COUNTS = st.integers(1, 40)
WINDOWS = st.integers(0, 50)


@pytest.fixture(scope="module")
def context(corpus: PromptSet) -> Context:
    return Context(1, 2, corpus, "sky", Span("content"), ())


def rows_of(count: int) -> torch.Tensor:
    return torch.arange(count * 3, dtype=torch.float32).view(count, 3)


def order_of(transform: Reordering, count: int, context: Context) -> list[int]:
    """Return the new order, having checked that rows and parents tell the same."""
    rows = rows_of(count)
    done = transform.rearrange(rows, context)
    order = [i for (i,) in done.parents]
    assert torch.equal(done.rows, rows[order])
    return order


@settings(max_examples=60)
@given(COUNTS, WINDOWS, st.integers(-60, 60))
def test_rows_stay_within_their_windows_and_are_permuted(context: Context, count: int, window: int, shift: int) -> None:
    for transform in (Shuffle(window), Reverse(window), Roll(shift, window)):
        order = order_of(transform, count, context)
        assert sorted(order) == list(range(count))
        width = window or count
        assert [i // width for i in order] == [i // width for i in range(count)]


@settings(max_examples=30)
@given(COUNTS, WINDOWS)
def test_reversing_twice_is_the_identity(context: Context, count: int, window: int) -> None:
    once = Reverse(window).apply(rows_of(count), context)
    assert torch.equal(Reverse(window).apply(once, context), rows_of(count))


@settings(max_examples=30)
@given(COUNTS, WINDOWS, st.integers(-60, 60))
def test_rolling_back_is_the_identity(context: Context, count: int, window: int, shift: int) -> None:
    once = Roll(shift, window).apply(rows_of(count), context)
    assert torch.equal(Roll(-shift, window).apply(once, context), rows_of(count))


@settings(max_examples=30)
@given(COUNTS, st.integers(-60, 60))
def test_whole_span_is_rolled_and_flipped_as_by_torch(context: Context, count: int, shift: int) -> None:
    rows = rows_of(count)
    assert torch.equal(Roll(shift).apply(rows, context), rows.roll(shift, 0))
    assert torch.equal(Reverse(0).apply(rows, context), rows.flip(0))


def test_windows_by_hand(context: Context) -> None:
    assert order_of(Reverse(3), 8, context) == [2, 1, 0, 5, 4, 3, 7, 6]
    assert order_of(Roll(1, 3), 8, context) == [2, 0, 1, 5, 3, 4, 7, 6]


def test_window_of_one_row_changes_nothing(context: Context) -> None:
    for transform in (Shuffle(1), Reverse(1), Roll(5, 1), Roll(0)):
        assert order_of(transform, 30, context) == list(range(30))


def test_shuffles_depend_on_the_seed_alone(context: Context) -> None:
    first = order_of(Shuffle(0), 30, context)
    assert first != list(range(30))
    torch.manual_seed(7)
    assert order_of(Shuffle(0), 30, context) == first
    assert order_of(Shuffle(0), 30, context.fork(1)) != first
    assert order_of(Shuffle(30), 30, context) == first


def test_all_orders_are_equally_likely(context: Context) -> None:
    orders = [tuple(order_of(Shuffle(0), 3, context.fork(i))) for i in range(1200)]
    counts = [orders.count(order) for order in set(orders)]
    assert len(counts) == 6
    assert all(140 < count < 260 for count in counts)  # 200 expected, deviation 13


@pytest.mark.parametrize("transform", [Shuffle, Reverse, lambda window: Roll(1, window)])
def test_negative_windows_are_refused(transform: type[Shuffle]) -> None:
    with pytest.raises(ConfigError, match=r"transform\.window must be .*; got -1"):
        transform(-1)
