"""Journal: append-only files of all generated answers, shared by the sweeps of a folder. Resuming starts from it.

    <root>/<fingerprint[:2]>/<fingerprint>/identity.json     the canonical JSON whose SHA-256 is the fingerprint
                                           <writer>.jsonl    answers of one writer: a header, then a line per answer

See `journal_format` for the lines.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from sweep.storage.journal_format import (
    FORMAT,
    HEADER,
    PAYLOAD,
    JournalEntry,
    entry_of,
    has_checksum,
    headers_of,
    salt_of,
)
from sweep.storage.journal_writer import IDENTITY, JournalWriter, folder_of, journal_error
from sweep.util.state_files import parse

SAMPLED = 4  # fingerprints per subfolder whose format version is read


@dataclass(frozen=True, slots=True)
class Recovered:
    """The answers that could be read for a fingerprint.

    Attributes:
        entries: by kind of answer and prompt id. Of several, the first in the order of files and lines.
        problems: a message for each damaged line or file. Their answers have to be generated again.
        torn: number of files whose last line is incomplete, as after the death of a writer.
    """

    entries: dict[tuple[str, str], JournalEntry] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    torn: int = 0


class Journal:
    """Reads the answers of all sweeps that share a folder, and opens writers. The first writer creates the folder.

    Holds no open files, so any thread or process may have one.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def writer(self, header: Mapping[str, str]) -> JournalWriter:
        """Return a writer of new answers that are recorded with this header."""
        return JournalWriter(self._root, header)

    def read(self, fingerprint: str, accept: Callable[[Mapping[str, str]], bool] = lambda header: True) -> Recovered:
        """Return the answers recorded under a fingerprint. Damaged files are reported in the result, not raised.

        Args:
            fingerprint: the point's.
            accept: returns whether to include the answers of a writer with this header.

        Raises:
            JournalError: no permission to read the folder or a file in it.
        """
        recovered, torn = Recovered(), 0
        for path, data in self._files(fingerprint, recovered.problems):
            torn += _read(path, data, fingerprint, recovered, accept)
        return Recovered(recovered.entries, recovered.problems, torn)

    def headers(self, fingerprint: str) -> list[Mapping[str, str]]:
        """Return the headers of all writers of a fingerprint.

        Raises:
            JournalError: see `read`.
        """
        first_lines = (data.rstrip(b"\n") for _, data in self._files(fingerprint, [], lines=1))
        return list(headers_of(list(first_lines), salt_of(fingerprint)).values())

    def older_formats(self, version: int) -> list[int]:
        """Return the fingerprint versions below `version` in the journal, from a sample of each subfolder.

        Unreadable files are skipped.
        """
        versions: set[int] = set()
        for path in itertools.chain.from_iterable(
            itertools.islice(folder.glob(f"*/{IDENTITY}"), SAMPLED) for folder in self._root.glob("??")
        ):
            with suppress(OSError, ValueError, TypeError, KeyError):
                if path.is_file():  # reading a pipe would block
                    versions.add(int(parse(path.read_bytes())["version"]))
        return sorted(other for other in versions if other < version)

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
                if not path.is_file():  # reading a pipe would block
                    problems.append(f"{path}: not a regular file.")
                    continue
                with path.open("rb") as file:
                    data = file.read() if lines is None else b"".join(itertools.islice(file, lines))
                yield path, data
            except FileNotFoundError:  # removed since the folder was listed
                continue
            except PermissionError as error:
                raise journal_error(folder, "read", error) from error
            except OSError as error:
                problems.append(f"{path}: cannot be read: {error.strerror}.")


def _read(
    path: Path, data: bytes, fingerprint: str, recovered: Recovered, accept: Callable[[Mapping[str, str]], bool]
) -> int:
    """Add a file's answers to `recovered`. Return 1 if its last line is torn, else 0."""
    lines = data.split(b"\n")
    ends_in_newline = lines.pop() == b""
    salt = salt_of(fingerprint)
    headers = headers_of(lines, salt)
    salts = [(salt_of(fingerprint, payload), header) for payload, header in headers.items()]
    if lines and not salts:
        match = HEADER.match(lines[0])
        if match and int(match[1]) != FORMAT:
            recovered.problems.append(f"{path}, line 1: unknown journal format {int(match[1])}, expected {FORMAT}.")
            return 0
        if len(lines) == 1 and ends_in_newline:
            return 1
        recovered.problems.append(f"{path}, line 1: no valid header. The file's answers cannot be used.")
        return 0 if ends_in_newline else 1
    for number, line in enumerate(lines, 1):
        payload = line[PAYLOAD:]
        if payload in headers and has_checksum(line, salt):
            continue
        header = next((header for line_salt, header in salts if has_checksum(line, line_salt)), None)
        if header is None:
            if number == len(lines) and ends_in_newline:
                return 1
            recovered.problems.append(f"{path}, line {number}: the checksum does not match.")
            continue
        try:
            key, entry = entry_of(parse(payload.decode("utf-8", "surrogatepass")), header)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            recovered.problems.append(f"{path}, line {number}: not a valid record: {error!r}.")
            continue
        if accept(header):
            recovered.entries.setdefault(key, entry)
    return 0 if ends_in_newline else 1
