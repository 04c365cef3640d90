"""Search space: converts Hydra's sweep syntax to Optuna distributions, and sampled values back to overrides."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from sweep.config.combinations import scope_of, unscoped
from sweep.config.overrides import NOT_AXES
from sweep.config.point_count import check_product, count_values
from sweep.errors import ConfigError
from sweep.util.validators import require

PLACES = 4  # decimal places of an interval's numbers, relative to its width, or to its lower end if logarithmic


@dataclass(frozen=True, slots=True)
class Axis:
    """A varied key.

    Attributes:
        key: the key.
        distribution: its Optuna distribution.
        values: all its values as typed on the command line, or None for an interval.
    """

    key: str
    distribution: BaseDistribution
    values: tuple[str, ...] | None

    def format(self, value: Any) -> str:
        """Return a value of the distribution as it is typed on the command line."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return str(value)
        if self.values is not None:  # the same text as in Hydra's own sweep, so that points are found again
            return min(self.values, key=lambda text: abs(float(text) - value))
        if isinstance(d, IntDistribution):
            return str(value)
        assert isinstance(d, FloatDistribution)
        scale = d.low if d.log else d.high - d.low
        places = PLACES - math.floor(math.log10(scale)) if scale else PLACES
        return repr(min(max(round(value, places), d.low), d.high))

    @property
    def ends(self) -> list[str]:
        """The values to validate: both ends of a range or interval, and every choice."""
        d = self.distribution
        if isinstance(d, (FloatDistribution, IntDistribution)):
            return [self.format(d.low), self.format(d.high)]
        assert self.values is not None
        return list(self.values)

    @property
    def choices(self) -> list[Any]:
        """The values of the distribution. Empty for an interval."""
        d = self.distribution
        if self.values is None or isinstance(d, CategoricalDistribution):
            return list(self.values or ())
        number = int if isinstance(d, IntDistribution) else float
        return [number(text) for text in self.values]


@dataclass(frozen=True, slots=True)
class Space:
    """The search space of a command.

    Attributes:
        axes: the varied keys.
        fixed: the other overrides.
    """

    axes: tuple[Axis, ...]
    fixed: tuple[str, ...]

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """The distribution of each varied key."""
        return {axis.key: axis.distribution for axis in self.axes}

    def overrides(self, params: Mapping[str, Any]) -> list[str]:
        """Return all overrides of a point."""
        return [*self.fixed, *(f"{axis.key}={axis.format(params[axis.key])}" for axis in self.axes)]

    def varied_overrides(self, params: Mapping[str, Any]) -> str:
        """Return the varied overrides of a point as typed on the command line."""
        return " ".join(f"{axis.key}={axis.format(params[axis.key])}" for axis in self.axes)

    def corners(self) -> list[list[str]]:
        """Return the overrides of few points in which each end of each axis occurs."""
        ends = [axis.ends for axis in self.axes]
        count = max(map(len, ends))
        return [
            [*self.fixed, *(f"{axis.key}={e[min(i, len(e) - 1)]}" for axis, e in zip(self.axes, ends, strict=True))]
            for i in range(count)
        ]


def read_space(overrides: Iterable[Override]) -> Space:
    """Return the search space of overrides. The last override of a key counts.

    Raises:
        ConfigError: nothing is varied, or an interval or range is invalid, or a key has too many values.
    """
    last = {override.get_key_element(): override for override in overrides}
    for key in last:
        if (scope := scope_of(key)) is not None:
            raise ConfigError(
                f"{key}: hydra/sweeper=optuna searches the parameters of one transform. "
                f"Use transform={scope[0]} and {unscoped(key)}."
            )
    axes = tuple(_axis(key, override) for key, override in last.items() if override.is_sweep_override())
    for axis in axes:
        rule = "belongs to the whole sweep and cannot be varied"
        require(axis.key.lstrip("+").split(".")[0].split("/")[0] not in NOT_AXES, axis.key, rule, None)
    rule = "needs something to vary, such as 'transform.factor=interval(1,3)'"
    require(bool(axes), "hydra/sweeper=optuna", rule, None)
    return Space(axes, tuple(str(o.input_line) for o in last.values() if not o.is_sweep_override()))


def _axis(key: str, override: Override) -> Axis:
    text, value = str(override.input_line), override.value()
    log = "log" in getattr(value, "tags", ())
    if isinstance(value, IntervalSweep):
        low, high = value.start, value.end
        assert low is not None and high is not None
        finite = math.isfinite(low) and math.isfinite(high)
        require(finite and low <= high, text, "must be an interval(low,high) of finite numbers", None)
        require(low > 0 or not log, text, "must begin above 0 to be logarithmic", None)
        if isinstance(low, int) and isinstance(high, int):
            return Axis(key, IntDistribution(low, high, log=log), None)
        return Axis(key, FloatDistribution(low, high, log=log), None)
    require(not log, text, "can be logarithmic only as an interval: tag(log, interval(low,high))", None)
    check_product({key: count_values(override)})
    if not override.is_range_sweep():
        values = tuple(dict.fromkeys(override.sweep_string_iterator()))
        require(bool(values), text, "has no values", None)
        return Axis(key, CategoricalDistribution(values), values)
    numbers: list[Any] = sorted(override.sweep_iterator())
    require(bool(numbers), text, "has no values", None)
    step, texts = abs(value.step), tuple(map(str, numbers))  # type: ignore[union-attr]
    if all(isinstance(number, int) for number in numbers):
        return Axis(key, IntDistribution(numbers[0], numbers[-1], step=step), texts)
    # In decimals, as in Optuna: a binary sum could exceed the last step.
    last = Decimal(str(numbers[0])) + Decimal(str(step)) * (len(numbers) - 1)
    return Axis(key, FloatDistribution(numbers[0], float(last), step=float(step)), texts)
