"""Table of the registered transforms, generated from their docstrings."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any

from sweep.transforms.base import TRANSFORMS, Transform

ARXIV = re.compile(r"(?:(?P<who>[^(),;]*\d{4}), )?arXiv:(?P<number>\d{4}\.\d{4,5})")


def markdown(transforms: Iterable[type[Transform]] | None = None) -> str:
    """Return a Markdown table with name, formula, parameters with defaults, and sources.

    Args:
        transforms: the rows of the table; None for all registered transforms.
    """
    rows = [
        f"| `{transform.name}` | {_cell(formula(transform))} | {parameters(transform)} | {sources(transform)} |"
        for transform in (TRANSFORMS.values() if transforms is None else transforms)
    ]
    return "\n".join(["| `transform=` | formula | parameters | source |", "|---|---|---|---|", *rows])


def formula(transform: type[Transform]) -> str:
    """Return the first paragraph of the docstring on one line."""
    return " ".join(inspect.cleandoc(transform.__doc__ or "").split("\n\n")[0].split())


def parameters(transform: type[Transform]) -> str:
    """Return the parameters with their defaults, the dose in bold."""
    cells = []
    for key, default in _defaults(fields(transform)):
        value = f"`{key}={_show(default)}`"
        cells.append(f"**{value}**" if key == transform.dose else value)
    return " ".join(cells)


def sources(transform: type[Transform]) -> str:
    """Return links to the papers cited in the docstring."""
    text = " ".join((transform.__doc__ or "").split())
    papers = {m["number"]: (m["who"] or f"arXiv:{m['number']}").strip() for m in ARXIV.finditer(text)}
    return ", ".join(f"[{who}](https://arxiv.org/abs/{number})" for number, who in papers.items())


def _defaults(fields_of: Iterable[Field[Any]], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for field in fields_of:
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        if is_dataclass(default) and not isinstance(default, type):
            yield from _defaults(fields(default), f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, default


def _show(value: Any) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
