"""Prompt files in JSON Lines, YAML, JSON, CSV, TSV and plain text; see `prompt_tables` for Parquet.

Readers yield entries one at a time, so that `prompts.limit` bounds how much is read.
"""

from __future__ import annotations

import csv
import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sweep.errors import ConfigError
from sweep.inputs.config import PromptsConfig
from sweep.inputs.messages import describe_type
from sweep.inputs.prompt_tables import read_parquet
from sweep.inputs.prompt_yaml import read_yaml
from sweep.util.paths import conf_dir

Entries = Iterator[tuple[str, Any]]  # (place within the file, entry)

MAX_PROMPTS = 1_000_000
MAX_LINE = 64 * 2**20  # maximum bytes of a line
MAX_DOCUMENT = 256 * 2**20  # maximum bytes of a JSON file, which is parsed as a whole
MAX_YAML = 16 * 2**20  # maximum bytes of a YAML file; larger ones take minutes to parse

JSON_COLUMNS = ("messages", "conversations", "tools", "values")  # CSV cells that hold JSON


@dataclass(frozen=True, slots=True)
class PromptFile:
    """An existing prompt file.

    Attributes:
        name: as written in the configuration.
        path: the regular file.
    """

    name: str
    path: Path

    def entries(self, config: PromptsConfig) -> Entries:
        """Yield (place, entry) for each entry; the place is a line number, or `[i]` in JSON, YAML and Parquet.

        Raises:
            ConfigError: the suffix is unknown, the file cannot be read or has another format than its suffix says, or a
                limit of this module is exceeded.
        """
        suffix = self.path.suffix.lower()
        reader = READERS.get(suffix)
        if reader is None:
            packed = " Decompress it first." if suffix in (".gz", ".zst", ".bz2", ".xz", ".zip") else ""
            raise ConfigError(
                f"prompts.path: {self.path.name!r} has an unknown suffix. Use one of {', '.join(READERS)}.{packed}"
            )
        name = self.path.name
        try:
            with _open_regular(self.path) as file:
                yield from reader(file, name, config)
        except UnicodeDecodeError as error:
            raise ConfigError(f"{name}: not UTF-8 text ({error.reason}).") from error
        except RecursionError as error:
            raise ConfigError(f"{name}: cannot be read: it is nested too deeply.") from error
        except ValueError as error:  # for example, a number with thousands of digits
            raise ConfigError(f"{name}: cannot be read: {str(error).splitlines()[0]}.") from error
        except OSError as error:
            raise ConfigError(f"prompts.path: {name!r} cannot be read: {error.strerror or error}.") from error


def find_prompt_file(name: str) -> PromptFile:
    """Return the prompt file at a path relative to the working directory, or to the configuration's `prompts` folder.

    Raises:
        ConfigError: the path does not exist, or is a folder, pipe or device.
    """
    path = Path(name).expanduser()
    candidates = [path] if path.is_absolute() else [path, conf_dir() / "prompts" / path]
    try:
        for candidate in candidates:
            if candidate.is_file():
                return PromptFile(name, candidate)
        if file_type := next((_file_type(candidate) for candidate in candidates if candidate.exists()), None):
            raise ConfigError(f"prompts.path: {name!r} is {file_type}; it must be a file.")
    except (OSError, ValueError) as error:  # the path is too long, or contains a NUL
        raise ConfigError(f"prompts.path: {name[:200]!r} cannot be read: {error}.") from error
    raise ConfigError(f"prompts.path: there is no file {name!r}.")


def _file_type(path: Path) -> str:
    if path.is_dir():
        return "a folder"
    return "a pipe, which can be read only once" if path.is_fifo() else "a device or socket"


def _open_regular(path: Path) -> BinaryIO:
    """Open a regular file without blocking, even if a pipe has replaced it since it was found."""
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError("it is no longer a regular file")
    return os.fdopen(descriptor, "rb")


def _lines(file: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
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
    hint = " It looks like UTF-16: save it as UTF-8." if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
    return ConfigError(f"{name}:{number}: not UTF-8 text ({error.reason}).{hint}")


def _document(file: BinaryIO, name: str, limit: int, advice: str) -> str:
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


def _distinct_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; reject duplicate keys, of which `json` would keep the last."""
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _DuplicateKey(next(key for key in keys if keys.count(key) > 1))
    return result


class _DuplicateKey(ValueError):
    """A JSON object has a key twice."""


def parse_json(text: str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: not JSON, or an object has a key twice.
    """
    return json.loads(text, object_pairs_hook=_distinct_keys)


def _read_jsonl(file: BinaryIO, name: str, config: PromptsConfig) -> Entries:
    for number, line in _lines(file, name):
        if not line.strip():
            continue
        try:
            entry = parse_json(line)
        except json.JSONDecodeError as error:
            whole = number == 1 and line.strip() in ("[", "{")
            hint = f" Rename a JSON document of several lines to {Path(name).stem}.json." if whole else ""
            where = f"{name}:{number}: not JSON: {error.msg} at column {error.colno}.{hint}"
            raise ConfigError(where) from error
        except _DuplicateKey as error:
            raise ConfigError(f"{name}:{number}: duplicate key {str(error)!r}.") from error
        except RecursionError as error:
            raise ConfigError(f"{name}:{number}: cannot be read: it is nested too deeply.") from error
        yield str(number), entry


def _read_json(file: BinaryIO, name: str, config: PromptsConfig) -> Entries:
    text = _document(file, name, MAX_DOCUMENT, "Write it as JSON Lines (.jsonl), which is read line by line.")
    try:
        yield from _listed(parse_json(text), name)
    except json.JSONDecodeError as error:
        hint = f" Rename a JSON Lines file to {Path(name).stem}.jsonl." if error.msg == "Extra data" else ""
        where = f"{name}:{error.lineno}: not JSON: {error.msg} at column {error.colno}.{hint}"
        raise ConfigError(where) from error
    except _DuplicateKey as error:
        raise ConfigError(f"{name}: duplicate key {str(error)!r} in one object.") from error


def _read_yaml(file: BinaryIO, name: str, config: PromptsConfig) -> Entries:
    text = _document(file, name, MAX_YAML, "Write it as JSON Lines (.jsonl), which is read line by line.")
    yield from _listed(read_yaml(text, name), name)


def _listed(document: Any, name: str) -> Entries:
    if not isinstance(document, list):
        keys = f" with the keys {', '.join(map(str, list(document)[:8]))}" if isinstance(document, dict) else ""
        raise ConfigError(f"{name}:1: must hold a list of prompts; got {describe_type(document)}{keys}.")
    for i, entry in enumerate(document):
        yield f"[{i}]", entry


def _read_delimited(file: BinaryIO, name: str, config: PromptsConfig, delimiter: str = ",") -> Entries:
    csv.field_size_limit(MAX_LINE)  # process-wide; the default rejects prompts of 128 KiB
    reader = csv.reader((line for _, line in _lines(file, name)), delimiter=delimiter, strict=True)
    try:
        columns = next(reader, [])
        if duplicate := next((column for column in columns if columns.count(column) > 1), None):
            raise ConfigError(f"{name}:1: two columns are named {duplicate!r}.")
        for row in reader:
            if not row:
                continue
            place = str(reader.line_num)
            if len(row) != len(columns):
                raise ConfigError(f"{name}:{place}: has {len(row)} fields; expected {len(columns)}, as in the header.")
            yield place, {c: _cell(c, text, f"{name}:{place}", config) for c, text in zip(columns, row, strict=True)}
    except csv.Error as error:
        raise ConfigError(f"{name}:{reader.line_num}: not CSV: {error}.") from error


def _cell(column: str, text: str, place: str, config: PromptsConfig) -> Any:
    """Return the value of a cell: None if empty, JSON where a list or mapping is expected, else its text."""
    if not text:
        return None
    stripped = text.strip()
    if column in (config.reference_key, config.choices_key) and stripped.startswith("[") and stripped.endswith("]"):
        try:
            return parse_json(stripped)
        except ValueError as error:
            if stripped[1:2] in ("'", '"'):
                problem = f'a list that is not JSON; expected a form such as ["Paris", "Paris."], got {stripped[:80]}'
                raise ConfigError(f"{place}: {column!r} holds {problem}.") from error
    elif column in JSON_COLUMNS or (
        column == config.prompt_key and stripped.startswith("[{") and stripped.endswith("}]")
    ):
        try:
            return parse_json(stripped)
        except ValueError as error:
            if column in JSON_COLUMNS:
                raise ConfigError(f"{place}: {column!r} must hold JSON ({error}).") from error
    return text


def _read_tsv(file: BinaryIO, name: str, config: PromptsConfig) -> Entries:
    return _read_delimited(file, name, config, "\t")


def _read_text(file: BinaryIO, name: str, config: PromptsConfig) -> Entries:
    for number, line in _lines(file, name):
        if line.strip():
            yield str(number), line.removesuffix("\n").removesuffix("\r")


def _read_parquet(file: BinaryIO, name: str, config: PromptsConfig) -> Entries:
    yield from read_parquet(file, name, config, MAX_PROMPTS)


READERS: dict[str, Callable[[BinaryIO, str, PromptsConfig], Entries]] = {
    ".jsonl": _read_jsonl,
    ".yaml": _read_yaml,
    ".yml": _read_yaml,
    ".csv": _read_delimited,
    ".tsv": _read_tsv,
    ".txt": _read_text,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
