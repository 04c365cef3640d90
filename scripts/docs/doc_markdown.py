"""Markdown tables, and the descriptions that docstrings give of attributes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator


def attributes(described: type) -> dict[str, str]:
    """Return what the sections `Attributes:` and `Args:` of a class's docstring say, by name, in YAML's words."""
    found: dict[str, str] = {}
    text = inspect.cleandoc(described.__doc__ or "")
    for section in re.findall(r"^(?:Attributes|Args):\n((?:[ ]{4}.*\n?|\n)*)", text, re.MULTILINE):
        for names, meaning in re.findall(r"^ {4}([\w, ]+): ((?:.*\n?)(?: {8,}.*\n?)*)", section, re.MULTILINE):
            for name in names.split(", "):
                found[name] = _yaml_words(" ".join(meaning.split()).rstrip("."))
    return found


def _yaml_words(text: str) -> str:
    for python, yaml in (("None", "null"), ("True", "true"), ("False", "false")):
        text = re.sub(rf"\b{python}\b", yaml, text)
    return text


def marked(rows: Iterable[tuple[str, str, str]]) -> Iterator[tuple[str, str, str]]:
    """Yield the rows with the first two cells as code."""
    for key, default, meaning in rows:
        yield f"`{key}`", f"`{default}`", meaning


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Return the lines of a table."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in [list(head), ["---"] * len(head), *cells]]
