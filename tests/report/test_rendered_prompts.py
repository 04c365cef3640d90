"""The report's prompts as the models receive them, with the spans of the transforms."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from resumed_sweeps import Configure, scaled, sweep
from sweep.points.point import Point
from sweep.report.matrix import rendered_prompts


@pytest.fixture
def configure(configure: Configure) -> Configure:
    return partial(configure, engine={"name": "scripted"})


def forms_of(folder: Path) -> dict[str, list[Any]]:
    """The rendered forms of each prompt in a sweep's report, by prompt id."""
    page = (folder / "report" / "report.html").read_text("utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert found
    return {row["id"]: row["rendered"] for row in json.loads(found[1])["rows"]}


def marked(text: str, borders: list[int]) -> list[str]:
    """Return the texts that the page marks. It slices the prompt as UTF-16."""
    units = text.encode("utf-16-le")
    pairs = zip(borders[::2], borders[1::2], strict=True)
    return [units[2 * start : 2 * stop].decode("utf-16-le").strip() for start, stop in pairs]


def test_points_with_the_same_span_are_one_form(configure: Configure) -> None:
    prompts = {"chat": True, "system": "Be brief 🙂.", "items": ["Why is it so?", "It is late, is it?"]}
    points = scaled(configure, 1.5, 2.0, 2.5, 3.0, prompts=prompts)
    word = configure(transform={"name": "scale", "factor": 4.0, "span": {"regex": "is|it"}}, prompts=prompts)
    forms = forms_of(sweep([*points, Point(word, (("transform.factor", 4.0),))]).folder)
    assert list(forms) == ["p0000", "p0001"]
    [(text, [(names, whole), (other, words)])] = forms["p0000"]
    assert "Be brief 🙂." in text and "Why is it so?" in text and text != "Why is it so?"  # with its template
    assert names == "factor=1.5, factor=2, factor=2.5 and 1 more" and marked(text, whole) == [text.strip()]
    assert other == "factor=4" and marked(text, words) == ["is", "it"]
    [(text, [_, (_, words)])] = forms["p0001"]
    assert marked(text, words) == ["is", "is", "it"]


def test_a_control_without_points_has_a_form_of_its_own() -> None:
    points = pd.DataFrame({"point": [0, 1], "name": ["control", "x"], "role": ["control", "control"]})
    points["control"] = [0, 1]
    frame = pd.DataFrame({"row": ["a", "a"], "point": [0, 1], "sample": [0, 0], "span": [None, None]})
    frame["rendered_prompt"] = ["<s>Hi", "Hi"]
    assert rendered_prompts(points, frame) == {"a": [("<s>Hi", [("control", [])]), ("Hi", [("x", [])])]}
    assert rendered_prompts(points, frame.drop(columns="span")) == {}
