"""Journal format: each line is an answer or a writer's header, as a checksum and compact JSON.

The checksum covers the fingerprint, the file's header and the JSON. A line is thus valid only for the point and the
versions that it was written for. Text is UTF-8 and may contain lone surrogates. Numbers are stored exactly. The strings
"-inf", "inf" and "nan" stand for the numbers that JSON lacks.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sweep.engines.base import Completion, Generation
from sweep.util.state_files import fits as fits_type
from sweep.util.state_files import parse

FORMAT = 1

_CHECKSUM_BYTES = 16
PAYLOAD = 2 * _CHECKSUM_BYTES + 1  # offset of a line's JSON
HEADER = re.compile(rb'[0-9a-f]+ \{"format":(\d+)')

_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """The recorded answer to one request.

    Attributes:
        completions: one per sample, empty for a forced answer.
        scored: log-probabilities of a forced answer's tokens.
        header: the writer's header: sweep, engine and further keys.
    """

    completions: tuple[Completion, ...]
    scored: tuple[float, ...]
    header: Mapping[str, str]


def headers_of(lines: list[bytes], salt: Any) -> dict[bytes, Mapping[str, str]]:
    """Return the valid headers among lines, by their JSON. Concatenated files have several."""
    headers: dict[bytes, Mapping[str, str]] = {}
    for line in lines:
        match = HEADER.match(line)
        if match and int(match[1]) == FORMAT and has_checksum(line, salt):
            try:
                header = parse(line[PAYLOAD:].decode("utf-8", "surrogatepass"))["header"]
            except (ValueError, TypeError, KeyError):
                continue
            if fits_type(header, Mapping[str, str]):
                headers[line[PAYLOAD:]] = header
    return headers


def salt_of(fingerprint: str, header: bytes | None = None) -> Any:
    """Return the unfinished hash object of what a line's checksum covers before its JSON."""
    hashed = hashlib.blake2b(fingerprint.encode(), digest_size=_CHECKSUM_BYTES)
    if header is not None:
        hashed.update(b"\n" + hashlib.sha256(header).digest())
    return hashed


def line_of(salt: Any, payload: bytes) -> bytes:
    """Return the line for a JSON payload."""
    return _checksum(salt, payload) + b" " + payload + b"\n"


def has_checksum(line: bytes, salt: Any) -> bool:
    """Return whether a line's checksum matches its JSON."""
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
    """Return an answer as a JSON object. Only the log-probabilities of a forced answer are recorded."""
    if generation.scored:
        return {"scored": [_number(value) for value in generation.scored]}
    return {
        "completions": [
            {"text": answer.text, "token_ids": answer.token_ids, "finish_reason": answer.finish_reason}
            | ({"logprobs": [_numbers(step) for step in answer.logprobs]} if answer.logprobs else {})
            for answer in generation.completions
        ]
    }


def entry_of(record: dict[str, Any], header: Mapping[str, str]) -> tuple[tuple[str, str], JournalEntry]:
    """Return the kind and the prompt id of a record, and its entry.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: not a valid record.
    """
    if not fits_type([record["kind"], record["prompt"]], Sequence[str]):
        raise TypeError("kind and prompt must be strings")
    completions = tuple(
        Completion(
            text=answer["text"],
            token_ids=tuple(answer["token_ids"]),
            finish_reason=answer["finish_reason"],
            logprobs=tuple({int(i): float(p) for i, p in step.items()} for step in answer.get("logprobs", ())),
        )
        for answer in record.get("completions", ())
    )
    for completion in completions:
        has_strings = isinstance(completion.text, str) and isinstance(completion.finish_reason, str)
        if not has_strings or not set(map(type, completion.token_ids)) <= {int}:
            raise TypeError("text and finish_reason of a completion must be strings, token_ids must be integers")
    scored = tuple(map(float, record.get("scored", ())))
    return (record["kind"], record["prompt"]), JournalEntry(completions, scored, header)


def _numbers(values: Mapping[int, float]) -> Mapping[int, float | str]:
    if all(map(math.isfinite, values.values())):
        return values
    return {key: _number(value) for key, value in values.items()}


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
