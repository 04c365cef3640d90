"""Readers of files: what they share, and their limits.

Readers yield entries one at a time, so that `prompts.limit` bounds how much is read.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from sweep.errors import ConfigError
from sweep.inputs.config import PromptsConfig

Entries = Iterator[tuple[str, Any]]  # (place within the file, entry)
Reader = Callable[[BinaryIO, str, PromptsConfig], Entries]  # arguments: the open file, its name for errors, the keys

MAX_PROMPTS = 1_000_000
MAX_LINE = 64 * 2**20  # maximum bytes of a line
MAX_DOCUMENT = 256 * 2**20  # maximum bytes of a JSON file, which is parsed as a whole
MAX_YAML = 16 * 2**20  # maximum bytes of a YAML file; larger ones take minutes to parse

READERS: dict[str, Reader] = {}  # by suffix


def register_reader(*suffixes: str) -> Callable[[Reader], Reader]:
    """Register a function as the reader of files with these suffixes.

    The place that it yields with each entry is a line number, or `[i]`. It raises `ConfigError` if the file has another
    format than its suffix says, or a limit of this module is exceeded.
    """

    def register(reader: Reader) -> Reader:
        READERS.update(dict.fromkeys(suffixes, reader))
        return reader

    return register


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file without blocking, even if a pipe has replaced it since it was found."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("it is no longer a regular file")
    return os.fdopen(descriptor, "rb")


def lines(file: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
    r"""Yield (number, line) including line ends. Only \n ends a line: JSON strings may hold other separators."""
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise ConfigError(f"{name}:{number}: the line is longer than {MAX_LINE // 2**20} MiB.")
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise _undecodable(name, number, line, error) from error


def _undecodable(name: str, number: int, data: bytes, error: UnicodeDecodeError) -> ConfigError:
    hint = "It looks like UTF-16: save it as UTF-8." if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "Save it as UTF-8."
    return ConfigError(f"{name}:{number}: not UTF-8 text ({error.reason}). {hint}")


def document_text(file: BinaryIO, name: str, limit: int, advice: str) -> str:
    """Return a whole file as text.

    Raises:
        ConfigError: the file has more than `limit` bytes, or is not UTF-8.
    """
    data = file.read(limit + 1)
    if len(data) > limit:
        raise ConfigError(f"{name}: is larger than {limit // 2**20} MiB. {advice}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _undecodable(name, data.count(b"\n", 0, error.start) + 1, data, error) from error


class DuplicateKey(ValueError):
    """A JSON object has a key twice."""


def _distinct_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; reject duplicate keys, of which `json` would keep the last."""
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        raise DuplicateKey(next(key for key in keys if keys.count(key) > 1))
    return result


_DECODER = json.JSONDecoder(object_pairs_hook=_distinct_keys)  # `json.loads` would make one for each line


def parse_json(text: str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: not JSON, or an object has a key twice.
    """
    if text[:1] in ("{", "["):  # `decode` would look for white space twice
        value, end = _DECODER.raw_decode(text)
        if not text[end:].strip(" \t\n\r"):
            return value
    return _DECODER.decode(text)
