"""Number of points of a sweep, computed from its overrides before any point is made."""

from __future__ import annotations

import math
from collections.abc import Iterable
from decimal import Decimal

from hydra.core.override_parser.types import Override, RangeSweep

from sweep.errors import ConfigError
from sweep.util.validators import require

MAX_POINTS = 1_000_000


def check_count(overrides: Iterable[Override]) -> None:
    """Check that overrides have no more than `MAX_POINTS` combinations of values.

    Raises:
        ConfigError: There are more combinations, or a range is invalid.
    """
    last = {override.get_key_element(): override for override in overrides}
    counts = {key: count_values(override) for key, override in last.items() if override.is_discrete_sweep()}
    check_product(counts)


def check_product(counts: dict[str, int]) -> None:
    """Check that there are no more than `MAX_POINTS` combinations of values.

    Args:
        counts: Number of values of each key.

    Raises:
        ConfigError: There are more combinations.
    """
    if (points := math.prod(max(1, count) for count in counts.values())) > MAX_POINTS:
        largest = sorted(counts.items(), key=lambda item: -item[1])[:3]
        by_key = ", ".join(f"{key} {_show(count)}" for key, count in largest if count > 1)
        raise ConfigError(
            f"The sweep has {_show(points)} points ({by_key} values); at most {MAX_POINTS:,} are allowed. "
            "Use a larger step, fewer values, or a sweeper that searches (hydra/sweeper=optuna)."
        )


def count_values(override: Override) -> int:
    """Return the number of values of a choice, glob or range; a range is counted without listing its values.

    Raises:
        ConfigError: A range has the step 0, or a bound that is not finite.
    """
    value = override.value()
    if not isinstance(value, RangeSweep):
        return sum(1 for _ in override.sweep_iterator())
    start, stop, step = value.start, value.stop, value.step
    text = str(override.input_line)
    assert start is not None and stop is not None
    require(all(map(math.isfinite, (start, stop, step))), text, "must be a range of finite numbers", None)
    require(step != 0, text, "has the step 0; use a positive or negative step", None)
    if isinstance(start, int) and isinstance(stop, int) and isinstance(step, int):
        return max(0, -((start - stop) // step))
    return max(0, math.ceil((Decimal(stop) - Decimal(start)) / Decimal(step)))


def _show(count: int) -> str:
    return f"{count:,}" if count < 10**15 else f"more than 10^{len(str(count)) - 1}"
