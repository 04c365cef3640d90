"""Margins of equivalence: the values of `scoring.equivalence`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sweep.scoring.registry import measures
from sweep.util.validators import require, require_choice

KEY = "scoring.equivalence"


def margin_of(value: Any, measure: str) -> float:
    """Return the margin of a measure, in its own unit; NaN: there is none.

    Args:
        value: a number for all measures, a mapping from measures to numbers, or None.
        measure: metric name. The mapping may have it with or without its group.
    """
    if isinstance(value, Mapping):
        return float(value.get(measure, value.get(measure.partition("/")[2], math.nan)))
    return math.nan if value is None else float(value)


def check_margins(value: Any, configured: Sequence[str], confidence: float) -> None:
    """Check a number, or a mapping from measures to numbers.

    Args:
        value: the value of `scoring.equivalence`.
        configured: metric names of the configuration, such as those of users' functions.
        confidence: value of `scoring.confidence`.

    Raises:
        ConfigError: a margin is not a number above 0, a measure is unknown or not tested, or the confidence is too low
            for two one-sided tests.
    """
    require(confidence > 0.5, "scoring.confidence", f"must be above 0.5 with {KEY}", confidence)
    if not isinstance(value, Mapping):
        _check(KEY, value)
        return
    require(bool(value), KEY, "must name a measure. Example: {exact_match: 0.05}", None)
    tested = dict.fromkeys([*configured, *(measure.name for measure in measures() if measure.group.tested)])
    choices = {name: None for metric in tested for name in (metric, metric.partition("/")[2])}
    for name, margin in value.items():
        require_choice(KEY, str(name), list(choices), "measure that is compared with the control's")
        _check(f"{KEY}.{name}", margin)


def _check(key: str, margin: Any) -> None:
    number = isinstance(margin, (int, float)) and not isinstance(margin, bool)
    require(number and 0 < margin < math.inf, key, "must be a number above 0", margin)
