"""Readers of prompt files, by suffix. Importing this package registers the built-in ones."""

from sweep.inputs.readers import delimited, excel, tables, text
from sweep.inputs.readers.base import READERS, Entries, Reader, register_reader

BUILT_IN = dict(READERS)  # those of this package, not of plugins

__all__ = ["BUILT_IN", "READERS", "Entries", "Reader", "delimited", "excel", "register_reader", "tables", "text"]
