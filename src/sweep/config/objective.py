"""Objective of an optimising sweeper: `sweep.objective`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from sweep.errors import ConfigError, SweepError
from sweep.scoring.registry import GROUPS
from sweep.util.validators import did_you_mean, require

KEY = "sweep.objective"
FORMS = "minimize:MEASURE, maximize:MEASURE or closest:MEASURE:NUMBER (50% means half of the control's)"
CONTROL_PREFIX = "control/"  # prefix of the control's measures among those of a point
CHANGE = "perturbation/relative_l2"


@dataclass(frozen=True, slots=True)
class Objective:
    """A measure and the direction or target of its optimisation.

    Attributes:
        text: The objective as typed.
        aim: `minimize`, `maximize` or `closest`.
        measure: Name of the measure, such as `quality/exact_match`.
        target: Target value of `closest`.
        relative: Whether `target` is a fraction of the control's measure.
    """

    text: str
    aim: str
    measure: str
    target: float = math.nan
    relative: bool = False

    @classmethod
    def parse(cls, text: str) -> Objective:
        """Parse the text of `sweep.objective`.

        Raises:
            ConfigError: The text has none of the supported forms.
        """
        aim, _, rest = text.partition(":")
        if aim not in ("minimize", "maximize", "closest"):
            raise ConfigError(f"{KEY}: {text!r} is not an objective. Use {FORMS}.")
        measure, _, target = rest.partition(":")
        group, _, name = measure.partition("/")
        if group not in GROUPS or not name:
            raise ConfigError(
                f"{KEY}: {measure!r} is not a measure. Available: {_list(GROUPS)}. Example: quality/chrf."
            )
        require((aim == "closest") == (":" in rest), KEY, f"must be {FORMS}", text)
        if aim != "closest":
            return cls(text, aim, measure)
        number, relative = _number(target.removesuffix("%")), target.endswith("%")
        require(math.isfinite(number), KEY, "needs a number or a percentage as the target", target)
        return cls(text, aim, measure, number / 100 if relative else number, relative)

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        """Optuna's direction for `value`."""
        return "maximize" if self.aim == "maximize" else "minimize"

    def value(self, measures: Mapping[str, float]) -> float | None:
        """Return the value to optimise; None if the measure is missing or not finite.

        Args:
            measures: The point's mean measures, and its control's under `control/…`.
        """
        mean = measures.get(self.measure, math.nan)
        value = abs(mean - self.target_value(measures)) if self.aim == "closest" else mean
        return value if math.isfinite(value) else None

    def target_value(self, measures: Mapping[str, float]) -> float:
        """Return the target of `closest` in the measure's units; NaN if there is none."""
        return self.target * (measures.get(CONTROL_PREFIX + self.measure, math.nan) if self.relative else 1.0)

    def check_known(self, points: list[Mapping[str, float]]) -> None:
        """Check that at least one of the points has the measure.

        Raises:
            SweepError: No point has it. The message lists the available measures.
        """
        available = sorted({name for measures in points for name in measures if not name.startswith(CONTROL_PREFIX)})
        if not available:  # all points failed, which is reported elsewhere
            return
        if self.measure not in available:
            raise SweepError(
                f"{KEY}: no point has the measure {self.measure!r}. {did_you_mean(self.measure, available)}"
            )
        if self.relative and not any(CONTROL_PREFIX + self.measure in measures for measures in points):
            raise SweepError(
                f"{KEY}: the control does not have the measure {self.measure!r}. Use a number instead of a percentage."
            )


def _list(groups: Iterable[str]) -> str:
    return ", ".join(f"{group}/…" for group in groups)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
