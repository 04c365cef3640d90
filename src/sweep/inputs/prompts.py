"""Prompts, read from the configuration or a file."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sweep.checks import require_choice
from sweep.config import PromptsConfig
from sweep.errors import ConfigError
from sweep.paths import conf_dir

Message = dict[str, str]

# Of messages: those that chat templates know.  One that they do not know, most of them render without a word.
ROLES = ("user", "assistant", "system", "developer", "tool", "function", "ipython", "model", "document")


@dataclass(frozen=True, slots=True)
class Place:
    """Where `{name}` stands, or what has been filled in for it: characters [start, stop) of a message's text.

    Attributes:
        message: the message, by number; 0 in plain text.
        kept: whether it still says `{name}`, for a transform to put rows in its place.
    """

    name: str
    message: int
    start: int
    stop: int
    kept: bool


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt.

    Attributes:
        id: unique among the prompts of a sweep.
        text: what is shown of it: the text, or the last message's.
        messages: the chat that the template renders; None for plain completion.
        references: the answers that count as right; none means that rightness is not measured.
        values: (name, text) of what the prompt brings along for its placeholders.
        places: the placeholders' places.
    """

    id: str
    text: str
    messages: tuple[Message, ...] | None
    references: tuple[str, ...] = ()
    values: tuple[tuple[str, str], ...] = ()
    places: tuple[Place, ...] = ()


def load(config: PromptsConfig) -> list[Prompt]:
    """Read the prompts that a configuration names.

    Raises:
        ConfigError: no such file, none of the known formats, a malformed entry (with file and line), a repeated id, or
            no prompt at all.
    """
    if config.path is not None:
        path = _find(config.path)
        entries = [(f"{config.path}:{place}", entry) for place, entry in _read(path)]
    else:
        entries = [(f"prompts.items[{i}]", entry) for i, entry in enumerate(config.items or [])]
    chosen = entries[: config.limit]
    prompts = [_prompt(entry, place, i, config) for i, (place, entry) in enumerate(chosen)]
    if not prompts:
        raise ConfigError(f"The prompt list is empty: {config.path or 'prompts.items'} holds no prompt.")
    places: dict[str, str] = {}
    for prompt, (place, _) in zip(prompts, chosen, strict=True):
        if (first := places.setdefault(prompt.id, place)) != place:
            raise ConfigError(
                f"{place}: the id {prompt.id!r} stands for 2 prompts, this one and {first}; ids must differ."
            )
    return prompts


def _find(name: str) -> Path:
    """Return the file: as it is named from here, or beside the configuration's own prompts."""
    path = Path(name).expanduser()
    candidates = [path] if path.is_absolute() else [path, conf_dir() / "prompts" / path]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise ConfigError(f"prompts.path: there is no file {name!r}.")


def _read(path: Path) -> list[tuple[str, Any]]:
    """Return (place within the file, entry) for each entry of a prompts file."""
    readers = {".jsonl": _read_jsonl, ".yaml": _read_yaml, ".yml": _read_yaml, ".csv": _read_csv, ".txt": _read_text}
    readers |= {".json": _read_json, ".parquet": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(f"prompts.path: {path.name!r} is none of {', '.join(readers)}.")
    try:
        return reader(path)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path.name}:{_undecodable_line(path)}: not UTF-8 text ({error.reason}).") from error
    except RecursionError as error:
        raise ConfigError(f"{path.name}: cannot be read: it is nested too deeply.") from error
    except ValueError as error:  # a number of thousands of digits, say
        raise ConfigError(f"{path.name}: cannot be read: {str(error).splitlines()[0]}.") from error
    except OSError as error:
        raise ConfigError(f"prompts.path: {path.name!r} cannot be read: {error.strerror}.") from error


def _undecodable_line(path: Path) -> int:
    data = path.read_bytes()
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return data.count(b"\n", 0, error.start) + 1
    return 1


def _read_jsonl(path: Path) -> list[tuple[str, Any]]:
    entries = []
    # Not splitlines: a JSON string may hold characters that it takes for the end of a line.
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if line.strip():
            try:
                entries.append((str(number), json.loads(line)))
            except json.JSONDecodeError as error:
                raise ConfigError(f"{path.name}:{number}: not JSON: {error.msg} at column {error.colno}.") from error
    return entries


def _read_yaml(path: Path) -> list[tuple[str, Any]]:
    text = path.read_text(encoding="utf-8-sig")
    try:
        document = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ConfigError(f"{path.name}:{line}: not YAML: {error.problem}.") from error
    except yaml.reader.ReaderError as error:  # a character that must not be there
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{path.name}:{line}: not YAML: {str(error).splitlines()[0]}.") from error
    except ValueError as error:  # a date, say, that there is not
        raise ConfigError(f"{path.name}: not YAML: {error}.") from error
    return _listed(document, path)


def _read_json(path: Path) -> list[tuple[str, Any]]:
    try:
        return _listed(json.loads(path.read_text(encoding="utf-8-sig")), path)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path.name}:{error.lineno}: not JSON: {error.msg} at column {error.colno}.") from error


def _listed(document: Any, path: Path) -> list[tuple[str, Any]]:
    if not isinstance(document, list):
        raise ConfigError(f"{path.name}:1: must hold a list of prompts, not a {type(document).__name__}.")
    return [(f"[{i}]", entry) for i, entry in enumerate(document)]


def _read_csv(path: Path) -> list[tuple[str, Any]]:
    entries = []
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            columns = list(reader.fieldnames or [])
            if twice := next((name for name in columns if columns.count(name) > 1), None):
                raise ConfigError(f"{path.name}:1: two columns are called {twice!r}.")
            for row in reader:
                if None in row or None in row.values():
                    width = len(columns)
                    raise ConfigError(f"{path.name}:{reader.line_num}: has not the {width} fields of the header.")
                entries.append((str(reader.line_num), {key: value for key, value in row.items() if value}))
        except csv.Error as error:
            raise ConfigError(f"{path.name}:{reader.line_num}: not CSV: {error}.") from error
    return entries


def _read_text(path: Path) -> list[tuple[str, Any]]:
    lines = path.read_text(encoding="utf-8-sig").split("\n")
    return [(str(number), line) for number, line in enumerate(lines, 1) if line.strip()]


def _read_parquet(path: Path) -> list[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowException as error:
        raise ConfigError(f"{path.name}: not Parquet: {error}.") from error
    return [(f"[{i}]", {k: v for k, v in row.items() if v is not None}) for i, row in enumerate(rows)]


def _prompt(entry: Any, place: str, index: int, config: PromptsConfig) -> Prompt:
    """Make a prompt of an entry: a text, or a mapping with a text or messages, a reference or several, and an id."""
    if isinstance(entry, str):
        entry = {config.prompt_key: entry}
    if not isinstance(entry, dict):
        raise ConfigError(f"{place}: a prompt is a text or a mapping, not a {type(entry).__name__}.")
    text, messages = entry.get(config.prompt_key), entry.get("messages")
    if messages is not None:
        messages = _messages(messages, place)
        text = messages[-1]["content"]
    if not isinstance(text, str) or not text:
        raise ConfigError(f"{place}: has neither a text under {config.prompt_key!r} nor messages.")
    _require_text(entry, place)
    values = _values(entry.get("values"), place)
    if messages is None and config.chat:
        system = [{"role": "system", "content": config.system}] if config.system else []
        messages = [*system, {"role": "user", "content": text}]
    filled = [_fill(m["content"], i, values, config) for i, m in enumerate(messages or [{"content": text}])]
    return Prompt(
        id=_id(entry.get(config.id_key), place, index, config),
        text=filled[-1][0],
        messages=tuple(m | {"content": own} for m, (own, _) in zip(messages, filled, strict=True))
        if messages
        else None,
        references=_references(entry.get(config.reference_key), place, config),
        values=tuple(values.items()),
        places=tuple(found for _, places in filled for found in places),
    )


def _require_text(entry: dict[str, Any], place: str) -> None:
    try:
        json.dumps(entry, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ConfigError(f"{place}: {half!r} is half a character (a lone surrogate), which is no text.") from error


def _id(value: Any, place: str, index: int, config: PromptsConfig) -> str:
    if value is None:
        return f"p{index:04d}"
    if isinstance(value, list | dict) or not str(value):
        raise ConfigError(f"{place}: {config.id_key!r} must be a text or a number; got {value!r}.")
    return str(value)


def _fill(text: str, message: int, values: dict[str, str], config: PromptsConfig) -> tuple[str, list[Place]]:
    """Put values in the place of `{name}`; a name in `prompts.placeholders` stays as it is."""
    pieces, places, at, length = [], [], 0, 0
    for match in re.finditer(r"\{(\w+)\}", text):
        name = match[1]
        kept = name in config.placeholders
        if not kept and name not in values:
            continue
        own = match[0] if kept else values[name]
        length += match.start() - at
        places.append(Place(name, message, length, length + len(own), kept))
        pieces += [text[at : match.start()], own]
        at, length = match.end(), length + len(own)
    return "".join([*pieces, text[at:]]), places


def _values(values: Any, place: str) -> dict[str, str]:
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(v, str | int | float) for v in values.values()):
        raise ConfigError(f"{place}: 'values' must be a mapping from placeholders' names to texts.")
    return {str(name): str(value) for name, value in values.items()}


def _messages(messages: Any, place: str) -> list[Message]:
    chat = isinstance(messages, list) and messages
    if not chat or not all(
        isinstance(m, dict) and isinstance(m.get("content"), str) and m.get("role") for m in messages
    ):
        raise ConfigError(f"{place}: messages must be a list of mappings with role and content.")
    for message in messages:
        require_choice(f"{place}: messages", str(message["role"]), ROLES, what="role")
    return [{"role": str(message["role"]), "content": message["content"]} for message in messages]


def _references(value: Any, place: str, config: PromptsConfig) -> tuple[str, ...]:
    if value is None:
        return ()
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(v, str | int | float) and str(v).strip() for v in values):
        raise ConfigError(f"{place}: {config.reference_key!r} must be a text or a list of texts.")
    return tuple(str(v) for v in values)
