"""Limits of MLflow stores: makes texts and keys acceptable to all of them, and removes secrets."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator
from typing import TypeVar

from sweep.util.redaction import redact

T = TypeVar("T")

NAME, KEY = 250, 250
NOTE, PARAMETER = 8000, 6000  # characters of a description and of a parameter
TAG = 5000  # characters; PostgreSQL does not extend the column

_INVALID = re.compile(r"[^\w\-. :/]")  # characters that MLflow refuses in keys of parameters and metrics


def encodable(text: str) -> str:
    """Escape what SQL databases and UTF-8 files refuse: NUL and lone surrogates."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def fit(text: str, limit: int) -> str:
    """Return a text without secrets, with at most `limit` characters; a truncated text ends in "…"."""
    text = encodable(redact(text))
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def unique_keys(pairs: Iterable[tuple[str, T]]) -> Iterator[tuple[str, T]]:
    """Yield the pairs under distinct keys that MLflow accepts."""
    used: set[str] = set()
    for key, value in pairs:
        unique = valid = _valid_key(key)
        for number in range(2, len(used) + 3):
            if unique not in used:
                break
            unique = f"{valid[: KEY - 8]}_{number}"
        used.add(unique)
        yield unique, value


def _valid_key(key: str) -> str:
    valid = _INVALID.sub("_", redact(key))[:KEY]
    # MLflow refuses keys that are not normalised relative paths.
    is_path = valid.strip(".") and valid == posixpath.normpath(valid) and not valid.startswith(("/", ".."))
    return valid if is_path else re.sub(r"[/.]", "_", valid) or "_"
