"""Columns of tables that may matter for prompts. Others are not read, because they may hold images or embeddings."""

from __future__ import annotations

from sweep.inputs.config import PromptsConfig
from sweep.inputs.entry_keys import KEYS, configured_keys, is_similar
from sweep.inputs.entry_map import entry_map
from sweep.inputs.formats import FORMATS


def is_relevant(column: str, config: PromptsConfig) -> bool:
    """Return whether a column has a meaning in an entry, or may be a misspelling of such a key."""
    names = [*configured_keys(config).values(), *KEYS]
    roots = {name.split(".")[0] for name in names}
    formats = {key for entry_format in FORMATS.values() for key in entry_format.keys}
    mapped = entry_map(config)
    if mapped is not None and any(column in columns for columns in mapped.columns.values()):
        return True
    return column in names or column in roots or column in formats or is_similar(column, tuple(names))
