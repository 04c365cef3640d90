"""Texts with spans: in colour on a terminal, between brackets elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from sweep.console.terminal import Terminal

PIECES = (("a", ()), ("b\n\x1b", (0,)), ("c", (0, 1)))


@pytest.mark.parametrize(
    ("terminal", "shown"),
    [(True, "a\x1b[30;42mb\x1b[0m\n\x1b[30;42m\\x1b\x1b[0m\x1b[30;46mc\x1b[0m\n"), (False, "a⟦1:b\n\\x1b⟧⟦1+2:c⟧\n")],
)
def test_spans_are_marked(monkeypatch: pytest.MonkeyPatch, terminal: bool, shown: str) -> None:
    file = io.StringIO()
    output = Terminal()
    monkeypatch.setattr(
        output, "_out", Console(file=file, force_terminal=terminal, color_system="standard" if terminal else None)
    )
    output.marked("title", PIECES)
    assert file.getvalue() == f"title\n{shown}"


def test_a_single_span_has_no_number(capfd: pytest.CaptureFixture[str]) -> None:
    Terminal().marked("title", (("a", ()), ("b", (0,))))
    assert capfd.readouterr().out == "title\na⟦b⟧\n"
