"""Redaction of secrets from logs, output and published data: passwords in URLs and tokens in the environment."""

from __future__ import annotations

import html
import json
import logging
import math
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, quote_plus

import yaml

from sweep.util import state_files
from sweep.util.atomic import replace

MASK = "***"

_SECRET_NAME = re.compile(
    r"TOKEN|PASSWORD|PASSWD|SECRET|API_?KEY|ACCESS_KEY|PRIVATE_KEY|CREDENTIAL|_(?:PWD|PASS|KEY)$", re.IGNORECASE
)
_PERCENT = re.compile(r"%[0-9A-F]{2}")
_SWITCHES = frozenset({"enabled", "disabled", "required", "optional", "default", "always"})
_SHORTEST = 6  # characters; shorter values would also mask ordinary words

# Three patterns for URLs: everything between "user:" and the last "@", slashes included; without a user name,
# everything before an "@" that precedes the path; and query parameters with the name of a secret.
_PASSWORD = re.compile(r"(?P<start>[a-zA-Z][\w+.-]*://[^\s/:@]*:)(?P<secret>[^\s'\"]+)(?=@)")
_NO_USER = re.compile(r"(?P<start>[a-zA-Z][\w+.-]*://)(?P<secret>[^\s/:@]+(?:@[^\s/:@]+)*)(?=@)")
# Not every name that contains "key": URLs of MLflow's pages have an `orderByKey`.
_NAMES = (
    r"[\w-]*(?:token|passw(?:or)?d|pwd|secret|signature|(?:api|access|private|account|auth)[_-]?key)[\w-]*|key|sig|pass"
)
_QUERY = re.compile(rf"(?P<start>[?&;](?:{_NAMES})=)(?P<secret>[^\s&;#'\"]+)", re.IGNORECASE)


def redact(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Replace passwords in URLs, and values of environment variables that hold secrets, by `***`.

    Values are found in every form that `encodings_of` returns.
    """
    if "://" in text or "=" in text:  # every match contains one of the two
        for pattern in (_PASSWORD, _NO_USER, _QUERY):
            text = pattern.sub(rf"\g<start>{MASK}", text)
    # The undecoded items of `os.environ` are cheap to read, and equal for the hundreds of texts of a point.
    for form in _forms(frozenset(getattr(environment, "_data", environment).items())):
        text = text.replace(form, MASK)
    return text


@lru_cache(maxsize=4)
def _forms(environment: frozenset[tuple[str | bytes, str | bytes]]) -> tuple[str, ...]:
    """Return all written forms of the secrets among environment variables, longest first."""
    secrets = _secrets({os.fsdecode(name): os.fsdecode(value) for name, value in environment})
    return tuple(sorted({form for secret in secrets for form in encodings_of(secret)}, key=len, reverse=True))


@lru_cache(maxsize=256)
def encodings_of(secret: str) -> frozenset[str]:
    """Return the written forms of a secret: plain, repr, JSON, YAML, shell, URL, HTML, and any two combined."""
    return frozenset(outer for inner in _encodings(secret) for outer in _encodings(inner))


def _encodings(text: str) -> set[str]:
    addresses = {quote(text), quote(text, safe=""), quote_plus(text)}
    return {
        text,
        repr(text)[1:-1],
        text.replace("\\", "\\\\"),  # repr with the other quotes
        text.replace("\\", "\\\\").replace("'", "\\'"),
        json.dumps(text)[1:-1],
        json.dumps(text, ensure_ascii=False)[1:-1],
        text.replace("'", "''"),  # YAML
        yaml.safe_dump(text, default_style='"', width=math.inf).strip()[1:-1],
        text.replace("'", "'\"'\"'"),  # a shell
        *addresses,
        *(_PERCENT.sub(lambda match: match[0].lower(), address) for address in addresses),
        html.escape(text),
        html.escape(text, quote=False),
        html.escape(text).replace("&#x27;", "&#39;").replace("&quot;", "&#34;"),
    }


def is_secret_name(variable: str) -> bool:
    """Return whether `redact` masks the value of an environment variable of this name."""
    return _SECRET_NAME.search(variable) is not None


def redact_file(path: Path) -> None:
    """Redact a text file that another program wrote. Files that cannot be read or replaced stay as they are."""
    with suppress(OSError):
        text = state_files.read(path).decode("utf-8", "replace")
        if (clean := redact(text)) != text:
            replace(path, lambda temporary: temporary.write_text(clean, "utf-8"))


def _secrets(environment: Mapping[str, str]) -> list[str]:
    values = [value for name, value in environment.items() if _SECRET_NAME.search(name) and len(value) >= _SHORTEST]
    # Switches, and paths of files that hold a secret, are not secrets themselves.
    return sorted((v for v in values if v.lower() not in _SWITCHES and not os.path.exists(v)), key=len, reverse=True)


class Redact(logging.Filter):
    """Logging filter that redacts secrets in messages. Any thread may log."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact the record's message and keep the record. The formatter redacts tracebacks."""
        message = record.getMessage()
        if (clean := redact(message)) != message:
            record.msg, record.args = clean, None
        return True
