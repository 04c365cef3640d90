"""Checks on single values, whose errors name the key and, where a name was mistyped, the nearest one that exists."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence

from sweep.errors import ConfigError


def require(holds: bool, key: str, rule: str, value: object) -> None:
    """Raise a `ConfigError` that names the key, the rule and the value, unless the rule holds."""
    if not holds:
        got = "" if value is None else f"; got {value!r}"
        raise ConfigError(f"{key} {rule}{got}.")


def require_choice(key: str, value: str, choices: Sequence[str], what: str = "value") -> None:
    """Raise a `ConfigError` with the nearest choice, unless `value` is one of them."""
    if value not in choices:
        raise ConfigError(f"{key}: {value!r} is no {what}. {did_you_mean(value, choices)}")


def did_you_mean(name: str, choices: Sequence[str]) -> str:
    """Return a sentence with the nearest of the choices, and all of them when they are few."""
    near = difflib.get_close_matches(str(name), choices, 1)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    known = ", ".join(choices) if len(choices) <= 24 else f"{', '.join(choices[:24])} …"
    return f"{hint}Known: {known or 'none'}."


def require_finite(key: str, value: float) -> None:
    """Raise a `ConfigError` for NaN and infinity."""
    require(math.isfinite(value), key, "must be a finite number", value)
