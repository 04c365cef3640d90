"""Content digests of files, cached until a file changes."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from pathlib import Path

from filelock import FileLock

from sweep.util import state_files
from sweep.util.atomic import replace

FileVersion = tuple[int, int, int]  # size, modification time in ns, inode; a change means new contents

_SHA256 = re.compile(r"[0-9a-f]{64}")
_BLOB = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")


def file_digest(path: Path) -> str:
    """Return a file's SHA-256 as hexadecimal digits."""
    return _file_digest(path, file_version(path))


def file_version(path: Path) -> FileVersion:
    """Return size, modification time and inode, which identify a file's contents without reading it."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def file_versions(folder: Path, patterns: Sequence[str]) -> dict[str, FileVersion]:
    """Return the version of each file in `folder` itself that matches a pattern, by file name."""
    matches = {path for pattern in patterns for path in folder.glob(pattern)}
    return {path.name: file_version(path) for path in sorted(matches) if path.is_file()}


@cache
def code_digest(definition: type | Callable[..., object]) -> str | None:
    """Return the SHA-256 of the module that defines a class or function; None if the module has no file.

    Cached for the life of the process, which keeps running the code it imported even if the file changes.
    """
    try:
        file = inspect.getsourcefile(definition)
    except TypeError:  # defined interactively, or compiled
        file = None
    return file_digest(Path(file)) if file and Path(file).is_file() else None


def folder_digest(folder: Path, patterns: Sequence[str], memory: Path | None = None) -> str:
    """Return a hash of the names and contents of the files in `folder` itself that match a pattern.

    Weights take long to read (about 1 s per GB). Digests are therefore cached in the file `memory`, by path, size, time
    and inode; None caches none. In the Hugging Face cache, files are links to blobs named by their hashes, so nothing
    is read.
    """
    files = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    cached = {} if memory is None else _read_cache(memory)
    digests: dict[str, str] = {}
    computed: dict[str, str] = {}
    for path in files:
        blob = path.resolve()
        if blob.parent.name == "blobs" and _BLOB.fullmatch(blob.name):
            digests[path.name] = blob.name
            continue
        stat = blob.stat()
        key = f"{blob}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ino}"
        digests[path.name] = cached.get(key) or computed.setdefault(key, file_digest(blob))
    if computed and memory is not None:
        _update_cache(memory, computed)
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=1024)
def _file_digest(path: Path, version: FileVersion) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_cache(memory: Path) -> dict[str, str]:
    try:
        document = state_files.parse(state_files.read(memory))
    except (OSError, ValueError):
        return {}
    # A damaged entry would change the fingerprint of unchanged files.
    items = document.items() if isinstance(document, dict) else ()
    return {key: digest for key, digest in items if isinstance(digest, str) and _SHA256.fullmatch(digest)}


def _update_cache(memory: Path, computed: dict[str, str]) -> None:
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(memory.with_suffix(".lock")):
            merged = _read_cache(memory) | computed
            replace(memory, lambda path: path.write_text(json.dumps(merged), "utf-8"))
    except OSError:  # without the cache, the next run reads the files again
        return
