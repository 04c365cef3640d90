"""Escaping of untrusted texts (of models, prompts and servers) for Markdown and single lines."""

from __future__ import annotations

import re

from sweep.console.streams import visible
from sweep.util.redaction import redact


def markdown(text: str) -> str:
    """Return a text escaped for Markdown, on one line, without secrets."""
    text = one_line(redact(text)).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~!])", r"\\\1", text)


def code(text: str) -> str:
    """Return a text as a Markdown code span, on one line, without secrets."""
    text = one_line(redact(text))
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def one_line(text: str) -> str:
    r"""Return a text on one line: newlines as `\n`, tabs as `\t`, control characters escaped as by `visible`."""
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")
