"""Swept values as the whole sweep sees them: numbers and words of one key, and where a control stands."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sweep.config.overrides import Override
from sweep.config.schema import SweepConfig
from sweep.core.records import PointRecord
from sweep.planning.results import PointResult
from sweep.points.point import Point, make_points
from sweep.publishing.reporting import _metrics_of
from sweep.report import files, run_summary
from sweep.report.comparison import compare
from sweep.report.matrix import by_strength
from sweep.report.results import tables
from sweep.scoring.measures import summarise_scores
from sweep.storage.archive import Archive
from sweep.tracking.point_run import metrics_of

Configure = Callable[..., SweepConfig]
MEASURE = "quality/exact_match"


def result(index: int, point: Point, prompts: int = 3) -> PointResult:
    values = {MEASURE: np.ones(prompts)}
    return PointResult(index, point, summarise_scores(values, 0.95), values)


def record(index: int, axes: tuple[tuple[str, Any], ...]) -> PointRecord:
    return PointRecord(index, "n", "point", "f", 0.0, 1.0, {}, axes, {}, {}, {}, "")


def row(**cells: Any) -> dict[str, Any]:
    return {"prompt": "p", "generation": "g", "token_ids": [1], **cells}


def test_points_whose_columns_differ_in_type_are_read_together(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    archive.add(
        "a", record(0, ()), [row(**{"axis/limit": "null", "axis/x": 1.0, "quality/mine": True, "token_ids": []})]
    )
    archive.add(
        "b", record(1, ()), [row(**{"axis/limit": 100.0, "axis/x": 2.5, "quality/mine": 0.25, "reference": None})]
    )
    archive.add("c", record(2, ()), [row(**{"axis/limit": 0.1, "quality/mine": 2, "reference": "r"})])
    frame = archive.read(["a", "b", "c"])
    assert frame["axis/limit"].tolist() == ["null", "100", "0.1"]
    assert frame["axis/x"].tolist()[:2] == [1.0, 2.5] and math.isnan(frame["axis/x"][2])
    assert frame["quality/mine"].tolist() == [1.0, 0.25, 2.0]
    assert frame["reference"].isna().tolist() == [True, True, False]
    assert [list(ids) for ids in frame["token_ids"]] == [[], [1], [1]]


def test_lone_surrogate_is_archived_as_a_question_mark(tmp_path: Path) -> None:
    archive = Archive(tmp_path)
    archive.add("a", record(0, ()), [row(generation="half \ud83d")])
    assert archive.read(["a"])["generation"].tolist() == ["half ?"]
    assert archive.table("a").rows == [["p", "half ?"]]


def batches(configure: Configure) -> list[PointResult]:
    """`prompts.limit=null,2` in two batches: at one the limit is a word, at the other one a number."""
    results = []
    for limit, count in ((None, 3), (2, 2)):
        text = "null" if limit is None else str(limit)
        config = configure(transform={"name": "scale", "factor": 2.0}, prompts={"path": "x.jsonl", "limit": limit})
        [point] = make_points([([Override.read(f"prompts.limit={text}")], config)], ["prompts.limit"])
        control = Point(configure(prompts={"path": "x.jsonl", "limit": limit}), is_control=True)
        results += [result(len(results), control, count), result(len(results) + 1, point, count)]
    return results


def test_axis_with_any_word_holds_words_for_all_points(configure: Configure, tmp_path: Path) -> None:
    found = batches(configure)
    assert [r.point.axes for r in found[1::2]] == [(("prompts.limit", "null"),), (("prompts.limit", 2.0),)]
    comparison = compare(found, 0.95)
    assert [r.point.axes for r in comparison.results[1::2]] == [(("prompts.limit", "null"),), (("prompts.limit", "2"),)]
    generations = pd.DataFrame(
        {"point": range(4), "prompt_id": "q", "prompt": "?", "sample": 0, "generation": "g", "token_ids": [[]] * 4}
        | {"reference": None, "finish_reason": "stop", "axis/prompts.limit": [None, "null", None, "2"]}
    )
    results = tables(comparison, generations, sweep_id="id", name="", command="", confidence=0.95)
    files.write(results, tmp_path)
    assert pd.read_parquet(tmp_path / "generations.parquet")["axis/prompts.limit"].tolist() == [
        "null",
        "null",
        "2",
        "2",
    ]


def test_controls_of_several_batches_have_distinct_names(configure: Configure) -> None:
    comparison = compare(batches(configure), 0.95)
    assert [r.point.name for r in comparison.results] == [
        "control (limit=null)",
        "limit=null",
        "control (limit=2)",
        "limit=2",
    ]


@pytest.mark.parametrize(
    ("transform", "axes", "neutral"),
    [
        ({"name": "scale", "factor": 2.0}, {"transform.factor": 2.0}, {"transform.factor": 1.0}),
        ({"name": "noise", "sigma": 0.5}, {"transform.sigma": 0.5, "seed": 1.0}, {"transform.sigma": 0.0}),
        ({"name": "snr_noise", "snr_db": 10.0}, {"transform.snr_db": 10.0}, {"transform.snr_db": math.inf}),
        (
            [{"name": "scale", "factor": 2.0}, {"name": "noise", "sigma": 0.5}],
            {"transform.0.factor": 2.0, "transform.1.sigma": 0.5},
            {"transform.0.factor": 1.0, "transform.1.sigma": 0.0},
        ),
        ({"name": "normalize", "norm": 2.0}, {"transform.norm": 2.0}, {}),  # it has no dose
    ],
)
def test_control_has_the_neutral_dose(
    configure: Configure, transform: Any, axes: dict[str, float], neutral: dict[str, float]
) -> None:
    point = Point(configure(transform=transform), tuple(axes.items()))
    comparison = compare([result(0, Point(configure(), is_control=True)), result(1, point)], 0.95)
    assert comparison.neutral == {0: neutral}
    generations = pd.DataFrame({"point": [0, 1], "role": ["control", "point"]})
    results = tables(comparison, generations, sweep_id="", name="", command="", confidence=0.95)
    for frame in (results.points, results.generations):
        own = frame[frame["role"] == "control"].iloc[0]
        assert {k: own[f"axis/{k}"] for k in axes if not pd.isna(own[f"axis/{k}"])} == neutral
    # MLflow keeps no infinity: a control has no place on an axis of signal-to-noise ratios there.
    logged = {f"axis/{key}": dose for key, dose in neutral.items() if math.isfinite(dose)}
    assert {k: v for k, v in _metrics_of(comparison, 0).items() if k.startswith("axis/")} == logged
    series = {(name, place): value for name, value, place in run_summary.point_metrics(comparison)}
    assert {k: v for (k, place), v in series.items() if place == 0 and "axis" in k} == {
        f"sweep/{key}": value for key, value in logged.items()
    }


def test_control_with_a_dose_is_not_a_treated_point(configure: Configure) -> None:
    points = [
        Point(configure(transform={"name": "scale", "factor": f}), (("transform.factor", f),)) for f in (0.5, 2.0)
    ]
    control = Point(configure(), is_control=True)
    comparison = compare([result(0, points[0]), result(1, points[1]), result(2, control)], 0.95)
    results = tables(comparison, pd.DataFrame(), sweep_id="", name="", command="", confidence=0.95)
    assert results.points["axis/transform.factor"].tolist() == [0.5, 2.0, 1.0]
    assert results.points["name"].tolist() == ["factor=0.5", "factor=2", "control"]
    assert [(one.doses, one.points) for one in results.series] == [((0.5, 2.0), (0, 1))]
    assert by_strength(results.points) == [2, 0, 1]  # the control comes first, not between the points


def test_an_infinite_dose_is_not_logged() -> None:
    axes = (("transform.snr_db", math.inf), ("transform.factor", 2.0), ("transform.span", "all"))
    assert dict(metrics_of(record(4, axes))) == {"sweep/index": 4.0, "axis/transform.factor": 2.0}
