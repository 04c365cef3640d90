"""The journal's writing side: one writer's answers, a file for each point."""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.disk.records import (
    FORMAT,
    as_bytes,
    line_of,
    plain,
    salt_of,
)
from sweep.engines.base import Generation
from sweep.errors import JournalError

if TYPE_CHECKING:
    from sweep.identity import Identity

OPEN_FILES = 128  # a process may have 1024 by default, and the engine wants some of them
SYNC_SECONDS = 2.0
SYNC_SHARE = 0.05  # of the time: many points at once on a slow disk must not hold up the engine


@dataclass(frozen=True, slots=True)
class _File:
    path: str
    fd: int
    inode: tuple[int, int]
    salt: Any


class Writer:
    """Appends answers, each of which survives this process once `append` has returned; for one thread.

    A machine's end they survive some seconds later, or as soon as a disk can have it in a twentieth of the time.
    """

    def __init__(self, root: Path, header: Mapping[str, str]) -> None:
        self._root, self._made_root = root, False
        self._name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(8)}"
        self._header = as_bytes({"format": FORMAT, "writer": self._name, "header": dict(header)})
        self._files: OrderedDict[str, _File] = OrderedDict()  # the open ones, the least recently used first
        self._begun: set[str] = set()
        self._unsynced: dict[str, None] = {}  # the longest waiting first
        self._failed: dict[str, str] = {}
        self._sync_at = time.monotonic() + SYNC_SECONDS

    def append(self, identity: Identity, kind: str, prompt_id: str, generation: Generation) -> None:
        """Record the answer to a point's prompt; the operating system has it on return.

        Args:
            identity: the point's.
            kind: what the prompt was run for, such as "answer"; a point has one answer of each kind to a prompt.
            prompt_id: the prompt's.
            generation: of a forced answer, only the log-probabilities are kept.

        Raises:
            JournalError: it cannot be written.  Nothing more is then written to that file.
        """
        fingerprint = identity.fingerprint
        if fingerprint in self._failed:
            raise JournalError(self._failed[fingerprint])
        payload = as_bytes({"prompt": prompt_id, "kind": kind} | plain(generation))
        try:
            file = self._open(identity)
            _write(file.fd, line_of(file.salt, payload))
        except OSError as error:
            raise self._fail(fingerprint, error) from error
        except BaseException:  # a signal's, perhaps in the middle of a line, to which nothing must be added
            self._failed[fingerprint] = f"The journal {folder_of(self._root, fingerprint)} was interrupted."
            raise
        self._unsynced[fingerprint] = None
        if len(self._files) > OPEN_FILES:
            self._close(next(iter(self._files)))
        if time.monotonic() >= self._sync_at:
            self._sync_some()

    def finish(self, fingerprint: str) -> None:
        """Have the disk keep what was recorded under a fingerprint, and close its file.

        Raises:
            JournalError: it cannot be kept, or its file was removed.
        """
        try:
            self._sync(fingerprint)
        finally:
            self._close(fingerprint)

    def close(self) -> None:
        """Finish all fingerprints.  Closing twice is allowed.

        Raises:
            JournalError: as of `finish`; the others are finished none the less.
        """
        problem: JournalError | None = None
        for fingerprint in sorted(self._unsynced.keys() | self._files.keys()):
            try:
                self.finish(fingerprint)
            except JournalError as error:
                problem = problem or error
        if problem is not None:
            raise problem

    def _open(self, identity: Identity) -> _File:
        fingerprint = identity.fingerprint
        if (known := self._files.get(fingerprint)) is not None:
            self._files.move_to_end(fingerprint)
            _require_in_place(known)
            return known
        flags = os.O_WRONLY | os.O_APPEND
        begun = fingerprint in self._begun
        if not begun:
            self._make_folder(identity)
            flags |= os.O_CREAT | os.O_EXCL
        path = self._path(fingerprint)
        fd = os.open(path, flags, 0o666)
        stat = os.fstat(fd)
        salt = salt_of(fingerprint, self._header)
        file = self._files[fingerprint] = _File(path, fd, (stat.st_dev, stat.st_ino), salt)
        if not begun:
            self._begun.add(fingerprint)
            _write(fd, line_of(salt_of(fingerprint), self._header))
        return file

    def _make_folder(self, identity: Identity) -> None:
        if not self._made_root:  # later it must be there: a journal that was removed is not begun anew unnoticed
            self._root.mkdir(parents=True, exist_ok=True)
            self._made_root = True
        folder = folder_of(self._root, identity.fingerprint)
        for made in (folder.parent, folder):
            made.mkdir(exist_ok=True)
        described, canonical = folder / "identity.json", identity.canonical.encode()
        if not described.is_file() or described.read_bytes() != canonical:  # as when a machine ended too early
            temporary = folder / f".identity-{self._name}"
            temporary.write_bytes(canonical)
            temporary.replace(described)

    def _path(self, fingerprint: str) -> str:
        return str(folder_of(self._root, fingerprint) / f"{self._name}.jsonl")

    def _sync_some(self) -> None:
        began = now = time.monotonic()
        while self._unsynced and now < began + SYNC_SECONDS * SYNC_SHARE:
            self._sync(next(iter(self._unsynced)))
            now = time.monotonic()
        self._sync_at = now + max(SYNC_SECONDS, (now - began) / SYNC_SHARE)

    def _sync(self, fingerprint: str) -> None:
        if fingerprint not in self._unsynced:
            return
        del self._unsynced[fingerprint]
        file = self._files.get(fingerprint)
        try:
            if file is not None:
                os.fsync(file.fd)
                _require_in_place(file)
                return
            fd = os.open(self._path(fingerprint), os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            if fingerprint not in self._failed:  # else it has been said
                raise self._fail(fingerprint, error) from error

    def _close(self, fingerprint: str) -> None:
        file = self._files.pop(fingerprint, None)
        if file is not None:
            try:
                os.close(file.fd)
            except OSError as error:  # network file systems may say only now that they are full
                if fingerprint not in self._failed:
                    raise self._fail(fingerprint, error) from error

    def _fail(self, fingerprint: str, error: OSError) -> JournalError:
        problem = journal_error(folder_of(self._root, fingerprint), "written", error)
        self._failed[fingerprint] = str(problem)
        return problem


def _write(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:  # a disk that is nearly full takes a part, and says why at the next attempt
        left = left[os.write(fd, left) :]


def _require_in_place(file: _File) -> None:
    """Raise `FileNotFoundError` unless an open file still has its name, without which nobody would find it."""
    stat = os.stat(file.path)
    if (stat.st_dev, stat.st_ino) != file.inode:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), file.path)


def folder_of(root: Path, fingerprint: str) -> Path:
    return root / fingerprint[:2] / fingerprint


def journal_error(folder: Path, what: str, error: OSError) -> JournalError:
    reason = error.strerror or str(error)
    rest = "What was written before is kept."
    if isinstance(error, FileNotFoundError):
        reason, rest = "it was removed or moved while it was in use", "What was written before went with it."
    elif isinstance(error, (FileExistsError, NotADirectoryError)):
        reason = "there is a file where a folder should be"
    return JournalError(f"The journal {folder} cannot be {what}: {reason}." + f"\n{rest}" * (what == "written"))
