"""What has been generated, on disk, for all sweeps of a folder: the truth that a later run goes on from.

    <root>/<fingerprint[:2]>/<fingerprint>/identity.json     the canonical JSON whose SHA-256 the fingerprint is
                                           <writer>.jsonl    one writer's answers: a header, then a line for each

What a line is, `records` says.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.disk.records import (
    FORMAT,
    HEADER,
    PAYLOAD,
    Entry,
    entry_of,
    fits,
    headers_of,
    salt_of,
)
from sweep.disk.writer import Writer, folder_of, journal_error

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True)
class Recovered:
    """What is known of a fingerprint.

    Attributes:
        entries: by kind of run and prompt id; the first in the order of files and lines.
        problems: what was found to be wrong, with file and line; all of it is to be generated again.
        torn: how many files end in a line that was not finished, as when a writer dies.
    """

    entries: dict[tuple[str, str], Entry] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    torn: int = 0


class Journal:
    """The answers of all sweeps that share a folder, which need not exist before the first is written."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def writer(self, header: Mapping[str, str]) -> Writer:
        """Return a writer of new answers, which all bear this header."""
        return Writer(self._root, header)

    def read(self, fingerprint: str, accept: Callable[[Mapping[str, str]], bool] = lambda header: True) -> Recovered:
        """Return all answers recorded under a fingerprint.  Whatever is wrong with a file is reported, not raised.

        Args:
            accept: whether the answers of a writer of that header are wanted.

        Raises:
            JournalError: the folder or a file in it may not be read.
        """
        recovered, torn = Recovered(), 0
        for path, data in self._files(fingerprint, recovered.problems):
            torn += _read(path, data, fingerprint, recovered, accept)
        return Recovered(recovered.entries, recovered.problems, torn)

    def headers(self, fingerprint: str) -> list[Mapping[str, str]]:
        """Return what the writers under a fingerprint said of themselves.

        Raises:
            JournalError: as of `read`.
        """
        first_lines = (data.rstrip(b"\n") for _, data in self._files(fingerprint, [], lines=1))
        return list(headers_of(list(first_lines), salt_of(fingerprint)).values())

    def _files(self, fingerprint: str, problems: list[str], lines: int | None = None) -> Iterator[tuple[Path, bytes]]:
        folder = folder_of(self._root, fingerprint)
        try:
            names = sorted(name for name in os.listdir(folder) if name.endswith(".jsonl"))
        except FileNotFoundError:
            return
        except OSError as error:
            raise journal_error(folder, "read", error) from error
        for path in (folder / name for name in names):
            try:
                if not path.is_file():  # a pipe would never end
                    problems.append(f"{path}: this is no file.")
                    continue
                with path.open("rb") as file:
                    data = file.read() if lines is None else b"".join(itertools.islice(file, lines))
                yield path, data
            except FileNotFoundError:  # it was put aside meanwhile
                continue
            except PermissionError as error:
                raise journal_error(folder, "read", error) from error
            except OSError as error:
                problems.append(f"{path}: it cannot be read: {error.strerror}.")


def _read(
    path: Path, data: bytes, fingerprint: str, recovered: Recovered, accept: Callable[[Mapping[str, str]], bool]
) -> int:
    """Add a file's answers to those that are known; return 1 if its last line is torn, else 0."""
    lines = data.split(b"\n")
    finished = lines.pop() == b""
    salt = salt_of(fingerprint)
    headers = headers_of(lines, salt)
    salts = [(salt_of(fingerprint, payload), header) for payload, header in headers.items()]
    if lines and not salts:
        other = HEADER.match(lines[0])
        if other and int(other[1]) != FORMAT:
            recovered.problems.append(f"{path}, line 1: it is in format {int(other[1])}, which is not known here.")
            return 0
        if len(lines) == 1 and finished:
            return 1
        recovered.problems.append(f"{path}, line 1: there is no valid header, and what follows it cannot be used.")
        return 0 if finished else 1
    for number, line in enumerate(lines, 1):
        payload = line[PAYLOAD:]
        if payload in headers and fits(line, salt):
            continue
        header = next((header for own, header in salts if fits(line, own)), None)
        if header is None:
            if number == len(lines) and finished:
                return 1
            recovered.problems.append(f"{path}, line {number}: its checksum does not fit.")
            continue
        try:
            key, entry = entry_of(json.loads(payload.decode("utf-8", "surrogatepass")), header)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            recovered.problems.append(f"{path}, line {number}: it is not what a record should be: {error!r}.")
            continue
        if accept(header):
            recovered.entries.setdefault(key, entry)
    return 0 if finished else 1
