"""The report's HTML, without a browser."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pandas as pd
import pytest
from synthetic import EVIL, make

from sweep.report import html, matrix
from sweep.report.matrix import Matrix, by_strength
from sweep.report.results import SweepResults


class Page(HTMLParser):
    """The elements of a page, and the texts of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and self.cdata_elem == "script":
            self.scripts[-1] += data
        else:
            self.text += data


def payload(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_page_loads_no_external_resources() -> None:
    page = Page(html.render(make()))
    assert len(page.scripts) == 3
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy and policy.startswith("default-src 'none'; script-src 'sha256-")
    for tag, attributes in page.tags:
        assert tag not in {"link", "img", "iframe", "object", "base"}
        assert "src" not in attributes and not any(name.startswith("on") for name in attributes)


def test_html_in_texts_is_escaped() -> None:
    text = html.render(make(evil=True))
    page = Page(text)
    assert len(page.scripts) == 3 and "img" not in [tag for tag, _ in page.tags]
    assert EVIL not in text
    assert page.text.count(EVIL) >= 2  # the sweep's and the point's name
    row = payload(text)["rows"][1]
    assert row["prompt"].endswith(EVIL) and row["reference"] == EVIL and row["id"].endswith(EVIL)
    assert row["cells"][0][0][0][0].endswith(EVIL)


def test_lone_surrogate_can_be_written() -> None:
    assert html.as_script(["half \ud83d"]).encode() == b'["half ?"]'


def test_columns_are_ordered_by_dose() -> None:
    def order(*rows: tuple[int, Any, Any]) -> list[int]:
        records = [
            {"point": i, "role": "point" if c != i else "control", "control": c, "axis/a": a, "axis/b": b}
            for i, (c, a, b) in enumerate(rows)
        ]
        return by_strength(pd.DataFrame(records))

    nan = math.nan
    assert order((0, nan, nan), (0, 10.0, 1.0), (0, 2.0, 2.0), (0, 2.0, 1.0)) == [0, 3, 2, 1]
    assert order((0, nan, nan), (0, "z", 2.0), (0, "y", 1.0), (0, "z", 1.0)) == [0, 3, 1, 2]  # texts as they came
    assert order((0, nan, nan), (3, 1.0, nan), (0, 9.0, nan), (3, nan, nan)) == [0, 2, 3, 1]  # each after its control


def test_cells_mark_differences_from_their_control() -> None:
    frame = pd.DataFrame(
        [
            {"point": point, "prompt_id": "q", "prompt": "?", "sample": sample, "generation": text, "reference": None}
            for point, sample, text in [
                (0, 0, "a b"),
                (0, 1, "a c"),
                (1, 0, "a x"),
                (1, 1, "a c"),
                (2, 0, "z"),
                (3, 0, "z"),
            ]
        ]
    ).assign(finish_reason="stop", **{"quality/f1": [1, 0.123456, math.nan, 1, 1, math.inf]})
    points = pd.DataFrame(
        {
            "point": range(4),
            "name": "n",
            "role": ["control", "point"] * 2,
            "control": [0, 0, 2, 2],
            "axis/a": [math.nan, 1.0] * 2,
            "error": None,
        }
    )
    row = Matrix.of(SweepResults("", "", "", 0.95, points, frame), [0, 1, 2, 3]).rows[0]
    assert row["cells"][0] == [[["=a b"], None, "stop", [1]], [["=a c"], None, "stop", [0.1235]]]
    assert row["cells"][1] == [[["=a", "+ x"], 0.5, "stop", [None]], [["=a c"], 0, "stop", [1]]]
    assert row["cells"][3] == [[["=z"], 0, "stop", [None]], None]
    assert row["reference"] == ""


def test_many_columns_are_hidden_at_first_except_controls_and_the_strongest() -> None:
    results = make(prompts=2, factors=49)
    columns = Matrix.of(results, by_strength(results.points)).columns
    shown = [column["name"] for column in columns if column["shown"]]
    assert len(columns) == 50 and len(shown) == matrix.SHOWN_COLUMNS
    assert shown[0] == "control" and shown[-1] == columns[-1]["name"]


def test_large_sweep_shows_its_first_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "LARGEST", 24)
    text = html.render(make(prompts=12, factors=5))
    assert len(payload(text)["rows"]) == 4
    assert "Showing the first 4 of 12 prompts." in text
    monkeypatch.setattr(matrix, "LARGEST", 72)
    assert len(payload(html.render(make(prompts=12, factors=5)))["rows"]) == 12


def test_the_table_of_points_has_intervals_and_marks() -> None:
    text = Page(html.render(make())).text
    assert re.search(r"factor=2\s+0\.333▼ \[0\.0548, 0\.612\]\s*1 \[1, 1\]", text)
    assert re.search(r"control\s+1 \[1, 1\]\s*1 \[1, 1\]\s*0\.98 \[0\.98, 0\.98\]", text)


def test_failed_points_and_missing_generations_are_reported() -> None:
    results = make(prompts=3, factors=2)
    points = results.points.assign(error=[None, None, "EngineError: <b>"])
    generations = results.generations[results.generations["point"] != 2]
    text = html.render(replace(results, points=points, generations=generations))
    assert "EngineError: &lt;b&gt;" in text
    data = payload(text)
    assert data["columns"][2]["error"] == "EngineError: <b>"
    assert data["rows"][0]["cells"][2] == [None]


def test_failed_point_keeps_its_position_with_one_control() -> None:
    points = make(factors=3).points.assign(control=[math.nan, 0, math.nan, 0])
    assert by_strength(points) == [0, 1, 2, 3]


def test_prompts_are_shown_without_the_number_of_their_sample() -> None:
    results = make(prompts=2, factors=1, samples=2)
    numbers = (results.generations["sample"] + 1).astype(str)
    numbered = results.generations.assign(prompt=results.generations["prompt"] + " #" + numbers)
    order = by_strength(results.points)
    rows = Matrix.of(replace(results, generations=numbered), order).rows
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in Matrix.of(results, order).rows]


def test_bounds_beyond_all_doses_are_infinite_only_in_the_table() -> None:
    results = make()
    results.responses.loc[0, ["first_effective/ci_low", "breaking_point/ci_high"]] = [-math.inf, math.inf]
    results.points.loc[3, "quality/contains"] = math.inf
    text = html.render(results)
    assert "[-∞, 1.6]" in text and "[1.5, ∞]" in text
    figures = {figure["measure"]: figure for figure in payload(text)["figures"]}
    bands = [s for s in figures["quality/exact_match"]["layout"]["shapes"] if s["type"] == "rect"]
    assert [(band["x0"], band["x1"]) for band in bands] == [(1.2, pytest.approx(1.6)), (pytest.approx(1.5), 2.0)]
    assert figures["quality/contains"]["data"][0]["x"] == [1.2, 1.4, 1.8, 2.0]


def test_report_without_generations_is_written() -> None:
    results = make(prompts=1, factors=1)
    points = results.points[["point", "name", "role", "control", "axis/transform.factor"]].assign(
        error="EngineError: it died"
    )
    text = html.render(SweepResults("id", "", "sweep", 0.95, points, pd.DataFrame()))
    assert payload(text)["rows"] == [] and text.count("EngineError: it died") >= 2


def test_a_sweep_without_axes_or_answers() -> None:
    results = make(prompts=2, factors=1)
    alone = results.points[results.points["point"] == 0].drop(columns=["axis/transform.factor"])
    empty = SweepResults("id", "", "sweep", 0.95, alone, results.generations[:0])
    text = html.render(empty)
    assert payload(text)["rows"] == [] and '<section id="responses">' not in text


def test_size_of_a_large_report() -> None:
    text = html.render(make(prompts=200, factors=50))
    assert len(text.encode()) < 12e6


def test_inapplicable_measure_is_an_empty_cell() -> None:
    """As exact match of a prompt without references, beside others that have some."""
    results = make()
    results.generations.loc[
        results.generations.prompt_id == results.generations.prompt_id[0], "quality/exact_match"
    ] = math.nan
    assert "NaN" not in re.sub(r"<script>.*?</script>", "", html.render(results), flags=re.DOTALL)
