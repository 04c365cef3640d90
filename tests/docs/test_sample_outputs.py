"""Printed output in README and docs equals that of the commands, as far as a fast test can tell."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from doc_pages import README, ROOT, Command, commands

QUICKSTART = ROOT / "docs" / "quickstart.md"


def text_after(command: Command) -> str:
    """Return the first block of plain text that follows a command's block."""
    after = command.block.page.read_text(encoding="utf-8").split(command.block.text, 1)[1]
    match = re.search(r"^```text\n(.*?)^```$", after, re.DOTALL | re.MULTILINE)
    assert match is not None
    return match[1]


def table(page: Path) -> dict[str, dict[str, str]]:
    """Return the printed table of a page: cells by point and column."""
    lines = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith(("┃", "│"))]
    head, *rows = [[cell.strip() for cell in re.split("[┃│]", line)[1:-1]] for line in lines]
    return {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in rows}


def test_quickstart_shows_what_its_dry_run_prints(
    command_line: Callable[..., tuple[int, str, str]], no_engine: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    [command] = [c for c in commands() if c.block.page == QUICKSTART and "sweep.dry_run=true" in c.words]
    code, out, err = command_line(*(command.sweep or []))
    assert code == 0, err
    printed, shown = err + out, text_after(command)
    # Fingerprints change with the format of their contents, which is not what the page is about.
    assert _without_fingerprints(printed) == _without_fingerprints(shown)


def _without_fingerprints(text: str) -> list[str]:
    return re.sub(r"fingerprint \w+", "fingerprint …", text).splitlines()


def test_readme_and_quickstart_show_the_same_results() -> None:
    first = [next(c for c in commands() if c.block.page == page).text for page in (README, QUICKSTART)]
    assert first[0] == first[1]
    narrow, wide = table(README), table(QUICKSTART)
    assert narrow.keys() == wide.keys() and all(cells.items() <= wide[name].items() for name, cells in narrow.items())
    omitted = re.search(r"Omitted columns: ([\w\s,]+)\.", README.read_text(encoding="utf-8"))
    assert omitted is not None
    columns = list(next(iter(narrow.values()))) + re.split(r",\s+", omitted[1])
    assert columns == list(next(iter(wide.values())))
    assert any("*" in cell for cell in wide["factor=2"].values())  # so that the mark can be explained
