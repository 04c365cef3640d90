"""Noise: as strong as it is asked for, the same at one seed whatever its strength, and of the right distribution."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sweep.errors import ConfigError
from sweep.inputs.prompt_set import PromptSet
from sweep.transforms import Context, Span, Transform
from sweep.transforms._math import unit_size
from sweep.transforms.noise import BernoulliNoise, DXPrivacy, NEFTune, Noise, SNRNoise

SHAPES = st.tuples(st.integers(1, 40), st.integers(2, 96))


@pytest.fixture(scope="module")
def context(corpus: PromptSet) -> Context:
    """The contents of the prompt `sky`."""
    span = Span(part="content")
    return Context(1, 2, corpus, "sky", span, [(i,) for i in corpus.numbers(span, "sky")])


@pytest.fixture(scope="module")
def rows(context: Context) -> Tensor:
    ids = context.corpus.layout("sky").token_ids
    return context.table.rows([ids[i] for (i,) in context.origins])


def random_rows(seed: int, count: int = 200, width: int = 512) -> Tensor:
    """Rows of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator) * torch.linspace(0.1, 3, count)[:, None]


def rms(rows: Tensor) -> Tensor:
    return rows.square().mean(-1).sqrt()


@pytest.mark.parametrize(
    "make",
    [
        lambda x: Noise(x),
        lambda x: Noise(x, "row_rms"),
        lambda x: NEFTune(x),
        lambda x: BernoulliNoise(x),
        lambda x: SNRNoise(-20 * math.log10(x)),
        lambda x: SNRNoise(-20 * math.log10(x), per="prompt"),
        lambda x: DXPrivacy(1 / x),
    ],
    ids=["noise", "noise row_rms", "neftune", "bernoulli", "snr row", "snr prompt", "dx"],
)
def test_seeds(make: Callable[[float], Transform], context: Context, rows: Tensor) -> None:
    """Stronger noise is the same noise, longer; another seed is another noise; nobody else's generator is touched."""
    state, kept = torch.random.get_rng_state(), rows.clone()
    weak, strong = (make(x).apply(rows, context) - rows for x in (1.0, 4.0))
    torch.testing.assert_close(strong, 4 * weak, rtol=1e-3, atol=1e-5)
    assert torch.equal(make(1.0).apply(rows, context), make(1.0).apply(rows, context))
    other = make(1.0).apply(rows, replace(context, seed=99)) - rows
    similarity = torch.cosine_similarity(weak.flatten(), other.flatten(), dim=0)
    assert abs(float(similarity)) < 5 / rows.numel() ** 0.5
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(rows, kept)


@pytest.mark.parametrize("unit", ["absolute", "table_std", "row_rms"])
@pytest.mark.parametrize("sigma", [0.1, 2.0])
def test_gaussian_noise(context: Context, unit: str, sigma: float) -> None:
    rows = random_rows(0)
    noise = Noise(sigma, unit)
    added = noise.apply(rows, context) - rows
    size = {"absolute": torch.tensor(1.0), "table_std": torch.tensor(context.table.std), "row_rms": rms(rows)[:, None]}
    standard = added / (sigma * size[unit])
    assert float(standard.std()) == pytest.approx(1, rel=0.01)
    assert abs(float(standard.mean())) < 4 / rows.numel() ** 0.5
    assert float(standard.pow(4).mean()) == pytest.approx(3, rel=0.05)  # a uniform one has 1.8
    assert (rms(standard) - 1).abs().max() < 0.2  # in each row, short or long
    assert noise.achieved(rows, rows + added, context) == pytest.approx(sigma, rel=0.01)
    assert noise.achieved(rows, rows, context) == 0


def test_unit_is_the_standard_deviation_around_the_mean() -> None:
    table: Any = SimpleNamespace(std=2.0, rms=3.0)
    assert unit_size("table_std", torch.ones(2, 4), table) == 2.0


def test_proportional_noise_keeps_zero_rows(context: Context) -> None:
    rows = random_rows(0, 5, 64)
    rows[2] = 0.0
    for transform, dose, tolerance in ((Noise(1.0, "row_rms"), 1.0, 0.2), (SNRNoise(0.0), 0.0, 1.5)):
        noisy = transform.apply(rows, context)
        assert noisy.isfinite().all()
        assert not noisy[2].any() and noisy[3].ne(rows[3]).all()
        assert transform.achieved(rows, noisy, context) == pytest.approx(dose, abs=tolerance)
        assert transform.achieved(0 * rows, 0 * rows, context) is None
    assert SNRNoise(0.0, per="prompt").apply(rows, context)[2].ne(0).all()


@settings(max_examples=25, deadline=None)
@given(SHAPES, st.floats(0.01, 50))
def test_bernoulli_noise_has_exactly_the_norm(context: Context, shape: tuple[int, int], alpha: float) -> None:
    rows = torch.zeros(shape)
    added = BernoulliNoise(alpha).apply(rows, context)
    assert float(added.double().norm()) == pytest.approx(alpha, rel=1e-6)
    assert len(torch.unique(added.abs())) == 1
    assert BernoulliNoise(alpha).achieved(rows, added, context) == pytest.approx(alpha, rel=1e-5)


def test_bernoulli_signs_are_even(context: Context) -> None:
    signs = BernoulliNoise(1.0).apply(torch.zeros(400, 512), context).sign()
    assert abs(float(signs.mean())) < 4 / signs.numel() ** 0.5


@settings(max_examples=25, deadline=None)
@given(SHAPES, st.floats(0.01, 50))
def test_neftune_is_bounded(context: Context, shape: tuple[int, int], alpha: float) -> None:
    added = NEFTune(alpha).apply(torch.zeros(shape), context)
    assert float(added.abs().max()) <= alpha / math.prod(shape) ** 0.5 * (1 + 1e-6)


@pytest.mark.parametrize("alpha", [5.0, 10.0, 15.0])
@pytest.mark.parametrize("shape", [(400, 256), (7, 4096), (100, 1000)])
def test_neftune_has_the_expected_norm_for_any_shape(context: Context, alpha: float, shape: tuple[int, int]) -> None:
    rows = torch.zeros(shape)
    added = NEFTune(alpha).apply(rows, context)
    assert float(added.norm()) == pytest.approx(alpha / 3**0.5, rel=0.02)
    assert NEFTune(alpha).achieved(rows, added, context) == pytest.approx(alpha, rel=0.02)
    quarters = added.flatten().histc(4) / added.numel()
    assert (quarters - 0.25).abs().max() < 0.02


@pytest.mark.parametrize("per", ["row", "prompt"])
@pytest.mark.parametrize("snr_db", [20.0, 10.0, 0.0, -6.0])
def test_snr(context: Context, per: str, snr_db: float) -> None:
    rows = random_rows(3)
    noisy = SNRNoise(snr_db, per).apply(rows, context)
    assert SNRNoise(snr_db, per).achieved(rows, noisy, context) == pytest.approx(snr_db, abs=0.1)
    noise = rms(noisy - rows)
    signal = rms(rows) if per == "row" else rows.square().mean().sqrt()
    assert (20 * (signal / noise).log10() - snr_db).abs().max() < 1.5  # in each row
    assert SNRNoise(snr_db).achieved(rows, rows, context) == math.inf


@pytest.mark.parametrize("epsilon", [10.0, 100.0, 1000.0])
@pytest.mark.parametrize("width", [64, 1024])
def test_dx_noise(context: Context, epsilon: float, width: int) -> None:
    """Its norm has the mean d/ε and the deviation √d/ε of Gamma(d, 1/ε), and no direction is preferred."""
    rows = torch.zeros(2000, width)
    noise = DXPrivacy(epsilon).apply(rows, context)
    norms = noise.norm(dim=-1)
    assert float(norms.mean()) == pytest.approx(width / epsilon, rel=4 / (2000 * width) ** 0.5)
    assert float(norms.std()) == pytest.approx(width**0.5 / epsilon, rel=0.1)
    directions = noise / norms[:, None]
    assert float(directions.mean(0).norm()) < 2 / 2000**0.5
    assert float((directions.square().mean(0) * width - 1).abs().max()) < 0.25
    assert DXPrivacy(epsilon).achieved(rows, noise, context) == pytest.approx(epsilon, rel=0.02)
    assert DXPrivacy(epsilon).achieved(rows, rows, context) == math.inf


def test_dx_projection_gives_tokens(context: Context, rows: Tensor) -> None:
    table = context.table.rows(range(272))
    for epsilon, share in ((1e6, 1.0), (3.0, 0.0)):
        private = DXPrivacy(epsilon, project=True)
        projected = private.apply(rows, context)
        assert float((projected == rows).all(1).float().mean()) == pytest.approx(share, abs=0.3)
        noisy = DXPrivacy(epsilon).apply(rows, context)
        nearest = torch.cdist(noisy, table, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
        assert torch.equal(projected, table[nearest])
        assert private.achieved(rows, projected, context) is None


@pytest.mark.parametrize(
    "transform", [Noise(0.0, "row_rms"), NEFTune(), BernoulliNoise(), SNRNoise(), SNRNoise(per="prompt"), DXPrivacy()]
)
def test_the_neutral_dose_changes_nothing(transform: Transform, context: Context, rows: Tensor) -> None:
    assert transform.is_neutral
    assert torch.equal(transform.apply(rows, context), rows)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Noise(-1.0), "sigma"),
        (lambda: Noise(math.inf), "sigma"),
        (lambda: Noise(1.0, "decibel"), "unit"),
        (lambda: NEFTune(-1.0), "alpha"),
        (lambda: BernoulliNoise(math.nan), "alpha"),
        (lambda: SNRNoise(math.nan), "snr_db"),
        (lambda: SNRNoise(-math.inf), "snr_db"),
        (lambda: SNRNoise(1.0, "table"), "per"),
        (lambda: DXPrivacy(0.0), "epsilon"),
        (lambda: DXPrivacy(math.nan), "epsilon"),
    ],
)
def test_bad_parameters_are_refused(make: Callable[[], Transform], field: str) -> None:
    with pytest.raises(ConfigError, match=rf"transform\.{field}\b"):
        make()
