"""Transforms on tensors."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from sweep.errors import ConfigError
from sweep.seeds import derive_seed
from sweep.transforms import Context, Identity, Noise, Scale, Transform


@dataclass(frozen=True)
class FakeTable:
    std: float = 0.5


ROWS = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))


def context(seed: int = 1) -> Context:
    return Context(seed, FakeTable())


@pytest.mark.parametrize(
    "transform", [Identity(), Scale(1.0), Noise(0.0), Noise(0.0, "absolute")], ids=lambda t: f"{t.name}"
)
def test_strength_zero_is_bit_equal(transform: Transform) -> None:
    assert torch.equal(transform.apply(ROWS, context()), ROWS)


def test_scale() -> None:
    assert torch.equal(Scale(1.5).apply(ROWS, context()), 1.5 * ROWS)
    assert torch.equal(
        Scale(0.5).apply(Scale(4.0).apply(ROWS, context()), context()), Scale(2.0).apply(ROWS, context())
    )


@pytest.mark.parametrize(("unit", "sigma", "std"), [("absolute", 0.3, 0.3), ("table_std", 0.3, 0.15)])
def test_noise_has_the_deviation_that_is_asked_for(unit: str, sigma: float, std: float) -> None:
    rows = torch.zeros(400, 512)
    added = Noise(sigma, unit).apply(rows, context())
    assert float(added.std()) == pytest.approx(std, rel=0.01)
    assert abs(float(added.mean())) < 4 * std / rows.numel() ** 0.5


def test_noise_depends_on_its_seed_alone() -> None:
    torch.manual_seed(0)
    first = Noise(1.0).apply(ROWS, context(1))
    torch.manual_seed(99)
    assert torch.equal(Noise(1.0).apply(ROWS, context(1)), first)
    assert not torch.equal(Noise(1.0).apply(ROWS, context(2)), first)


def test_noise_leaves_the_global_generator_alone() -> None:
    state = torch.random.get_rng_state()
    Noise(1.0).apply(ROWS, context())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_stronger_noise_is_the_same_noise() -> None:
    weak, strong = (Noise(sigma, "absolute").apply(ROWS, context()) - ROWS for sigma in (0.25, 0.5))
    assert torch.allclose(2 * weak, strong, atol=1e-6)


def test_rows_are_not_changed_in_place() -> None:
    before = ROWS.clone()
    for transform in (Scale(3.0), Noise(1.0)):
        transform.apply(ROWS, context())
    assert torch.equal(ROWS, before)


@pytest.mark.parametrize(
    "make",
    [lambda: Scale(float("nan")), lambda: Noise(-1.0), lambda: Noise(1.0, "decibel"), lambda: Noise(float("inf"))],
)
def test_bad_parameters_are_refused(make: object) -> None:
    with pytest.raises(ConfigError, match=r"transform\.(factor|sigma|unit)"):
        make()  # type: ignore[operator]


def test_seeds_depend_on_every_part_and_fit_a_signed_word() -> None:
    seeds = {derive_seed(0, "a", 0), derive_seed(1, "a", 0), derive_seed(0, "b", 0), derive_seed(0, "a", 1)}
    seeds |= {derive_seed("0", "a", 0), derive_seed("0a", 0), derive_seed(0, "a0")}
    assert len(seeds) == 7
    assert all(0 <= seed < 2**62 for seed in seeds)
    assert derive_seed(0, "a", 0) == 2154334685170620845
