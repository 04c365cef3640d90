"""Formats of entries, by name. Importing this package registers the built-in ones, in the order they are tried."""

from sweep.inputs.formats import logs, chat, instruct  # noqa: I001  # the order matters
from sweep.inputs.formats.base import FORMATS, Format, PromptEntry, register_format
from sweep.inputs.formats.documents import DOCUMENTS, Document

__all__ = ["DOCUMENTS", "FORMATS", "Document", "Format", "PromptEntry", "chat", "instruct", "logs", "register_format"]
