"""Overrides of a job: each is read once, where a launcher receives it, and passed on as a value."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

# Overrides in these sections decide where or how a sweep runs, not what it compares.
NOT_AXES = ("sweep", "tracking", "scoring", "report", "verbose", "hydra", "plugins")

# Numbers that Hydra reads as Python does. Its parser takes 0.3 ms per number, and a range has one for each point.
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})(?P<fraction>(?:\.[0-9]{1,25})?(?:e[+-]?[0-9]{1,3})?)")

# How Hydra 1.3 writes a string: with backslashes before the characters of its grammar, or in quotes.
_ESCAPED, _QUOTED = re.compile(r"\\([\\()\[\]{}:=, \t])"), re.compile(r"(['\"])(.*)\1", re.DOTALL)
_WORD = re.compile(r"\s*|null|true|false", re.IGNORECASE)  # not strings unless quoted


@dataclass(frozen=True, slots=True)
class Override:
    """One override of a job. Immutable.

    Attributes:
        line: the override as the sweeper passes it, such as `transform.factor=1.2`.
        key: its key as typed.
        axis: its key as the name of an axis: `transform@transform.0` becomes `transform.0.name`.
        text: its value as typed, without Hydra's escapes and quotes.
        number: the value on a numeric axis, or None if `text` is not a number.
        plain: the value in the configuration if `line` has a plain number, else None: Hydra reads the value.
    """

    line: str
    key: str
    axis: str
    text: str
    number: float | None
    plain: int | float | None

    @classmethod
    def read(cls, line: str) -> Override:
        """Read an override in Hydra's syntax. It need not be valid: Hydra reports errors when it composes the job."""
        key, _, typed = line.partition("=")
        match = _NUMBER.fullmatch(typed)
        if match is not None:
            plain = float(typed) if match["fraction"] else int(typed)
            return cls(line, key, axis_key(key), typed, float(plain), plain)
        text = _unescaped(typed)
        return cls(line, key, axis_key(key), text, _number(text), None)

    @property
    def is_axis(self) -> bool:
        """Whether the override decides what the sweep compares, so that it can be an axis."""
        return self.axis.split(".")[0] not in NOT_AXES


@lru_cache(1024)
def axis_key(key: str) -> str:
    """Return the name of an override's key as an axis: `transform@transform.0` becomes `transform.0.name`."""
    group, at, package = key.lstrip("+~").replace("/", ".").partition("@")
    return f"{package}.name" if at else group


def _unescaped(value: str) -> str:
    r"""Undo Hydra's escapes and quotes in a plain value: `Be\ brief.` becomes `Be brief.`.

    Lists and mappings are unchanged. So are quoted numbers and words such as `'null'`, which must stay strings.
    """
    if quoted := _QUOTED.fullmatch(value):
        quote, text = quoted.groups()
        plain = text.replace(f"\\{quote}", quote)
        return value if _WORD.fullmatch(plain) or _number(plain) is not None else plain
    return value if value.startswith(("[", "{")) else _ESCAPED.sub(r"\1", value)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
