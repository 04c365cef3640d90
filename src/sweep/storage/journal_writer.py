"""Journal writer: appends answers to one file per point."""

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

from sweep.engines.base import Generation
from sweep.errors import JournalError
from sweep.storage.journal_format import FORMAT, as_bytes, line_of, plain, salt_of

if TYPE_CHECKING:
    from sweep.points.fingerprint import PointFingerprint

IDENTITY = "identity.json"  # the canonical JSON of a fingerprint
OPEN_FILES = 128  # a process may have 1024 by default, and the engine needs some of them
SYNC_SECONDS = 2.0
SYNC_SHARE = 0.05  # largest share of the time spent in fsync, so that a slow disk does not stall the engine


@dataclass(frozen=True, slots=True)
class _File:
    path: str
    fd: int
    inode: tuple[int, int]
    salt: Any


class JournalWriter:
    """Appends answers durably.

    An answer survives the process once `append` has returned. It survives a crash of the machine after the next sync,
    within seconds, or later on a disk so slow that syncs would exceed `SYNC_SHARE`. Used by one thread. Call `close`
    at the end.
    """

    def __init__(self, root: Path, header: Mapping[str, str]) -> None:
        self._root, self._root_exists = root, False
        self._name = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{secrets.token_hex(8)}"
        self._header = as_bytes({"format": FORMAT, "writer": self._name, "header": dict(header)})
        self._files: OrderedDict[str, _File] = OrderedDict()  # open files, least recently used first
        self._created: set[str] = set()
        self._unsynced: dict[str, None] = {}  # longest waiting first
        self._failed: dict[str, str] = {}
        self._sync_at = time.monotonic() + SYNC_SECONDS

    def append(self, point_fingerprint: PointFingerprint, kind: str, prompt_id: str, generation: Generation) -> None:
        """Record the answer to a point's prompt. On return, the operating system has it.

        Args:
            point_fingerprint: fingerprint of the point.
            kind: what the prompt was run for, such as "answer". A point has one answer of each kind per prompt.
            prompt_id: id of the prompt.
            generation: the answer. Only the log-probabilities of a forced answer are kept.

        Raises:
            JournalError: the answer cannot be written. Nothing more is written to that file afterwards.
        """
        fingerprint = point_fingerprint.fingerprint
        if fingerprint in self._failed:
            raise JournalError(self._failed[fingerprint])
        payload = as_bytes({"prompt": prompt_id, "kind": kind} | plain(generation))
        try:
            file = self._open(point_fingerprint)
            _write(file.fd, line_of(file.salt, payload))
        except OSError as error:
            raise self._fail(fingerprint, error) from error
        except BaseException:  # a signal may have interrupted a line, and nothing must be appended to that
            self._failed[fingerprint] = f"Writing the journal {folder_of(self._root, fingerprint)} was interrupted."
            raise
        self._unsynced[fingerprint] = None
        if len(self._files) > OPEN_FILES:
            self._close(next(iter(self._files)))
        if time.monotonic() >= self._sync_at:
            self._sync_some()

    def finish(self, fingerprint: str) -> None:
        """Sync the answers of a fingerprint to the disk and close its file.

        Raises:
            JournalError: the sync failed, or the file was removed.
        """
        try:
            self._sync(fingerprint)
        finally:
            self._close(fingerprint)

    def close(self) -> None:
        """Finish all fingerprints. Closing twice is allowed.

        Raises:
            JournalError: see `finish`. The other fingerprints are still finished.
        """
        problem: JournalError | None = None
        for fingerprint in sorted(self._unsynced.keys() | self._files.keys()):
            try:
                self.finish(fingerprint)
            except JournalError as error:
                problem = problem or error
        if problem is not None:
            raise problem

    def _open(self, point_fingerprint: PointFingerprint) -> _File:
        fingerprint = point_fingerprint.fingerprint
        if (open_file := self._files.get(fingerprint)) is not None:
            self._files.move_to_end(fingerprint)
            _require_in_place(open_file)
            return open_file
        flags = os.O_WRONLY | os.O_APPEND
        is_new = fingerprint not in self._created
        if is_new:
            self._make_folder(point_fingerprint)
            flags |= os.O_CREAT | os.O_EXCL
        path = self._path(fingerprint)
        fd = os.open(path, flags, 0o666)
        stat = os.fstat(fd)
        salt = salt_of(fingerprint, self._header)
        file = self._files[fingerprint] = _File(path, fd, (stat.st_dev, stat.st_ino), salt)
        if is_new:
            self._created.add(fingerprint)
            _write(fd, line_of(salt_of(fingerprint), self._header))
        return file

    def _make_folder(self, point_fingerprint: PointFingerprint) -> None:
        if not self._root_exists:  # created only once, so that removing the journal during the sweep is an error
            self._root.mkdir(parents=True, exist_ok=True)
            self._root_exists = True
        folder = folder_of(self._root, point_fingerprint.fingerprint)
        for path in (folder.parent, folder):
            path.mkdir(exist_ok=True)
        identity_file, canonical = folder / IDENTITY, point_fingerprint.canonical.encode()
        if not identity_file.is_file() or identity_file.read_bytes() != canonical:  # e.g. truncated by a crash
            temporary = folder / f".identity-{self._name}"
            temporary.write_bytes(canonical)
            temporary.replace(identity_file)

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
            if fingerprint not in self._failed:  # each failure is reported once
                raise self._fail(fingerprint, error) from error

    def _close(self, fingerprint: str) -> None:
        file = self._files.pop(fingerprint, None)
        if file is not None:
            try:
                os.close(file.fd)
            except OSError as error:  # network file systems may report a full disk only on close
                if fingerprint not in self._failed:
                    raise self._fail(fingerprint, error) from error

    def _fail(self, fingerprint: str, error: OSError) -> JournalError:
        problem = journal_error(folder_of(self._root, fingerprint), "written", error)
        self._failed[fingerprint] = str(problem)
        return problem


def _write(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:  # a nearly full disk writes a part, and raises on the next attempt
        rest = rest[os.write(fd, rest) :]


def _require_in_place(file: _File) -> None:
    """Raise `FileNotFoundError` if an open file was removed or renamed, so that resuming would not find it."""
    stat = os.stat(file.path)
    if (stat.st_dev, stat.st_ino) != file.inode:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), file.path)


def folder_of(root: Path, fingerprint: str) -> Path:
    """Return the folder of a fingerprint in a journal."""
    return root / fingerprint[:2] / fingerprint


def journal_error(folder: Path, operation: str, error: OSError) -> JournalError:
    """Return the error for a journal folder that cannot be read or written.

    Args:
        folder: the fingerprint's.
        operation: "read" or "written".
        error: the cause.
    """
    reason = error.strerror or str(error)
    consequence = "Earlier answers are kept."
    if isinstance(error, FileNotFoundError):
        reason, consequence = "it was removed or moved while in use", "Its earlier answers were removed with it."
    elif isinstance(error, (FileExistsError, NotADirectoryError)):
        reason = "there is a file where a folder should be"
    return JournalError(
        f"The journal {folder} cannot be {operation}: {reason}." + f"\n{consequence}" * (operation == "written")
    )
