"""Configuration section `report`: what results are compared with, and how responses are summarised."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from sweep.core.section import Section
from sweep.scoring.registry import GROUPS
from sweep.util.validators import require


@dataclass(frozen=True, slots=True)
class ReportConfig(Section):
    """Configuration section `report`. It changes no generation and no score.

    Attributes:
        baseline: Point that all points are compared with instead of the control, by number, name or swept values, such
            as transform.factor=1.2. If several points have these values, each point is compared with the one that
            agrees with it in all other swept keys.
        contrasts: Pairs of points to compare, each point written as for baseline, such as
            [["factor=1.2","factor=1.5"]].
        tolerance: A dose is as good as the best one if its mean is at most this much worse, as a share of the
            measure's range (of the largest mean, if the range has no end); 0 or more.
        effect: Measure of the effect that is shown against quality, such as divergence/edit_distance or
            quality/my_measure; null means divergence/edit_distance.
    """

    baseline: str | None = None
    contrasts: list[Any] = field(default_factory=list)
    tolerance: float = 0.05
    effect: str | None = None

    def __post_init__(self) -> None:
        empty = self.baseline is not None and not self.baseline.strip()
        require(not empty, "report.baseline", "must not be empty", self.baseline)
        for pair in self.contrasts:
            rule = "must be pairs of points, such as [['factor=1.2','factor=1.5']]"
            is_pair = (
                isinstance(pair, list) and len(pair) == 2 and not any(isinstance(one, (list, dict)) for one in pair)
            )
            require(is_pair and all(str(one).strip() for one in pair), "report.contrasts", rule, pair)
        finite = math.isfinite(self.tolerance)
        require(finite and self.tolerance >= 0, "report.tolerance", "must be 0 or more", self.tolerance)
        if self.effect is not None:
            group, _, rest = self.effect.partition("/")
            tested = [name for name, entry in GROUPS.items() if entry.tested]
            rule = f"must be GROUP/MEASURE with a group of {', '.join(tested)}"
            require(group in tested and bool(rest), "report.effect", rule, self.effect)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The contrasts as texts."""
        return [(str(first), str(second)) for first, second in self.contrasts]

    def changed(self) -> dict[str, Any]:
        """Return the values that are not defaults, as plain values."""
        defaults = asdict(ReportConfig())
        return {key: value for key, value in asdict(self).items() if value != defaults[key]}
