"""What an optimising sweeper looks for: `sweep.objective`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from sweep.checks import did_you_mean, require
from sweep.errors import ConfigError, SweepError

KEY = "sweep.objective"
FORMS = "minimize:MEASURE, maximize:MEASURE, or closest:MEASURE:NUMBER, with 50% for half of the control's"
GROUPS = ("quality", "divergence", "health", "perturbation", "cost")
OF_CONTROL = "control/"  # before the name of a measure, where a point's control's stand beside its own
CHANGE = "perturbation/relative_l2"


@dataclass(frozen=True, slots=True)
class Objective:
    """A measure, and what it is to be.

    Attributes:
        text: as it was typed.
        aim: `minimize`, `maximize` or `closest`.
        target: for `closest`; a share of the control's measure if `relative`.
    """

    text: str
    aim: str
    measure: str
    target: float = math.nan
    relative: bool = False

    @classmethod
    def parse(cls, text: str) -> Objective:
        """Return what a text says.

        Raises:
            ConfigError: it has none of the forms.
        """
        aim, _, rest = text.partition(":")
        if aim not in ("minimize", "maximize", "closest"):
            raise ConfigError(f"{KEY}: {text!r} is none of {FORMS}.")
        measure, _, target = rest.partition(":")
        group, _, name = measure.partition("/")
        if group not in GROUPS or not name:
            raise ConfigError(f"{KEY}: {measure!r} is no measure, such as quality/exact_match. Known: {_list(GROUPS)}.")
        require((aim == "closest") == (":" in rest), KEY, f"must be {FORMS}", text)
        if aim != "closest":
            return cls(text, aim, measure)
        number, relative = _number(target.removesuffix("%")), target.endswith("%")
        require(math.isfinite(number), KEY, "needs a number or a percentage to be close to", target)
        return cls(text, aim, measure, number / 100 if relative else number, relative)

    @property
    def direction(self) -> Literal["minimize", "maximize"]:
        """Whether `value` is to be small or large, as Optuna says it."""
        return "maximize" if self.aim == "maximize" else "minimize"

    def value(self, measures: Mapping[str, float]) -> float | None:
        """Return how good a point is; None: nothing can be said of it.

        Args:
            measures: its means, and its control's under `control/…`.
        """
        got = measures.get(self.measure, math.nan)
        sought = self.sought(measures)
        value = abs(got - sought) if self.aim == "closest" else got
        return value if math.isfinite(value) else None

    def sought(self, measures: Mapping[str, float]) -> float:
        """Return the number that `closest` means; NaN: there is none."""
        return self.target * (measures.get(OF_CONTROL + self.measure, math.nan) if self.relative else 1.0)

    def check_known(self, points: list[Mapping[str, float]]) -> None:
        """Refuse a measure that none of some points have.

        Raises:
            SweepError: with the measures that there are.
        """
        known = sorted({name for measures in points for name in measures if not name.startswith(OF_CONTROL)})
        if not known:  # all of them failed, which is said elsewhere
            return
        if self.measure not in known:
            raise SweepError(f"{KEY}: no point has a measure {self.measure!r}. {did_you_mean(self.measure, known)}")
        if self.relative and not any(OF_CONTROL + self.measure in measures for measures in points):
            raise SweepError(f"{KEY}: the control has no measure {self.measure!r}; give a number instead of a share.")


def _list(groups: tuple[str, ...]) -> str:
    return ", ".join(f"{group}/…" for group in groups)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
