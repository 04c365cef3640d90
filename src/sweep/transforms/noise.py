"""Random noise.

It depends only on the point's seed and the prompt. For a given seed, stronger noise is the same noise, scaled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sweep.transforms._math import UNITS, row_rms, unit_size
from sweep.transforms.base import Transform, register
from sweep.transforms.context import Context
from sweep.util.validators import require, require_choice, require_finite

if TYPE_CHECKING:
    from torch import Tensor


@register("noise")
@dataclass(frozen=True, slots=True)
class Noise(Transform):
    """E + σ·Z with Z ~ N(0, 1) for each entry; expected ‖ΔE‖² = σ²·L·d.

    The embedding corruption of ROME (Meng et al. 2022, arXiv:2202.05262), which states σ as a multiple of the table's
    standard deviation. Z depends only on the point's seed and the prompt. For a given seed, stronger noise is the same
    noise, scaled.

    Attributes:
        sigma: the standard deviation, in `unit`.
        unit: `table_std`, a multiple of the standard deviation of the table's entries; `row_rms`, of the RMS of the
            row that the noise is added to; or `absolute`.
        distribution: distribution of Z: `normal`, or `uniform` between -√3 and √3, with the same standard deviation.
    """

    dose: ClassVar[str] = "sigma"
    neutral: ClassVar[float] = 0.0
    examples: ClassVar = (
        {"sigma": 1.0},
        {"sigma": 0.1, "unit": "absolute"},
        {"sigma": 0.5, "unit": "row_rms", "distribution": "uniform"},
    )

    sigma: float = 0.0
    unit: str = "table_std"
    distribution: str = "normal"

    def __post_init__(self) -> None:
        require_finite("transform.sigma", self.sigma)
        require(self.sigma >= 0, "transform.sigma", "must be 0 or more", self.sigma)
        require_choice("transform.unit", self.unit, UNITS)
        require_choice("transform.distribution", self.distribution, ("normal", "uniform"))

    def apply(self, rows: Tensor, context: Context) -> Tensor:
        """Return `rows` with noise added."""
        import torch

        size = self.sigma * unit_size(self.unit, rows, context.table)
        if self.distribution == "uniform":
            noise = torch.empty(rows.shape).uniform_(-(3**0.5), 3**0.5, generator=context.generator())
        else:
            noise = torch.randn(rows.shape, generator=context.generator())
        return noise.mul_(size).add_(rows)

    def achieved(self, before: Tensor, after: Tensor, context: Context) -> float | None:
        """Return the RMS of the added noise, in `unit`."""
        size = unit_size(self.unit, before, context.table)
        whole = size * before.numel() ** 0.5 if isinstance(size, float) else float(size.norm()) * before.shape[1] ** 0.5
        return float((after - before).norm()) / whole if whole else None


@register("neftune")
@dataclass(frozen=True, slots=True)
class NEFTune(Transform):
    """E + α/√(L·d) · U, U ~ Uniform(-1, 1) for each entry; expected ‖ΔE‖_F = α/√3 whatever L and d.

    NEFTune (Jain et al. 2023, arXiv:2310.05914). L is the number of rows in the span, d their width.

    Attributes:
        alpha: α; 5, 10 and 15 in the paper.
    """

    dose: ClassVar[str] = "alpha"
    neutral: ClassVar[float] = 0.0
    examples: ClassVar = ({"alpha": 5.0},)

    alpha: float = 0.0

    def __post_init__(self) -> None:
        require_finite("transform.alpha", self.alpha)
        require(self.alpha >= 0, "transform.alpha", "must be 0 or more", self.alpha)

    def apply(self, rows: Tensor, context: Context) -> Tensor:
        """Return `rows` with noise added."""
        import torch

        noise = torch.empty(rows.shape).uniform_(-1, 1, generator=context.generator())
        return noise.mul_(self.alpha / rows.numel() ** 0.5).add_(rows)

    def achieved(self, before: Tensor, after: Tensor, context: Context) -> float:
        """Return the α for which the expected noise has this norm."""
        return float((after - before).norm()) * 3**0.5


@register("bernoulli_noise")
@dataclass(frozen=True, slots=True)
class BernoulliNoise(Transform):
    """E + α/√(L·d) · S, S = ±1 with equal chances for each entry; ‖ΔE‖_F = α exactly, whatever L and d.

    SymNoise (Yadav & Singh 2023, arXiv:2312.01523; also arXiv:2605.23171) trains with both signs of S. Here another
    seed replaces the other sign.

    Attributes:
        alpha: α, the norm of the whole noise.
    """

    dose: ClassVar[str] = "alpha"
    neutral: ClassVar[float] = 0.0
    examples: ClassVar = ({"alpha": 5.0},)

    alpha: float = 0.0

    def __post_init__(self) -> None:
        require_finite("transform.alpha", self.alpha)
        require(self.alpha >= 0, "transform.alpha", "must be 0 or more", self.alpha)

    def apply(self, rows: Tensor, context: Context) -> Tensor:
        """Return `rows` with noise added."""
        import torch

        size = self.alpha / rows.numel() ** 0.5
        noise = torch.empty(rows.shape).random_(0, 2, generator=context.generator())
        return noise.mul_(2 * size).sub_(size).add_(rows)

    def achieved(self, before: Tensor, after: Tensor, context: Context) -> float:
        """Return the norm of the added noise."""
        return float((after - before).norm())


@register("snr_noise")
@dataclass(frozen=True, slots=True)
class SNRNoise(Transform):
    """E + rms·10^(-SNR/20) · Z with Z ~ N(0, 1) for each entry, rms of the row or of all rows.

    Noise at a signal-to-noise ratio: at 20 dB it has a tenth of the rows' RMS, at 0 dB the same RMS. With per=row, zero
    rows get no noise, because they have no signal.

    Attributes:
        snr_db: the signal-to-noise ratio in dB; infinity changes nothing.
        per: `row`, each row's noise is proportional to its own RMS; `prompt`, all rows have noise of the same size.
    """

    dose: ClassVar[str] = "snr_db"
    neutral: ClassVar[float] = math.inf
    examples: ClassVar = ({"snr_db": 10.0}, {"snr_db": 0.0, "per": "prompt"})

    snr_db: float = math.inf
    per: str = "row"

    def __post_init__(self) -> None:
        require(self.snr_db > -math.inf, "transform.snr_db", "must be a number of decibels, or inf", self.snr_db)
        require_choice("transform.per", self.per, ("row", "prompt"))

    def apply(self, rows: Tensor, context: Context) -> Tensor:
        """Return `rows` with noise added."""
        import torch

        signal = row_rms(rows) if self.per == "row" else row_rms(rows.reshape(1, -1))
        noise = torch.randn(rows.shape, generator=context.generator())
        return noise.mul_(signal * 10 ** (-self.snr_db / 20)).add_(rows)

    def achieved(self, before: Tensor, after: Tensor, context: Context) -> float | None:
        """Return the ratio of all rows' energy to that of all noise, in dB; infinity without noise."""
        signal, noise = float(before.norm()), float((after - before).norm())
        if not signal:
            return None
        return 20 * math.log10(signal / noise) if noise else math.inf


@register("dx_privacy")
@dataclass(frozen=True, slots=True)
class DXPrivacy(Transform):
    """e + r·u for each row e, u uniform on the sphere and r ~ Gamma(d, 1/ε); expected ‖Δe‖ = d/ε.

    The multivariate Laplace mechanism of dχ-privacy (Feyisetan et al. 2019, arXiv:1910.08902), which then replaces each
    row by the nearest token's: `project`. At the width of language models, that is the same token or an unrelated one,
    rarely a similar one (arXiv:2411.13784).

    Attributes:
        epsilon: ε, in 1 / (absolute distance); infinity changes nothing.
        project: whether each row is replaced by that of the nearest token by Euclidean distance.
    """

    dose: ClassVar[str] = "epsilon"
    neutral: ClassVar[float] = math.inf
    examples: ClassVar = ({"epsilon": 100.0}, {"epsilon": 10.0, "project": True})

    epsilon: float = math.inf
    project: bool = False

    def __post_init__(self) -> None:
        require(self.epsilon > 0, "transform.epsilon", "must be above 0", self.epsilon)

    def apply(self, rows: Tensor, context: Context) -> Tensor:
        """Return `rows` with noise added, or the rows of the tokens nearest to the result."""
        import torch

        generator = context.generator()
        noise = torch.randn(rows.shape, generator=generator)
        # As in torch.distributions.Gamma, which does not accept a generator.
        radius = torch._standard_gamma(torch.full((len(rows), 1), float(rows.shape[1])), generator=generator)
        noisy = noise.mul_(radius / self.epsilon / noise.norm(dim=-1, keepdim=True)).add_(rows)
        if not self.project:
            return noisy
        _, ids = context.table.nearest(noisy)
        return context.table.rows(ids[:, 0].tolist())

    def achieved(self, before: Tensor, after: Tensor, context: Context) -> float | None:
        """Return the ε for which the expected noise has this length; None if the rows were projected."""
        if self.project:
            return None
        length = float((after - before).norm(dim=-1).mean())
        return before.shape[1] / length if length else math.inf
