"""The comparison of an answer with the control's, on cases that one can read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep.report.text_diff import pieces, spans


@pytest.mark.parametrize(
    ("answer", "control", "expected", "distance"),
    [
        ("It is Paris.", "It is Paris.", ["=It is Paris."], 0),
        ("", "", [], 0),
        ("It is Rome.", "It is Paris.", ["=It is", "+ Rome", "~."], 1 / 4),
        ("No.", "It is Paris.", ["+No", "~."], 3 / 4),
        ("It is", "It is Paris.", ["=It is", "-"], 2 / 4),
        ("It is Paris, France.", "It is Paris.", ["=It is Paris", "+, France", "~."], 2 / 6),
        ("a c d", "a b c d", ["=a", "-", "~ c d"], 1 / 4),
        ("", "Paris", ["-"], 1),
        ("Paris", "", ["+Paris"], 1),
        ("東京です", "東京だ", ["=東京", "+です"], 2 / 4),  # no spaces: sign by sign
        ("Việt nam", "Việt Nam", ["=Việt", "+ nam"], 1 / 2),
        ("blue", "blue sky", ["=blue", "-"], 1 / 2),  # the last word is the same, although no space follows it
    ],
)
def test_spans(answer: str, control: str, expected: list[str], distance: float) -> None:
    assert spans(answer, control) == (expected, pytest.approx(distance))


@given(st.text(), st.text())
def test_spans_are_the_answer_and_mark_the_first_divergence(answer: str, control: str) -> None:
    found, distance = spans(answer, control)
    assert "".join(pieces(answer)) == answer
    assert "".join(span[1:] for span in found) == answer
    assert control.startswith("".join(span[1:] for span in found[:1] if span[0] == "="))
    assert all(span[0] != "=" for span in found[1:])
    assert (distance == 0) == (answer == control) and 0 <= distance <= 1
