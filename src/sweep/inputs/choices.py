"""Choices of a prompt: the answers whose likelihoods are compared, and which of them are right."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from sweep.errors import ConfigError
from sweep.inputs.messages import describe_type

_POSITION = re.compile(r"\d+")
_NUMBER = re.compile(r"\s*[-+]?[\d.,]+\s*")


def read_choices(value: Any, where: str) -> tuple[str, ...]:
    """Return the choices of an entry, as written; none if the value is None.

    Args:
        value: a list of texts or numbers, or that list as JSON in a text, as in CSV files.
        where: start of every error message.

    Raises:
        ConfigError: not such a list; see also `check_choices`.
    """
    if value is None:
        return ()
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = str(value)
    rule = "must be a list of two or more texts"
    if not isinstance(value, list):
        raise ConfigError(f"{where} {rule}; got {describe_type(value)}.")
    choices = []
    for item in value:
        text = as_text(item)
        if text is None:
            hint = " Put it in quotes." if isinstance(item, bool) else ""
            raise ConfigError(f"{where} {rule}; it contains {describe_type(item)}.{hint}")
        choices.append(text)
    check_choices(choices, where)
    return tuple(choices)


def check_choices(choices: Sequence[str], where: str) -> None:
    """Check that there are two or more choices, all different, none empty. White space at both ends does not count.

    Raises:
        ConfigError: starts with `where`.
    """
    if len(choices) < 2:
        raise ConfigError(f"{where} must be a list of two or more texts; got {len(choices)}.")
    if not all(choice.strip() for choice in choices):
        raise ConfigError(f"{where} has an empty text. Remove it.")
    plain = [choice.strip() for choice in choices]
    if repeated := next((choice for choice in plain if plain.count(choice) > 1), None):
        raise ConfigError(f"{where} has {repeated!r} more than once. Choices must differ.")


def named_choices(references: tuple[str, ...], choices: Sequence[str]) -> tuple[str, ...]:
    """Return references with positions, such as the 2 of multiple-choice data sets, replaced by the choices' texts.

    Positions count from 0. A reference that is the text of a choice stays, and so do all if a choice is a number.
    """
    if not choices or any(_NUMBER.fullmatch(choice) for choice in choices):
        return references
    is_position = [_POSITION.fullmatch(text) and int(text) < len(choices) for text in references]
    return tuple(choices[int(text)] if place else text for text, place in zip(references, is_position, strict=True))


def right_choices(references: Sequence[str], choices: Sequence[str], where: str) -> tuple[int, ...]:
    """Return the positions of the choices that equal a reference, ignoring white space at both ends.

    Raises:
        ConfigError: no choice does, or all do. Starts with `where`.
    """
    accepted = {reference.strip() for reference in references}
    right = tuple(i for i, choice in enumerate(choices) if choice.strip() in accepted)
    listed = ", ".join(map(repr, choices))
    if not right:
        raise ConfigError(
            f"{where}: none of its references ({', '.join(map(repr, references))}) is one of its choices ({listed}). "
            "The reference names the right choice by its text."
        )
    if len(right) == len(choices):
        raise ConfigError(f"{where}: all of its choices ({listed}) are right, so there is nothing to compare.")
    return right


def as_text(value: Any) -> str | None:
    """Return a string, or a number in its shortest form (12.0 as 12); None for other types."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    if not math.isfinite(value):
        return None
    whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
    return str(int(value) if whole else value)
