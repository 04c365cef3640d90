"""Replies of a server: read up to a size limit and parsed as strict JSON.

httpx limits neither the size of a body nor its decompressed size, so only uncompressed bodies are requested and
accepted.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

IDENTITY = "identity"  # the content coding without compression
ERROR_BYTES = 1 << 16
MAX_REASON_LENGTH = 300


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's reply.

    Attributes:
        status: HTTP status.
        content: the JSON object; empty if there is none.
        reason: the server's error message, without the API key; empty unless the status is an error.
        problem: why a successful reply has no content; else empty.
        retry_after: seconds after which the server requests another attempt; None if it does not say.
    """

    status: int
    content: dict[str, Any]
    reason: str
    problem: str
    retry_after: float | None


async def read_body(response: httpx.Response, max_bytes: int) -> tuple[bytes, str]:
    """Return a body of at most `max_bytes` bytes, and the reason if it is incomplete."""
    coding = response.headers.get("Content-Encoding", "").strip().lower()
    if coding not in ("", IDENTITY):
        return b"", f"its answer is compressed ({coding[:40]}), which was not requested"
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > max_bytes:
            return bytes(body[:max_bytes]), f"its answer is larger than {max_bytes} bytes"
    return bytes(body), ""


def parse(body: bytes) -> tuple[dict[str, Any], str]:
    """Return the JSON object in a body, or an empty object and the reason."""
    try:
        value = json.loads(body.decode(), parse_constant=_refuse_constant)
    except RecursionError:
        return {}, "its answer is nested too deeply"
    except ValueError as error:
        return {}, f"its answer is not JSON ({error})"
    return (value, "") if isinstance(value, dict) else ({}, f"its answer is not an object but a {type(value).__name__}")


def error_message(response: httpx.Response, body: bytes, content: dict[str, Any]) -> str:
    """Return the HTTP status and the server's error message."""
    if response.is_redirect:
        target = response.headers.get("Location", "an unknown address")
        return f"HTTP {response.status_code}: it redirects to {target}; set engine.url to the address of the server"
    error = content.get("error")
    message = error.get("message") if isinstance(error, dict) else error or content.get("detail")
    text = str(message or body.decode(errors="replace")).strip()
    return f"HTTP {response.status_code}: {text}".removesuffix(": ")


def printable_line(text: str) -> str:
    """Return the first line of a server's text, with control characters replaced."""
    line = next(iter(text.splitlines()), "")[:MAX_REASON_LENGTH]
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in line)


def retry_after(response: httpx.Response) -> float | None:
    """Return the seconds in the header `Retry-After`, which contains a number or a date (RFC 9110); None if missing."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it contains {name}")
