"""Checks of single configuration values. Errors name the key and, for a misspelt name, the closest valid one."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence

from sweep.errors import ConfigError


def require(holds: bool, key: str, rule: str, value: object) -> None:
    """Raise an error unless a rule holds.

    Args:
        holds: whether the rule holds.
        key: the configuration key.
        rule: continues the key to a sentence, such as "must be at least 1".
        value: shown in the error; None shows nothing.

    Raises:
        ConfigError: names the key, the rule and the value.
    """
    if not holds:
        suffix = "" if value is None else f"; got {value!r}"
        raise ConfigError(f"{key} {rule}{suffix}.")


def require_choice(key: str, value: str, choices: Sequence[str], what: str = "valid value") -> None:
    """Raise an error unless `value` is one of `choices`.

    Args:
        key: the configuration key.
        value: the configured value.
        choices: the valid values.
        what: what the choices are, as a noun.

    Raises:
        ConfigError: names the key and the value, the closest choice, and the choices.
    """
    if value not in choices:
        article = "an" if what[0] in "aeiou" else "a"
        raise ConfigError(f"{key}: {value!r} is not {article} {what}. {did_you_mean(value, choices)}")


def did_you_mean(name: str, choices: Sequence[str]) -> str:
    """Return a sentence with the closest choice, and the choices (at most 24)."""
    hint = closest(name, choices)
    shown = ", ".join(choices) if len(choices) <= 24 else f"{', '.join(choices[:24])} …"
    return f"{hint}{' ' if hint else ''}Available: {shown or 'none'}."


def closest(name: str, choices: Sequence[str]) -> str:
    """Return a question with the closest choice; empty if none is close."""
    near = difflib.get_close_matches(str(name), choices, 1)
    return f"Did you mean {near[0]!r}?" if near else ""


def require_finite(key: str, value: float) -> None:
    """Raise a `ConfigError` if a number is NaN or infinite."""
    require(math.isfinite(value), key, "must be a finite number", value)
