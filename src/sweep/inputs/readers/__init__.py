"""Readers of prompt files, by suffix. Importing this package registers the built-in ones."""

from sweep.inputs.readers import delimited, excel, tables, text
from sweep.inputs.readers.base import READERS, Entries, Reader, register_reader

__all__ = ["READERS", "Entries", "Reader", "delimited", "excel", "register_reader", "tables", "text"]
