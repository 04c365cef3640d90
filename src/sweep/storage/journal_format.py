"""The lines of the journal: an answer, or what a writer says of itself, as a checksum and compact JSON.

The checksum covers the fingerprint, the file's header and the JSON, so that a line counts nowhere but under the point
and the versions that it was written for.  Text is UTF-8 in which lone surrogates pass as they are; numbers survive
exactly, and those that JSON lacks are the strings "-inf", "inf", "nan".
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sweep.engines.base import Completion, Generation

FORMAT = 1

_CHECKSUM_BYTES = 16
PAYLOAD = 2 * _CHECKSUM_BYTES + 1  # where a line's JSON begins
HEADER = re.compile(rb'[0-9a-f]+ \{"format":(\d+)')

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Entry:
    """One request's answer, as it was recorded.

    Attributes:
        completions: the answer; none for a forced one.
        scored: the log-probabilities of a forced answer's tokens.
        header: what its writer said of itself: sweep, engine and whatever else.
    """

    completions: tuple[Completion, ...]
    scored: tuple[float, ...]
    header: Mapping[str, str]


def headers_of(lines: list[bytes], salt: Any) -> dict[bytes, Mapping[str, str]]:
    """Return the valid headers among lines, by their JSON; of files that were put together there are several."""
    found: dict[bytes, Mapping[str, str]] = {}
    for line in lines:
        match = HEADER.match(line)
        if match and int(match[1]) == FORMAT and fits(line, salt):
            found[line[PAYLOAD:]] = json.loads(line[PAYLOAD:].decode("utf-8", "surrogatepass"))["header"]
    return found


def salt_of(fingerprint: str, header: bytes | None = None) -> Any:
    """Return the hash, not yet finished, of what a line's checksum covers before its JSON."""
    hashed = hashlib.blake2b(fingerprint.encode(), digest_size=_CHECKSUM_BYTES)
    if header is not None:
        hashed.update(b"\n" + hashlib.sha256(header).digest())
    return hashed


def line_of(salt: Any, payload: bytes) -> bytes:
    """Return a line of the JSON `payload`."""
    return _checksum(salt, payload) + b" " + payload + b"\n"


def fits(line: bytes, salt: Any) -> bool:
    """Whether a line has the checksum of its JSON."""
    return line[:PAYLOAD] == _checksum(salt, line[PAYLOAD:]) + b" "


def _checksum(salt: Any, payload: bytes) -> bytes:
    hashed = salt.copy()
    hashed.update(payload)
    checksum: str = hashed.hexdigest()
    return checksum.encode()


def as_bytes(value: Mapping[str, Any]) -> bytes:
    """Return a value as compact JSON."""
    return _encode(value).encode("utf-8", "surrogatepass")


def plain(generation: Generation) -> dict[str, Any]:
    """Return an answer as it is recorded; of a forced one, only the log-probabilities."""
    if generation.scored:
        return {"scored": [_number(value) for value in generation.scored]}
    return {
        "completions": [
            {"text": answer.text, "token_ids": answer.token_ids, "finish_reason": answer.finish_reason}
            | ({"logprobs": [_numbers(step) for step in answer.logprobs]} if answer.logprobs else {})
            for answer in generation.completions
        ]
    }


def entry_of(record: dict[str, Any], header: Mapping[str, str]) -> tuple[tuple[str, str], Entry]:
    """Return the kind and the prompt of a record, and what it says.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: it is not what a record should be.
    """
    completions = tuple(
        Completion(
            text=answer["text"],
            token_ids=tuple(answer["token_ids"]),
            finish_reason=answer["finish_reason"],
            logprobs=tuple({int(i): float(p) for i, p in step.items()} for step in answer.get("logprobs", ())),
        )
        for answer in record.get("completions", ())
    )
    scored = tuple(map(float, record.get("scored", ())))
    return (record["kind"], record["prompt"]), Entry(completions, scored, header)


def _numbers(values: Mapping[int, float]) -> Mapping[int, float | str]:
    if all(map(math.isfinite, values.values())):
        return values
    return {key: _number(value) for key, value in values.items()}


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
