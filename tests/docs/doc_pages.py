"""Documentation as data: its pages, and the commands and Python blocks in them."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
SHELL = ("sh", "console")


def pages() -> list[Path]:
    """Return README and all pages under docs."""
    return [README, *sorted((ROOT / "docs").rglob("*.md"))]


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page, line: where its text begins.
        language: what stands after the fence.
    """

    page: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        """The page and the line, for messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command line of a block, without comments and with its continuation lines joined."""

    block: Block
    text: str

    @property
    def words(self) -> list[str]:
        """The words, as a shell splits them, without variables before them."""
        words = shlex.split(self.text)
        while words and re.match(r"[A-Z_][A-Z0-9_]*=", words[0]):
            words = words[1:]
        return words

    @property
    def sweep(self) -> list[str] | None:
        """The arguments of a sweep; None: it is another command."""
        for program in (["scripts/sweep"], ["python", "-m", "sweep"], [".venv/bin/python", "-m", "sweep"]):
            if self.words[: len(program)] == program:
                return self.words[len(program) :]
        return None


def blocks(*languages: str) -> Iterator[Block]:
    """Yield the fenced blocks of all pages in some languages."""
    for page in pages():
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
            if match[1] in languages:
                yield Block(page, text[: match.start(2)].count("\n") + 1, match[1], match[2])


def commands() -> Iterator[Command]:
    """Yield the commands of all shell blocks; of `console` blocks, the lines after `$`."""
    for block in blocks(*SHELL):
        text = block.text.replace("\\\n", " ")
        for line in text.splitlines():
            if block.language == "console":
                if not line.startswith("$ "):
                    continue
                line = line[2:]
            line = _without_comment(line).strip()
            for part in re.split(r" && |; ", line):
                if part.strip():
                    yield Command(block, " ".join(part.split()))


def _without_comment(line: str) -> str:
    """Return a line up to a `#` that begins a word and stands in no quotes."""
    quote = ""
    for place, character in enumerate(line):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character == "#" and (not place or line[place - 1].isspace()):
            return line[:place]
    return line


def docs_script(name: str) -> ModuleType:
    """Import a module of scripts/docs, such as the script that writes the generated pages."""
    folder = str(ROOT / "scripts" / "docs")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return import_module(name)
