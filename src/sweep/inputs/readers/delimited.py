"""Delimited text: CSV with commas or semicolons, and TSV."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from functools import partial
from typing import Any, BinaryIO

from sweep.errors import ConfigError
from sweep.inputs.config import PromptsConfig
from sweep.inputs.messages import is_chat
from sweep.inputs.readers import base
from sweep.inputs.readers.base import Entries, lines, parse_json, register_reader
from sweep.inputs.relevance import is_relevant

JSON_COLUMNS = ("messages", "conversations", "tools", "values")  # cells that hold JSON
FORMAT_COLUMNS = ("turns", "answers", "choices", "body", "completion")  # the same, if it is a list or object


def read_delimited(file: BinaryIO, name: str, config: PromptsConfig, delimiter: str | None = None) -> Entries:
    """Yield the rows of a file with a header.

    Args:
        file: the opened file.
        name: the file's name, for errors.
        config: names the columns.
        delimiter: the separator; None to guess between comma and semicolon by the header.
    """
    csv.field_size_limit(base.MAX_LINE)  # process-wide; the default rejects prompts of 128 KiB
    numbered = lines(file, name)
    first = next(numbered, None)
    if first is None:
        return
    separator = delimiter or _delimiter(first[1], config)

    def texts() -> Iterator[str]:
        yield first[1]
        yield from (line for _, line in numbered)

    reader = csv.reader(texts(), delimiter=separator, strict=True)
    try:
        columns = next(reader, [])
        if delimiter is None and (len(columns) == 1 or columns[0] == "sep="):
            _check_separator(first[1].rstrip("\r\n"), name)
        if duplicate := next((column for column in columns if columns.count(column) > 1), None):
            raise ConfigError(f"{name}:1: two columns are named {duplicate!r}.")
        for row in reader:
            if not row:
                continue
            place = str(reader.line_num)
            if len(row) != len(columns):
                raise ConfigError(f"{name}:{place}: has {len(row)} fields; expected {len(columns)}, as in the header.")
            yield place, {c: cell(c, text, f"{name}:{place}", config) for c, text in zip(columns, row, strict=True)}
    except csv.Error as error:
        raise ConfigError(f"{name}:{reader.line_num}: not CSV: {error}.") from error


def _delimiter(header: str, config: PromptsConfig) -> str:
    """Return the separator of a header: the one by which more columns have a meaning; a comma if both have as many."""

    def known(separator: str) -> int:
        try:
            return sum(is_relevant(column, config) for column in next(csv.reader([header], delimiter=separator), []))
        except csv.Error:
            return 0

    semicolons, commas = known(";"), known(",")
    if semicolons == commas:
        return ";" if ";" in header and "," not in header else ","
    return ";" if semicolons > commas else ","


def _check_separator(header: str, name: str) -> None:
    """Refuse a header that another separator would split, and Excel's line that names one.

    Raises:
        ConfigError: names the separator, and what to do.
    """
    if header.startswith("sep="):
        raise ConfigError(f"{name}:1: {header!r} is a line for Excel. Remove it.")
    if "\t" in header:
        raise ConfigError(f"{name}:1: the columns are separated by tabs. Set prompts.format=tsv.")
    if "|" in header:
        raise ConfigError(f"{name}:1: the columns are separated by '|'. Save the file with commas.")


def cell(column: str, text: str, place: str, config: PromptsConfig) -> Any:
    """Return the value of a cell: None if empty, JSON where a list or mapping is expected, else its text.

    Raises:
        ConfigError: JSON is expected, and the text is not JSON.
    """
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
    elif column in FORMAT_COLUMNS and stripped[0] in "[{":
        try:
            value = parse_json(stripped)
        except ValueError:
            return text
        return text if column == "completion" and not is_chat(value) else value
    return text


register_reader(".csv")(read_delimited)
register_reader(".tsv")(partial(read_delimited, delimiter="\t"))
