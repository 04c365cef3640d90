"""Names of series, and which points a series has."""

from __future__ import annotations

from itertools import product

import pytest

from sweep.points.point import Value
from sweep.report.series import TreatedPoint, find_series, names


def test_series_with_equal_names_are_numbered() -> None:
    entries = [
        TreatedPoint(i, {"t.a": a, "t.b": b}, 0) for i, (a, b) in enumerate(product((1.0, 2.0), (0.3, 0.1 + 0.2)))
    ]
    named = [series.name for series in find_series(entries) if series.axis == "t.a"]
    assert named == ["b=0.3 control #0 point #0", "b=0.3 control #0 point #1"]


def test_series_along_each_of_two_numbers() -> None:
    entries = [
        TreatedPoint(i, {"t.a": a, "t.b": b}, 0) for i, (a, b) in enumerate([(1.0, 5.0), (2.0, 5.0), (1.0, 6.5)])
    ]
    along = [(series.axis, series.name, series.points) for series in find_series(entries)]
    assert along == [("t.a", "b=5", (0, 1)), ("t.a", "b=6.5", (2,)), ("t.b", "a=1", (0, 2)), ("t.b", "a=2", (1,))]


def test_seeds_of_sampling_and_of_a_transform_are_pooled() -> None:
    entries = [
        TreatedPoint(i, {"transform.x": x, "sampling.seed": seed, "transform.seed": noise}, 0)
        for i, (x, seed, noise) in enumerate((x, s, n) for s in (0.0, 1.0) for n in (0.0, 1.0) for x in (1.0, 2.0))
    ]
    found = [(series.name, series.pooled, series.control, series.points) for series in find_series(entries)]
    assert found == [("", "sampling.seed=0,1, transform.seed=0,1", 0, (0, 2, 4, 6, 1, 3, 5, 7))]


def test_seeds_of_an_engine_are_not_pooled() -> None:
    entries = [TreatedPoint(i, {"transform.x": float(i % 2), "engine.seed": float(i // 2)}, 0) for i in range(4)]
    assert [(series.name, series.pooled) for series in find_series(entries)] == [("seed=0", ""), ("seed=1", "")]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"transform.span": "all"}], [""]),
        ([{"a.x": "u", "b": 1.0}, {"a.x": "v", "b": 1.0}], ["x=u", "x=v"]),
        ([{"a.x": "u", "b.x": 1.0}, {"a.x": "v", "b.x": 2.0}], ["a.x=u, b.x=1", "a.x=v, b.x=2"]),
        ([{"prompts.path": "/data/a.jsonl"}, {"prompts.path": "/data/b.jsonl"}], ["path=a.jsonl", "path=b.jsonl"]),
        ([{"model.id": "org/a"}, {"model.id": "b"}], ["id=org/a", "id=b"]),
        ([{"x": 0.1 + 0.2}, {"x": 0.3}], ["x=0.3", "x=0.3"]),  # nothing tells them apart in twelve digits
        ([{"transform.control": "null"}, {}], ["transform.control=null", ""]),
        ([{"s": "a" * 60}, {"s": "b" * 60}], [f"s={'a' * 19}…{'a' * 20}", f"s={'b' * 19}…{'b' * 20}"]),
        ([{"s": "a" * 30 + "1" + "b" * 30}, {"s": "a" * 30 + "2" + "b" * 30}], None),
    ],
)
def test_names_are_short_and_unambiguous(rows: list[dict[str, Value]], expected: list[str] | None) -> None:
    if expected is None:  # where cutting would make them equal, they are whole
        expected = [f"s={row['s']}" for row in rows]
    assert names(rows) == expected
