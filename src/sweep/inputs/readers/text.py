"""Text files: JSON Lines, JSON, YAML, and plain text with one prompt per line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import BinaryIO

from sweep.errors import ConfigError
from sweep.inputs.config import PromptsConfig
from sweep.inputs.formats import DOCUMENTS
from sweep.inputs.formats.documents import read_document
from sweep.inputs.prompt_yaml import read_yaml
from sweep.inputs.readers import base
from sweep.inputs.readers.base import DuplicateKey, Entries, document_text, lines, parse_json, register_reader

ADVICE = "Write it as JSON Lines (.jsonl), which is read line by line."


@register_reader(".jsonl", ".ndjson")
def read_jsonl(file: BinaryIO, name: str, config: PromptsConfig) -> Entries:
    """Yield the entries of a JSON Lines file, which is also called NDJSON."""
    for number, line in lines(file, name):
        if not line.strip():
            continue
        try:
            entry = parse_json(line)
        except json.JSONDecodeError as error:
            whole = number == 1 and line.strip() in ("[", "{")
            hint = f" Rename a JSON document of several lines to {Path(name).stem}.json." if whole else ""
            where = f"{name}:{number}: not JSON: {error.msg} at column {error.colno}.{hint}"
            raise ConfigError(where) from error
        except DuplicateKey as error:
            raise ConfigError(f"{name}:{number}: duplicate key {str(error)!r}.") from error
        except RecursionError as error:
            raise ConfigError(f"{name}:{number}: cannot be read: it is nested too deeply.") from error
        yield str(number), entry


@register_reader(".json")
def read_json(file: BinaryIO, name: str, config: PromptsConfig) -> Entries:
    """Yield the entries of a JSON file: a list, or a document with a known layout."""
    text = document_text(file, name, base.MAX_DOCUMENT, ADVICE)
    try:
        yield from read_document(parse_json(text), name, _layout(config))
    except json.JSONDecodeError as error:
        hint = f" Rename a JSON Lines file to {Path(name).stem}.jsonl." if error.msg == "Extra data" else ""
        where = f"{name}:{error.lineno}: not JSON: {error.msg} at column {error.colno}.{hint}"
        raise ConfigError(where) from error
    except DuplicateKey as error:
        raise ConfigError(f"{name}: duplicate key {str(error)!r} in one object.") from error


@register_reader(".yaml", ".yml")
def read_yaml_file(file: BinaryIO, name: str, config: PromptsConfig) -> Entries:
    """Yield the entries of a YAML file: a list, or a document with a known layout."""
    text = document_text(file, name, base.MAX_YAML, ADVICE)
    yield from read_document(read_yaml(text, name), name, _layout(config))


def _layout(config: PromptsConfig) -> str | None:
    return next((name for name in (config.format or "").split("+") if name in DOCUMENTS), None)


@register_reader(".txt")
def read_text(file: BinaryIO, name: str, config: PromptsConfig) -> Entries:
    """Yield the lines of a text file that are not blank."""
    for number, line in lines(file, name):
        if line.strip():
            yield str(number), line.removesuffix("\n").removesuffix("\r")
