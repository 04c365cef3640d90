"""`prompts.format`: names of file formats, of layouts of documents, and of formats of entries."""

from __future__ import annotations

from sweep.errors import ConfigError
from sweep.inputs.config import PromptsConfig
from sweep.inputs.formats import DOCUMENTS, FORMATS, Format
from sweep.inputs.readers import BUILT_IN, READERS
from sweep.util.validators import did_you_mean, require

SHEETS = (".xlsx", ".xlsm")  # suffixes whose reader uses prompts.split
TREES = (".json", ".yaml", ".yml")  # suffixes whose reader knows layouts of documents


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


def check_used(config: PromptsConfig, suffix: str | None, where: str) -> None:
    """Refuse `prompts.split`, and names in `prompts.format`, that the reader of the prompts does not use.

    Args:
        config: the configuration.
        suffix: the suffix of the prompts' file; None for entries that are not read from a file.
        where: the file, data set or key that holds the prompts.

    Raises:
        ConfigError: a key has no effect.
    """
    if suffix is not None and READERS.get(suffix) is not BUILT_IN.get(suffix):
        return  # the reader of a plugin may use both
    if suffix is not None and suffix not in SHEETS:
        require(config.split is None, "prompts.split", f"must be null: {where} has no splits or sheets", config.split)
    for name in check_format(config):
        is_layout = name in DOCUMENTS
        if suffix not in TREES if is_layout else name not in FORMATS and suffix is None:
            expected = "a file in JSON or YAML" if is_layout else "a file"
            raise ConfigError(f"prompts.format: {name} is a format of {expected}, which {where} is not. Remove it.")
