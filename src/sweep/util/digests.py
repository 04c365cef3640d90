"""Files by their contents, read once as long as they do not change."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from filelock import FileLock

from sweep.disk.atomic import replace

_BLOB = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")


def file_digest(path: Path) -> str:
    """Return a file's SHA-256."""
    stat = path.stat()
    return _file_digest(path, stat.st_mtime_ns, stat.st_size)


def code_digest(definition: type | Callable[..., object]) -> str | None:
    """Return the SHA-256 of the module in which a class or function is defined; None: it has no file."""
    try:
        file = inspect.getsourcefile(definition)
    except TypeError:  # of an interactive session, or compiled
        file = None
    return file_digest(Path(file)) if file and Path(file).is_file() else None


def folder_digest(folder: Path, patterns: Sequence[str], memory: Path) -> str:
    """Return a hash of the names and contents of a folder's own files.

    Weights take long to read (about 1 s a GB), so what was read is remembered in the file `memory`, by path, size, time
    and inode.  In the hub's cache, files are links to blobs that are called by their hashes, and nothing is read.
    """
    files = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    known = _remembered(memory)
    found: dict[str, str] = {}
    fresh: dict[str, str] = {}
    for path in files:
        blob = path.resolve()
        if blob.parent.name == "blobs" and _BLOB.fullmatch(blob.name):
            found[path.name] = blob.name
            continue
        stat = blob.stat()
        key = f"{blob}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}"
        found[path.name] = known.get(key) or fresh.setdefault(key, file_digest(blob))
    if fresh:
        _remember(memory, fresh)
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=1024)
def _file_digest(path: Path, modified: int, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remembered(memory: Path) -> dict[str, str]:
    try:
        known = json.loads(memory.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _remember(memory: Path, fresh: dict[str, str]) -> None:
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(memory.with_suffix(".lock")):
            known = _remembered(memory) | fresh
            replace(memory, lambda path: path.write_text(json.dumps(known), "utf-8"))
    except OSError:  # the next run reads the files again
        return
