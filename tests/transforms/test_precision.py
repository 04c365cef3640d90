"""Rounding: its error is bounded by its step, it is idempotent, and its noise is what the formats are known for."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sweep.errors import ConfigError
from sweep.inputs.prompt_set import PromptSet
from sweep.transforms import Context, Span
from sweep.transforms.precision import LEVELS, Quantize

FORMATS = ("int8", "int4", "fp8_e4m3", "fp8_e5m2", "bf16", "fp16")
GRANULARITIES = ("row", "tensor", "group")


@pytest.fixture(scope="module")
def context(corpus: PromptSet) -> Context:
    """The contents of the prompt `sky`."""
    span = Span(part="content")
    return Context(1, 2, corpus, "sky", span, [(i,) for i in corpus.numbers(span, "sky")])


def random_rows(seed: int, count: int, width: int) -> Tensor:
    """Rows of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator) * torch.logspace(-2, 1, count)[:, None]


def steps(rows: Tensor, levels: int, granularity: str, group_size: int) -> Tensor:
    """The scale that each entry has, its group's largest magnitude over the largest level."""
    if granularity == "tensor":
        return torch.full_like(rows, float(rows.abs().max()) / levels)
    size = rows.shape[1] if granularity == "row" else group_size
    groups = torch.split(rows, size, dim=1)
    return torch.cat([group.abs().amax(1, keepdim=True).expand_as(group) / levels for group in groups], 1)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 999), st.integers(1, 9), st.integers(1, 100), st.integers(1, 70),
    st.sampled_from(sorted(LEVELS)), st.sampled_from(GRANULARITIES),
)  # fmt: skip
def test_integers(
    context: Context, seed: int, count: int, width: int, group_size: int, format: str, granularity: str
) -> None:
    rows = random_rows(seed, count, width)
    rounded = Quantize(format, granularity, group_size).apply(rows, context)
    step = steps(rows, LEVELS[format], granularity, group_size)
    assert ((rounded - rows).abs() <= step / 2 * (1 + 1e-4)).all()
    codes = rounded / step
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-4)
    assert codes.abs().max() <= LEVELS[format] * (1 + 1e-5)


@pytest.mark.parametrize(("format", "dtype"), [("fp8_e4m3", torch.float8_e4m3fn), ("fp8_e5m2", torch.float8_e5m2)])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_fp8_uses_the_whole_range(context: Context, format: str, dtype: torch.dtype, granularity: str) -> None:
    rows = random_rows(0, 9, 100)
    largest = torch.finfo(dtype).max
    step = steps(rows, int(largest), granularity, 24)
    codes = Quantize(format, granularity, 24).apply(rows, context) / step
    torch.testing.assert_close(codes, codes.to(dtype).float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(codes, (rows / step).to(dtype).float(), rtol=1e-5, atol=1e-5)
    assert float(codes.abs().max()) == pytest.approx(largest, rel=1e-5)


@pytest.mark.parametrize("format", FORMATS)
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.integers(1, 9), st.integers(1, 100), st.sampled_from(GRANULARITIES))
def test_idempotent(context: Context, format: str, seed: int, count: int, width: int, granularity: str) -> None:
    quantize = Quantize(format, granularity, group_size=24)
    once = quantize.apply(random_rows(seed, count, width), context)
    torch.testing.assert_close(quantize.apply(once, context), once, rtol=1e-6, atol=0)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_zero_rows_stay_zero(context: Context, format: str, granularity: str) -> None:
    rows = random_rows(0, 4, 64)
    rows[1] = 0.0
    rows[2] = 1e-42
    rounded = Quantize(format, granularity).apply(rows, context)
    assert rounded.isfinite().all()
    assert not rounded[1].any()
    assert not Quantize(format, granularity).apply(0 * rows, context).any()


@pytest.mark.parametrize(
    ("format", "snr_db", "tolerance"),
    [("int8", 41.2, 0.5), ("int4", 15.8, 0.7), ("fp8_e4m3", 31.5, 0.3), ("fp8_e5m2", 25.5, 0.5), ("bf16", 55.6, 0.3)],
)
def test_signal_to_noise_of_gaussian_rows(context: Context, format: str, snr_db: float, tolerance: float) -> None:
    rows = torch.randn(64, 4096, generator=torch.Generator().manual_seed(0))
    error = Quantize(format).apply(rows, context) - rows
    assert 20 * math.log10(float(rows.norm() / error.norm())) == pytest.approx(snr_db, abs=tolerance)


def test_finer_scales_are_nearer(context: Context) -> None:
    rows = random_rows(0, 32, 512)
    errors = [float((Quantize("int4", g).apply(rows, context) - rows).norm()) for g in ("group", "row", "tensor")]
    assert errors == sorted(errors) and len(set(errors)) == 3
    assert torch.equal(
        Quantize("int4", "group", 512).apply(rows, context), Quantize("int4", "row").apply(rows, context)
    )


def test_plain_casts(context: Context) -> None:
    rows = random_rows(0, 8, 64)
    for granularity in GRANULARITIES:
        assert torch.equal(Quantize("bf16", granularity).apply(rows, context), rows.bfloat16().float())
        assert torch.equal(Quantize("fp16", granularity).apply(rows, context), rows.half().float())


@settings(max_examples=20, deadline=None)
@given(st.floats(-1, 2))
def test_strength_interpolates_linearly(context: Context, strength: float) -> None:
    rows = random_rows(0, 8, 64)
    whole, part = Quantize("int4").apply(rows, context), Quantize("int4", strength=strength).apply(rows, context)
    torch.testing.assert_close(part, rows + strength * (whole - rows), rtol=1e-5, atol=1e-5)
    assert torch.equal(Quantize("int4", strength=0.0).apply(rows, context), rows)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Quantize("int3"), "format"),
        (lambda: Quantize(granularity="column"), "granularity"),
        (lambda: Quantize(group_size=0), "group_size"),
        (lambda: Quantize(strength=math.nan), "strength"),
    ],
)
def test_bad_parameters_are_refused(make: Callable[[], Quantize], field: str) -> None:
    with pytest.raises(ConfigError, match=rf"transform\.{field}\b"):
        make()
