"""Atomic file replacement: readers see the old file or the complete new one."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path


def replace(path: Path, write: Callable[[Path], object]) -> Path:
    """Write a file under a temporary name in the same folder, then rename it to `path`.

    Args:
        path: the file to create or replace.
        write: writes the contents to the path that it is given.

    Returns:
        `path`.
    """
    # Random, not the process id: containers that share a file system can have equal ids.
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(6)}{path.suffix}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
