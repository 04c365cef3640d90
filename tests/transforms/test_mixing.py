"""Mixtures: their ends are exact, slerp keeps to the great circle, and prompts of unequal lengths are brought together."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sweep.errors import ConfigError, TransformError
from sweep.inputs.prompt_set import PromptSet
from sweep.transforms import Context, Span, Transform
from sweep.transforms._math import angles, resampled
from sweep.transforms.mixing import Baseline, Lerp, Mixture, Slerp

CONTENT = Span(part="content")
LENGTHS = {"hello": 11, "sky": 20, "two": 7}
TEXT = "Nobody expects this!"  # as long as the prompt `sky`


def context_of(corpus: PromptSet, prompt_id: str = "sky") -> Context:
    """The contents of a prompt."""
    return Context(1, 2, corpus, prompt_id, CONTENT, [(i,) for i in corpus.numbers(CONTENT, prompt_id)])


def rows_of(corpus: PromptSet, prompt_id: str = "sky") -> Tensor:
    ids = corpus.layout(prompt_id).token_ids
    return corpus.table.rows([ids[i] for i in corpus.numbers(CONTENT, prompt_id)])


@dataclass(frozen=True, slots=True)
class FixedContext(Context):
    """A context whose other prompt has rows that the test chooses."""

    rows: Any = None

    def other(self, prompt_id: str | None = None) -> Tensor:
        assert isinstance(self.rows, Tensor)
        return self.rows


def fixed(corpus: PromptSet, rows: Tensor) -> Context:
    return FixedContext(1, 2, corpus, "sky", CONTENT, [], rows)


def random_rows(seed: int, count: int = 9, width: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator) * torch.logspace(-2, 1, count)[:, None]


def test_test_prompts_have_the_expected_lengths(corpus: PromptSet) -> None:
    assert {name: len(rows_of(corpus, name)) for name in LENGTHS} == LENGTHS
    assert len(context_of(corpus).embed(TEXT)) == LENGTHS["sky"]


@pytest.mark.parametrize("kind", [Lerp, Slerp])
def test_ends_are_exact(kind: type[Mixture], corpus: PromptSet) -> None:
    rows, context = rows_of(corpus), context_of(corpus)
    assert torch.equal(kind(1.0, text=TEXT).apply(rows, context), context.embed(TEXT))
    assert torch.equal(kind(0.0, text=TEXT).apply(rows, context), rows)
    for seed in range(20):
        a, b = random_rows(seed), random_rows(seed + 100)
        assert torch.equal(kind(1.0).apply(a, fixed(corpus, b)), b)
        assert torch.equal(kind(0.0).apply(a, fixed(corpus, b)), a)


@settings(max_examples=25, deadline=None)
@given(st.floats(-3, 3), st.integers(0, 99))
def test_lerp(corpus: PromptSet, t: float, seed: int) -> None:
    a, b = random_rows(seed), random_rows(seed + 100)
    mixed = Lerp(t).apply(a, fixed(corpus, b))
    torch.testing.assert_close(mixed, (1 - t) * a + t * b, rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 1), st.integers(0, 99), st.floats(1e-6, math.pi - 0.01))
def test_slerp(corpus: PromptSet, t: float, seed: int, angle: float) -> None:
    """Norms are in a line, the angle to the prompt's row is t · Ω, and no row leaves the plane of the two."""
    a, c = random_rows(seed), random_rows(seed + 100)
    norms = a.norm(dim=-1, keepdim=True)
    side = c - (c * a).sum(-1, keepdim=True) / norms**2 * a
    b = 3 * (math.cos(angle) * a + math.sin(angle) * side * norms / side.norm(dim=-1, keepdim=True))
    slerp, context = Slerp(t), fixed(corpus, b)
    mixed = slerp.apply(a, context)
    torch.testing.assert_close(mixed.norm(dim=-1, keepdim=True), (1 + 2 * t) * norms, rtol=1e-4, atol=0)
    omega, gone, left = angles(a, b), angles(a, mixed), angles(mixed, b)
    torch.testing.assert_close(omega, torch.full_like(omega, angle), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(gone, t * omega, rtol=0, atol=1e-4)
    torch.testing.assert_close(gone + left, omega, rtol=0, atol=1e-4)
    if angle > 0.1:
        assert slerp.achieved(a, mixed, context) == pytest.approx(t, abs=1e-3)


def test_slerp_of_zero_and_parallel_rows(corpus: PromptSet) -> None:
    a = random_rows(0)
    torch.testing.assert_close(Slerp(0.25).apply(a, fixed(corpus, 3 * a)), 1.5 * a)
    b = random_rows(1)
    a[3], b[4] = 0.0, 0.0
    mixed = Slerp(0.25).apply(a, fixed(corpus, b))
    torch.testing.assert_close(mixed[3:5], torch.lerp(a, b, 0.25)[3:5])
    assert mixed.isfinite().all()
    assert Slerp(0.5).achieved(a, a, fixed(corpus, a)) is None
    b[7] = -2 * a[7]
    with pytest.raises(TransformError, match=r"row 7 .* opposite direction"):
        Slerp(0.25).apply(a, fixed(corpus, b))


@pytest.mark.parametrize("kind", [Lerp, Slerp])
@pytest.mark.parametrize(("prompt_id", "other"), [("hello", "sky"), ("sky", "two"), ("two", "hello")])
def test_the_next_prompt_is_mixed_in_unless_another_is_named(
    kind: type[Mixture], prompt_id: str, other: str, corpus: PromptSet
) -> None:
    rows, context = rows_of(corpus, prompt_id), context_of(corpus, prompt_id)
    unnamed = kind(0.5, align="resample").apply(rows, context)
    assert torch.equal(unnamed, kind(0.5, other=other, align="resample").apply(rows, context))
    third = ({"hello", "sky", "two"} - {prompt_id, other}).pop()
    assert not torch.equal(unnamed, kind(0.5, other=third, align="resample").apply(rows, context))
    assert torch.equal(kind(0.5, other=prompt_id).apply(rows, context), rows)


@pytest.mark.parametrize("kind", [Lerp, Slerp])
def test_alignment(kind: type[Mixture], corpus: PromptSet) -> None:
    sky, hello = rows_of(corpus, "sky"), rows_of(corpus, "hello")
    in_sky, in_hello = context_of(corpus, "sky"), context_of(corpus, "hello")

    for rows, context, other in ((sky, in_sky, "hello"), (hello, in_hello, "sky")):
        with pytest.raises(TransformError, match=f"{len(rows)} rows .* {LENGTHS[other]}. .* truncate, pad or resample"):
            kind(0.5, other=other).apply(rows, context)

    truncated = kind(1.0, other="hello", align="truncate").apply(sky, in_sky)
    assert torch.equal(truncated[:11], hello) and torch.equal(truncated[11:], sky[11:])
    assert torch.equal(kind(1.0, other="sky", align="truncate").apply(hello, in_hello), sky[:11])

    padded = kind(1.0, other="hello", align="pad").apply(sky, in_sky)
    assert torch.equal(padded[:11], hello) and torch.equal(padded[11:], corpus.table.rows([0] * 9))
    with pytest.raises(TransformError, match=r"11 rows .* 20\. Set transform\.align to truncate or resample"):
        kind(0.5, other="sky", align="pad").apply(hello, in_hello)

    for rows, other, context in ((sky, "hello", in_sky), (hello, "sky", in_hello)):
        target = rows_of(corpus, other)
        read = kind(1.0, other=other, align="resample").apply(rows, context)
        assert len(read) == len(rows)
        assert torch.equal(read[0], target[0]) and torch.equal(read[-1], target[-1])
        assert torch.equal(read, resampled(target, len(rows)))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12))
def test_resampling(have: int, need: int) -> None:
    """A line stays that line, ends are kept, and as many rows are the rows themselves."""
    line = torch.arange(have, dtype=torch.float32)[:, None] * torch.tensor([1.0, -2.0]) + 3
    read = resampled(line, need)
    ends = torch.linspace(0, have - 1, need) if need > 1 else torch.tensor([(have - 1) / 2])
    torch.testing.assert_close(read, ends[:, None] * torch.tensor([1.0, -2.0]) + 3, rtol=1e-5, atol=1e-5)
    assert need == 1 or (torch.equal(read[0], line[0]) and torch.equal(read[-1], line[-1]))
    assert torch.equal(resampled(line, have), line)


def test_single_prompt_without_a_text_is_refused(corpus: PromptSet) -> None:
    alone = PromptSet([p for p in corpus.prompts if p.prompt.id == "sky"], corpus.table, corpus.checkpoint)
    context = replace(context_of(corpus), corpus=alone)
    with pytest.raises(TransformError, match="no other prompt"):
        Lerp(0.5).apply(rows_of(corpus), context)
    assert len(Lerp(0.5, text=TEXT).apply(rows_of(corpus), context)) == LENGTHS["sky"]


@settings(max_examples=20, deadline=None)
@given(st.floats(-1, 2), st.sampled_from(["zero", "mean", "pad"]))
def test_baseline(corpus: PromptSet, t: float, to: str) -> None:
    rows, context = rows_of(corpus), context_of(corpus)
    end = {"zero": torch.zeros(64), "mean": corpus.table.rows(range(272)).mean(0), "pad": corpus.table.rows([0])[0]}[to]
    moved = Baseline(t, to).apply(rows, context)
    torch.testing.assert_close(moved, rows + t * (end - rows), rtol=1e-5, atol=1e-6)
    exact = {"zero": torch.zeros(64), "mean": corpus.table.mean, "pad": context.special("pad")}[to]
    assert torch.equal(Baseline(1.0, to).apply(rows, context), exact.expand_as(rows))
    assert torch.equal(Baseline(0.0, to).apply(rows, context), rows)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Lerp(math.nan), "t"),
        (lambda: Lerp(1.0, "a", "b"), "other"),
        (lambda: Lerp(align="stretch"), "align"),
        (lambda: Slerp(1.5), "t"),
        (lambda: Slerp(-0.5), "t"),
        (lambda: Baseline(math.inf), "t"),
        (lambda: Baseline(to="unk"), "to"),
    ],
)
def test_bad_parameters_are_refused(make: Callable[[], Transform], field: str) -> None:
    with pytest.raises(ConfigError, match=rf"transform\b.*{field}\b"):
        make()


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (Lerp(0.5, other="skye"), "transform.other: there is no prompt 'skye'. Did you mean 'sky'"),
        (Slerp(0.5, text=""), "transform.text has no tokens"),
        (Lerp(0.5, align="pad"), "transform.align: .* no pad token"),
        (Baseline(0.5, to="pad"), "transform.to: .* no pad token"),
    ],
)
def test_missing_counterparts_are_refused_in_the_plan(transform: Transform, message: str, corpus: PromptSet) -> None:
    class Padless(PromptSet):
        def special(self, name: str) -> int:
            raise TransformError(f"the model's tokenizer has no {name} token")

    for fits in (Lerp(0.5, other="sky", align="pad"), Slerp(0.5, text=TEXT), Baseline(0.5, to="pad")):
        fits.check(corpus)
    with pytest.raises(ConfigError, match=message):
        transform.check(Padless(corpus.prompts, corpus.table, corpus.checkpoint))
