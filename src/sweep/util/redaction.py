"""Secrets stay out of what is logged, shown and published: passwords in addresses, and tokens of the environment."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from sweep.disk.atomic import replace

MASK = "***"

_NAMED = re.compile(
    r"TOKEN|PASSWORD|PASSWD|SECRET|API_?KEY|ACCESS_KEY|PRIVATE_KEY|CREDENTIAL|_(?:PWD|PASS|KEY)$", re.IGNORECASE
)
_SWITCHES = frozenset({"enabled", "disabled", "required", "optional", "default", "always"})
_SHORTEST = 6  # what is shorter would also hide words that happen to be the same

# In an address, what stands between "user:" and the last "@", slashes and all; where there is no user, what stands
# before an "@" that comes before the path; and what a query calls a secret.
_PASSWORD = re.compile(r"(?P<start>[a-zA-Z][\w+.-]*://[^\s/:@]*:)(?P<secret>[^\s'\"]+)(?=@)")
_ALONE = re.compile(r"(?P<start>[a-zA-Z][\w+.-]*://)(?P<secret>[^\s/:@]+(?:@[^\s/:@]+)*)(?=@)")
# Not every name with "key" in it: MLflow's pages have an `orderByKey`.
_NAMES = (
    r"[\w-]*(?:token|passw(?:or)?d|pwd|secret|signature|(?:api|access|private|account|auth)[_-]?key)[\w-]*|key|sig|pass"
)
_QUERY = re.compile(rf"(?P<start>[?&;](?:{_NAMES})=)(?P<secret>[^\s&;#'\"]+)", re.IGNORECASE)


def redact(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return a text with `***` for passwords in addresses and for the values of variables that hold secrets."""
    for pattern in (_PASSWORD, _ALONE, _QUERY):
        text = pattern.sub(rf"\g<start>{MASK}", text)
    for secret in _secrets(environment):
        text = text.replace(secret, MASK)
    return text


def redact_file(path: Path) -> None:
    """Take the secrets out of a text file that something else has written."""
    with suppress(OSError):
        text = path.read_text("utf-8", "replace")
        if (clean := redact(text)) != text:
            replace(path, lambda temporary: temporary.write_text(clean, "utf-8"))


def _secrets(environment: Mapping[str, str]) -> list[str]:
    found = [value for name, value in environment.items() if _NAMED.search(name) and len(value) >= _SHORTEST]
    # Paths of files that hold secrets, and switches, are none.
    return sorted((v for v in found if v.lower() not in _SWITCHES and not os.path.exists(v)), key=len, reverse=True)


class Redact(logging.Filter):
    """Lets log records pass without their secrets."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record's message; a traceback is rewritten when it is formatted."""
        message = record.getMessage()
        if (clean := redact(message)) != message:
            record.msg, record.args = clean, None
        return True
