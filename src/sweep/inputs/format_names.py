"""`prompts.format`: names of file formats, of layouts of documents, and of formats of entries."""

from __future__ import annotations

from sweep.errors import ConfigError
from sweep.inputs.config import PromptsConfig
from sweep.inputs.formats import DOCUMENTS, FORMATS, Format
from sweep.inputs.readers import READERS
from sweep.util.validators import did_you_mean


def file_suffix(config: PromptsConfig) -> str | None:
    """Return the suffix whose reader `prompts.format` names; None if it names none.

    Raises:
        ConfigError: see `check_format`.
    """
    return next((f".{name}" for name in check_format(config) if f".{name}" in READERS), None)


def document_layout(config: PromptsConfig) -> str | None:
    """Return the layout of documents that `prompts.format` names; None if it names none.

    Raises:
        ConfigError: see `check_format`.
    """
    return next((name for name in check_format(config) if name in DOCUMENTS), None)


def entry_format(config: PromptsConfig) -> Format | None:
    """Return the format of entries that `prompts.format` names; None to recognise it.

    Raises:
        ConfigError: see `check_format`.
    """
    return next((FORMATS[name] for name in check_format(config) if name in FORMATS), None)


def check_format(config: PromptsConfig) -> list[str]:
    """Return the names in `prompts.format`, such as csv and alpaca in `csv+alpaca`.

    Raises:
        ConfigError: a name is unknown, or two are of the same kind.
    """
    if config.format is None:
        return []
    names = config.format.split("+")
    kinds = []
    for name in names:
        kind = "entries" if name in FORMATS else "document" if name in DOCUMENTS else "file"
        if kind == "file" and f".{name}" not in READERS:
            available = [*FORMATS, *DOCUMENTS, *(suffix[1:] for suffix in READERS)]
            near = did_you_mean(name, available)
            raise ConfigError(f"prompts.format: {name!r} is not a format. {near}")
        kinds.append(kind)
    if len(set(kinds)) < len(kinds):
        raise ConfigError(f"prompts.format: {config.format!r} names two formats of one kind. Keep one of them.")
    return names
