"""Transforms of lengths: norms are what is asked for, directions are kept."""

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
from sweep.transforms import Context, Span, Transform
from sweep.transforms.norms import ClipNorm, Normalize, RMSMatch, Scale

FACTORS = st.floats(-8, 8).filter(lambda x: abs(x) > 1e-3)


def random_rows(seed: int, count: int = 12, width: int = 64, zeros: bool = False) -> Tensor:
    """Rows of very different lengths."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, width, generator=generator) * torch.logspace(-3, 2, count)[:, None]
    if zeros:
        rows[count // 2] = 0.0
    return rows


def rms(rows: Tensor) -> Tensor:
    return rows.square().mean(-1).sqrt()


def cosines(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.cosine_similarity(a.double(), b.double(), eps=1e-30)


@pytest.fixture(scope="module")
def context(corpus: PromptSet) -> Context:
    """The contents of the prompt `sky`."""
    span = Span(part="content")
    return Context(1, 2, corpus, "sky", span, [(i,) for i in corpus.numbers(span, "sky")])


@pytest.fixture(scope="module")
def rows(context: Context) -> Tensor:
    ids = context.corpus.layout("sky").token_ids
    return context.table.rows([ids[i] for (i,) in context.origins])


@settings(max_examples=20, deadline=None)
@given(FACTORS, FACTORS, st.integers(0, 99))
def test_scales_multiply(context: Context, a: float, b: float, seed: int) -> None:
    rows = random_rows(seed)
    once, twice = Scale(a * b).apply(rows, context), Scale(b).apply(Scale(a).apply(rows, context), context)
    torch.testing.assert_close(once, twice, rtol=1e-6, atol=0)
    assert Scale(a).achieved(rows, Scale(a).apply(rows, context), context) == pytest.approx(a, rel=1e-6)


def test_factor_lost_in_the_cast_is_achieved_as_1(context: Context, rows: Tensor) -> None:
    before = rows.bfloat16().float()
    assert torch.equal(Scale(1.0).apply(rows, context), rows)
    assert Scale(1.001).achieved(before, Scale(1.001).apply(before, context).bfloat16().float(), context) == 1.0
    assert Scale(1.2).achieved(before, Scale(1.2).apply(before, context).bfloat16().float(), context) != 1.2
    assert Scale(2.0).achieved(torch.zeros(3, 8), torch.zeros(3, 8), context) is None


@pytest.mark.parametrize(
    ("transform", "wanted"),
    [
        (RMSMatch("value", 0.25), lambda rows, context: 0.25),
        (RMSMatch("table"), lambda rows, context: context.table.rms),
        (RMSMatch("prompt"), lambda rows, context: float(rows.square().mean().sqrt())),
        (Normalize(3.0), lambda rows, context: 3.0 / rows.shape[1] ** 0.5),
    ],
    ids=["value", "table", "prompt", "normalize"],
)
@pytest.mark.parametrize("seed", range(3))
def test_every_row_gets_the_norm(
    context: Context, transform: Transform, wanted: Callable[[Tensor, Context], float], seed: int
) -> None:
    rows = random_rows(seed)
    matched = transform.apply(rows, context)
    target = torch.full((len(rows),), wanted(rows, context))
    torch.testing.assert_close(rms(matched), target, rtol=1e-5, atol=0)
    assert (cosines(matched, rows) > 1 - 1e-6).all()
    torch.testing.assert_close(transform.apply(matched, context), matched, rtol=1e-5, atol=0)


def test_original_restores_the_norms(context: Context, rows: Tensor) -> None:
    changed = rows * torch.linspace(0.5, 3, len(rows))[:, None]
    torch.testing.assert_close(RMSMatch("original").apply(changed, context), rows, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(RMSMatch("original").apply(rows, context), rows, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("make", [lambda s: RMSMatch("table", strength=s), lambda s: Normalize(2.0, strength=s)])
@given(strength=st.floats(-2, 3))
@settings(max_examples=15, deadline=None)
def test_strength_interpolates_linearly(context: Context, make: Callable[[float], Transform], strength: float) -> None:
    rows = random_rows(0)
    whole, part = make(1.0).apply(rows, context), make(strength).apply(rows, context)
    torch.testing.assert_close(part, rows + strength * (whole - rows), rtol=1e-4, atol=1e-5)
    assert torch.equal(make(0.0).apply(rows, context), rows)


@settings(max_examples=20, deadline=None)
@given(st.floats(1e-3, 100), st.integers(0, 99), st.sampled_from(["absolute", "table_rms"]))
def test_clipping(context: Context, max_norm: float, seed: int, unit: str) -> None:
    rows = random_rows(seed, zeros=True)
    clip = ClipNorm(max_norm, unit)
    limit = max_norm * (context.table.rms * rows.shape[1] ** 0.5 if unit == "table_rms" else 1.0)
    clipped = clip.apply(rows, context)
    short = rows.norm(dim=-1) <= limit * (1 - 1e-6)
    assert torch.equal(clipped[short], rows[short])
    assert (clipped.norm(dim=-1) <= limit * (1 + 1e-6)).all()
    torch.testing.assert_close(
        clipped[~short].norm(dim=-1), torch.full((int((~short).sum()),), limit), rtol=1e-5, atol=0
    )
    assert (cosines(clipped[~short], rows[~short]) > 1 - 1e-6).all()
    torch.testing.assert_close(clip.apply(clipped, context), clipped, rtol=1e-6, atol=0)
    if not short.all():
        assert clip.achieved(rows, clipped, context) == pytest.approx(max_norm, rel=1e-5)
    assert torch.equal(ClipNorm().apply(rows, context), rows)


@pytest.mark.parametrize("transform", [RMSMatch("prompt"), Normalize(2.0), ClipNorm(0.1), Scale(2.0)])
def test_zero_rows_stay_zero(context: Context, transform: Transform) -> None:
    rows = random_rows(0, zeros=True)
    changed = transform.apply(rows, context)
    assert not changed[len(rows) // 2].any()
    assert changed.isfinite().all()
    assert not transform.apply(torch.zeros(3, 64), context).any()


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Scale(math.nan), "factor"),
        (lambda: RMSMatch("tabel"), "to"),
        (lambda: RMSMatch("value", 0.0), "value"),
        (lambda: RMSMatch("value", math.inf), "value"),
        (lambda: RMSMatch(strength=math.inf), "strength"),
        (lambda: ClipNorm(0.0), "max_norm"),
        (lambda: ClipNorm(math.nan), "max_norm"),
        (lambda: ClipNorm(1.0, "rms"), "unit"),
        (lambda: Normalize(-1.0), "norm"),
        (lambda: Normalize(strength=math.nan), "strength"),
    ],
)
def test_bad_parameters_are_refused(make: Callable[[], Transform], field: str) -> None:
    with pytest.raises(ConfigError, match=rf"transform\.{field}\b"):
        make()
