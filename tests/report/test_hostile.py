"""Texts of models, prompts, servers and the command line that try to be more than text; all of them are harmless here."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic import EVIL, make
from test_html import Page, payload

import sweep
from sweep.config.schema import SweepConfig
from sweep.console.text import code, markdown, one_line, visible
from sweep.planning.results import PointResult
from sweep.points.point import Point
from sweep.report import files, html, plots
from sweep.report.comparison import compare
from sweep.report.dose_response import responses
from sweep.report.figures import figure
from sweep.report.results import SweepResults, tables
from sweep.report.run_summary import describe
from sweep.scoring.measures import summarise_scores

ESCAPE = "\x1b]0;title\x07\x9b31m\u202e"
WRITTEN = r"\x1b]0;title\x07\x9b31m\u202e"


def two_series(first: str, second: str) -> SweepResults:
    """A sweep over factors and a key of these two texts."""
    results = make(factors=4)
    kinds = [None, first, first, second, second]
    points = results.points.assign(**{"axis/transform.kind": kinds})
    generations = results.generations.assign(
        **{"axis/transform.kind": [kinds[point] for point in results.generations["point"]]}
    )
    return replace(results, points=points, generations=generations, responses=results.responses[:0])


@pytest.mark.parametrize("text", [EVIL, "<!--", "]]>", '" onclick="x', "'><b>", "</title>", "&lt;b&gt;", "`${1}`"])
def test_names_of_series_points_and_measures_are_escaped(text: str) -> None:
    results = two_series(text, "plain")
    points = results.points.rename(columns={"quality/contains": f"quality/{text}"}).assign(name=text, error=None)
    rows = results.generations.rename(columns={"quality/contains": f"quality/{text}"})
    page_text = html.render(replace(results, points=points, generations=rows, name=text, command=text, notes=[text]))
    page = Page(page_text)
    assert len(page.scripts) == 3
    assert {tag for tag, _ in page.tags} <= set(
        [
            "html",
            "head",
            "meta",
            "title",
            "style",
            "body",
            "header",
            "h1",
            "h2",
            "h3",
            "p",
            "span",
            "small",
            "b",
            "pre",
            "nav",
            "a",
            "section",
            "div",
            "table",
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
            "label",
            "input",
            "article",
            "details",
            "summary",
            "select",
            "option",
            "button",
            "ul",
            "i",
            "output",
            "noscript",
            "script",
            "code",
        ]
    )
    attributes = {name for _, found in page.tags for name in found}
    assert not {name for name in attributes if name.startswith("on")} and "src" not in attributes
    assert page.text.count(text) >= 4
    data = payload(page_text)
    assert data["columns"][0]["name"] == text
    names = {trace["name"] for found in data["figures"] for trace in found["data"]}
    assert "kind=plain" in names and len(names) == 2 and not [name for name in names if "<" in name]


def test_generations_cannot_end_the_pages_json() -> None:
    results = make(prompts=2, factors=1)
    hostile = ["</script>", "<!--<script>", "\u2028\u2029", "\x00\x1b", "\ud83d", "{{ 1 }}", "NaN", "__proto__"]
    rows = results.generations.assign(generation=(hostile * 4)[: len(results.generations)], prompt_id="__proto__")
    text = html.render(replace(results, generations=rows))
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert len(found) == 1 and "<" not in found[0]
    [row] = json.loads(found[0])["rows"][:1]
    shown = ["".join(span[1:] for span in cell[0][0]) for cell in row["cells"]]
    assert (row["id"], shown) == ("__proto__", ["</script>", "<!--<script>"])


def test_control_characters_are_visible_in_page_and_tables(tmp_path: Path) -> None:
    results = two_series(ESCAPE, "plain")
    points = results.points.assign(name=f"n{ESCAPE}", error=f"failed: {ESCAPE}")
    text = html.render(replace(results, points=points, name=ESCAPE, command=ESCAPE))
    before, _, _ = text.partition('<script type="application/json"')
    assert before.count(WRITTEN) >= 10 and not set(before) & set(ESCAPE[:1] + "\x07\x9b\u202e")
    results.points["name"] = [f"n{ESCAPE}"] * 5
    files.write(results, tmp_path)
    csv = (tmp_path / "points.csv").read_text("utf-8")
    assert csv.count(f"n{WRITTEN}") == 5 and csv.count(WRITTEN) == 7
    assert not set(csv) & {"\x1b", "\x07", "\x9b", "\u202e"}


def test_spreadsheet_formulas_are_escaped_and_loaded_unchanged(tmp_path: Path) -> None:
    """As documented: a CSV is data; import such columns as text."""
    results = make(prompts=1, factors=4)
    cells = ["=1+1", "+1", "-1", "@SUM(A1)", 'a,"b"\nc']
    results.points["axis/transform.kind"] = cells
    files.write(results, tmp_path)
    assert sweep.load(tmp_path, points=True)["axis/transform.kind"].tolist() == cells


def test_bytes_that_are_not_text_are_written(tmp_path: Path, configure: Callable[..., SweepConfig]) -> None:
    values = {"quality/exact_match": np.ones(3)}
    point = Point(configure(), (("transform.kind", "caf\udce9"),))
    comparison = compare([PointResult(0, point, summarise_scores(values, 0.95), values, "half \ud83d")], 0.95)
    rows = {"point": [0], "prompt_id": "q", "prompt": "?", "sample": 0, "generation": "g", "token_ids": [[1]]}
    generations = pd.DataFrame(rows | {"reference": None, "finish_reason": "stop"})
    results = tables(comparison, generations, sweep_id="", name="\ud83d", command="\udce9", confidence=0.95)
    files.write(results, tmp_path)
    assert sweep.load(tmp_path, points=True)[["name", "error"]].to_numpy().tolist() == [["kind=caf?", "half ?"]]
    assert sweep.load(tmp_path)["axis/transform.kind"].tolist() == ["caf?"]


@pytest.mark.parametrize("text", ["_hidden", "$x^2$", r"$\frac{$", ESCAPE, "a\nb", "x" * 500])
def test_plots_draw_any_name(tmp_path: Path, text: str) -> None:
    results = two_series(text, "plain")
    [path, _] = plots.write(results, tmp_path)
    assert path.read_bytes()[:4] == b"\x89PNG"
    [drawn] = [found for found in responses(results) if found.measure == "quality/exact_match"]
    legend = [entry.get_text() for entry in plots.draw([drawn], 0.95).legends[0].get_texts()]
    first, second = (trace["name"] for trace in figure(drawn)["data"])
    assert second == "kind=plain" and len(first) <= 60
    assert len([entry for entry in legend if entry.strip().startswith("kind=")]) == 2


def test_description_escapes_markdown(tmp_path: Path, configure: Callable[..., SweepConfig]) -> None:
    evil = "a`b|c*d_e [x](http://y) <img src=x>\n# h & i"
    values = {"quality/exact_match": np.ones(3)}
    points = [Point(configure(), is_control=True)]
    points += [
        Point(configure(transform={"name": "scale", "factor": f}), (("transform.factor", f), ("transform.kind", evil)))
        for f in (2.0, 3.0)
    ]
    results = [PointResult(i, p, summarise_scores(values, 0.95), values) for i, p in enumerate(points)]
    text = describe(compare(results, 0.95), f"sweep {evil}", {})
    shown = r"a\`b\|c\*d\_e \[x\](http://y) &lt;img src=x&gt;\\n# h &amp; i"
    assert text.count(shown) == 7  # what was swept, best and worst, two rows, both without a difference
    assert text.splitlines()[0] == r"``  sweep a`b|c*d_e [x](http://y) <img src=x>\n# h & i ``".replace("  ", " ")
    assert evil not in text and "<img" not in text.replace(text.splitlines()[0], "")
    assert [line.count("|") - line.count(r"\|") for line in text.splitlines() if line.startswith("| ")] == [3, 3, 3, 3]


def test_texts_are_escaped_for_terminal_and_markdown() -> None:
    assert visible("a\tb\nc\r\x00é東\U0001f600") == "a\tb\nc" + r"\x0d\x00" + "é東\U0001f600"
    assert one_line("a\tb\nc") == r"a\tb\nc"
    assert (code("x"), code("``"), markdown("a_b")) == ("`x`", "``` `` ```", r"a\_b")
