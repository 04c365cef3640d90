"""Entries and rows that are taken away."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sweep.errors import ConfigError, TransformError
from sweep.inputs.prompt_set import PromptSet
from sweep.transforms import Context, Span
from sweep.transforms.masking import Dropout, DropRows, MaskRows

ROWS = torch.randn(400, 64, generator=torch.Generator().manual_seed(0)) + 3  # no entry is 0
SHARES = st.floats(0, 0.99)


@pytest.fixture(scope="module")
def context(corpus: PromptSet) -> Context:
    return Context(1, 2, corpus, "sky", Span("content"), ())


@settings(max_examples=30)
@given(SHARES)
def test_dropout_drops_the_requested_share(context: Context, p: float) -> None:
    transform = Dropout(p)
    after = transform.apply(ROWS, context)
    dropped = after == 0
    assert float(dropped.float().mean()) == pytest.approx(p, abs=4 * (0.25 / ROWS.numel()) ** 0.5)
    assert torch.allclose(after[~dropped], ROWS[~dropped] / (1 - p), rtol=1e-6)
    assert transform.achieved(ROWS, after, context) == pytest.approx(float(dropped.float().mean()))


def test_dropout_keeps_the_expected_rows(context: Context) -> None:
    ones = torch.ones(2000, 512)
    assert float(Dropout(0.75).apply(ones, context).mean()) == pytest.approx(1, abs=0.01)
    assert float(Dropout(0.75, rescale=False).apply(ones, context).mean()) == pytest.approx(0.25, abs=0.01)


def test_dropout_without_rescaling_leaves_the_others_bit_equal(context: Context) -> None:
    after = Dropout(0.5, rescale=False).apply(ROWS, context)
    assert torch.equal(after[after != 0], ROWS[after != 0])


def test_dropout_counts_only_what_it_changed(context: Context) -> None:
    before = torch.tensor([[0.0, 1.0, 0.0, 1.0]])
    assert Dropout(0.5).achieved(before, torch.tensor([[0.0, 2.0, 0.0, 0.0]]), context) == 0.5
    assert Dropout(0.5).achieved(torch.zeros(2, 2), torch.zeros(2, 2), context) is None


@settings(max_examples=30)
@given(SHARES, SHARES)
def test_smaller_shares_are_subsets_of_larger_ones(context: Context, one: float, other: float) -> None:
    small, large = sorted((one, other))
    dropped, more = (Dropout(p).apply(ROWS, context) == 0 for p in (small, large))
    assert not (dropped & ~more).any()
    masked, more = ((MaskRows(p).apply(ROWS, context) == 0).all(1) for p in (small, large))
    assert not (masked & ~more).any()
    gone, more_gone = (
        set(range(400)) - {i for (i,) in DropRows(p).rearrange(ROWS, context).parents} for p in (small, large)
    )
    assert gone <= more_gone


@settings(max_examples=30)
@given(st.floats(0, 1), st.sampled_from(["zero", "mean", "pad"]))
def test_masked_rows_are_the_fill_and_others_bit_equal(context: Context, p: float, fill: str) -> None:
    transform = MaskRows(p, fill)
    after = transform.apply(ROWS, context)
    filled = {"zero": torch.zeros(64), "mean": context.table.mean, "pad": context.table.rows([0])[0]}[fill]
    masked = (after != ROWS).any(1)
    assert torch.equal(after[masked], filled.expand(int(masked.sum()), -1))
    assert float(masked.float().mean()) == pytest.approx(p, abs=4 * (0.25 / 400) ** 0.5)
    assert transform.achieved(ROWS, after, context) == pytest.approx(float(masked.float().mean()))


@pytest.mark.parametrize("transform", [MaskRows, DropRows])
def test_share_of_1_takes_every_row(context: Context, transform: type[MaskRows] | type[DropRows]) -> None:
    after = transform(1.0).apply(ROWS, context)
    assert not after.any()
    assert transform(1.0).achieved(ROWS, after, context) == 1
    assert torch.equal(transform(0.0).apply(ROWS, context), ROWS)


def test_the_share_of_masked_rows_survives_the_cast(context: Context) -> None:
    transform = MaskRows(0.3, "mean")
    after = transform.apply(ROWS, context)
    exact = transform.achieved(ROWS, after, context)
    assert 0 < exact < 1
    assert transform.achieved(ROWS, after.bfloat16().float(), context) == exact


def test_a_fill_that_the_tokenizer_lacks_is_refused_before_the_engine(context: Context, corpus: PromptSet) -> None:
    with pytest.raises(ConfigError, match=r"transform\.fill=mask: .*no mask token"):
        MaskRows(1.0, "mask").check(corpus)
    with pytest.raises(TransformError, match="no mask token"):
        MaskRows(1.0, "mask").apply(ROWS, context)
    MaskRows(1.0, "pad").check(corpus)


@settings(max_examples=30)
@given(st.floats(0, 1))
def test_dropped_rows_leave_the_others_in_order(context: Context, p: float) -> None:
    done = DropRows(p).rearrange(ROWS, context)
    numbers = [i for (i,) in done.parents]
    assert numbers == sorted(set(numbers))
    assert torch.equal(done.rows, ROWS[numbers])
    assert DropRows(p).achieved(ROWS, done.rows, context) == pytest.approx(1 - len(numbers) / 400)
    assert 1 - len(numbers) / 400 == pytest.approx(p, abs=4 * (0.25 / 400) ** 0.5)


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_bad_shares_are_refused(p: float) -> None:
    for transform in (Dropout, MaskRows, DropRows):
        with pytest.raises(ConfigError, match=r"transform\.p must be"):
            transform(p)


def test_dropout_of_everything_and_unknown_fills_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"transform\.p must be at least 0 and less than 1; got 1\.0"):
        Dropout(1.0)
    with pytest.raises(ConfigError, match=r"transform\.fill: 'meen' .*Did you mean 'mean'"):
        MaskRows(0.5, "meen")
