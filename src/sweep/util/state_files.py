"""Reading of state files that may be damaged or replaced: regular files with JSON, or an error that names the problem.

Reading a pipe or a device would block forever, a link could lead to an unrelated file, and JSON of an unexpected
type would fail far from where it was read.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, BinaryIO, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFDIR: "a folder", stat.S_IFLNK: "a link"}


class NotAFile(OSError):
    """The path exists but is not a regular file."""


def require(path: Path) -> None:
    """Check that a path leads to a regular file; links are followed.

    Raises:
        FileNotFoundError: the path does not exist.
        NotAFile: the path is not a regular file.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise _not_a_file(path, mode)


def require_own(path: Path) -> None:
    """Check that a path can be written without following a link: it does not exist, or is a regular file itself.

    Raises:
        NotAFile: the path is a link, a folder, a pipe or a device.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise _not_a_file(path, mode)


def read(path: Path) -> bytes:
    """Return the contents of a regular file.

    Raises:
        OSError: the file cannot be read, or is not a regular file.
    """
    require(path)
    # The file may have been replaced since the check. With O_NONBLOCK, opening a pipe does not block.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(mode := os.fstat(file.fileno()).st_mode):
            raise _not_a_file(path, mode)
        return file.read()


def open_to_append(path: Path) -> BinaryIO:
    """Open a regular file for reading and appending; create it if it does not exist.

    Raises:
        OSError: the file cannot be written, or the path is not a regular file itself.
    """
    require_own(path)
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return open(os.open(path, flags, 0o666), "a+b")


def parse(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: not JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def build(kind: type[T], plain: Any) -> T:
    """Create a dataclass from parsed JSON and check the type of every field.

    Args:
        kind: the dataclass.
        plain: a mapping from field names to values.

    Raises:
        TypeError: not a mapping, unknown or missing fields, or a value of another type than declared.
    """
    if not isinstance(plain, dict):
        raise TypeError(f"expected the fields of {kind.__name__}, found {type(plain).__name__}")
    instance = kind(**plain)
    hints: dict[str, Any] = _hints(kind)  # type: ignore[arg-type]
    for name, hint in hints.items():
        if not fits(value := getattr(instance, name), hint):
            raise TypeError(f"{name} must not be {type(value).__name__}")
    return instance


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value matches a type hint. An int matches `float`; a bool does not match a number."""
    if hint is Any:
        return True
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, item) for item in inner)
    if origin is tuple and Ellipsis not in inner:
        return isinstance(value, (tuple, list)) and len(value) == len(inner) and all(map(fits, value, inner))
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())
    if origin is not None and issubclass(origin, Sequence):
        return isinstance(value, (tuple, list)) and all(fits(item, inner[0]) for item in value)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return isinstance(value, NoneType if hint is None else hint)


@lru_cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _not_a_file(path: Path, mode: int) -> NotAFile:
    kind = _KINDS.get(stat.S_IFMT(mode), "a device")
    return NotAFile(errno.EINVAL, f"there is {kind} where a file should be", str(path))
