"""The report's prompts as the models receive them, with the spans of the transforms."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from resumed_sweeps import Configure, scaled, sweep
from sweep.points.point import Point
from sweep.report.matrix import rendered_prompts


@pytest.fixture
def configure(configure: Configure) -> Configure:
    return partial(configure, engine={"name": "scripted"})


def forms_of(folder: Path) -> dict[str, list[tuple[str, list[str]]]]:
    """The forms of each prompt in a sweep's report, by prompt id."""
    page = (folder / "report" / "report.html").read_text("utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert found
    return {row["id"]: row["rendered"] for row in json.loads(found[1])["rows"]}


def test_points_with_the_same_span_are_one_form(configure: Configure) -> None:
    prompts = {"chat": True, "system": "Be brief.", "items": ["Why is it so?", "It is late, is it?"]}
    points = scaled(configure, 1.5, 2.0, 2.5, 3.0, prompts=prompts)
    word = configure(transform={"name": "scale", "factor": 4.0, "span": {"regex": "is|it"}}, prompts=prompts)
    forms = forms_of(sweep([*points, Point(word, (("transform.factor", 4.0),))]).folder)
    assert list(forms) == ["p0000", "p0001"]
    (names, pieces), (other, marked) = forms["p0000"]
    text = "".join(pieces)
    assert names == "factor=1.5, factor=2, factor=2.5 and 1 more" and pieces == ["", text, ""]
    assert "Be brief." in text and "Why is it so?" in text and text != "Why is it so?"  # with its template
    assert "".join(marked) == text and other == "factor=4" and [piece.strip() for piece in marked[1::2]] == ["is", "it"]
    assert [piece.strip() for piece in forms["p0001"][1][1][1::2]] == ["is", "is", "it"]


def test_a_control_without_points_has_a_form_of_its_own() -> None:
    points = pd.DataFrame({"point": [0, 1], "name": ["control", "x"], "role": ["control", "control"]})
    points["control"] = [0, 1]
    frame = pd.DataFrame({"row": ["a", "a"], "point": [0, 1], "sample": [0, 0], "span": [None, None]})
    frame["rendered_prompt"] = ["<s>Hi", "Hi"]
    assert rendered_prompts(points, frame) == {"a": [("control", ["<s>Hi"]), ("x", ["Hi"])]}
    assert rendered_prompts(points, frame.drop(columns="span")) == {}
