"""One series for each combination of the other swept keys; only repetitions with another seed are averaged."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sweep.config.schema import SweepConfig
from sweep.planning.results import PointResult
from sweep.points.point import Point, Value
from sweep.report import html, plots
from sweep.report.comparison import Comparison, compare
from sweep.report.dose_response import responses
from sweep.report.figures import figure
from sweep.report.overview import findings
from sweep.report.results import SweepResults, tables
from sweep.report.run_summary import describe, response_findings
from sweep.scoring.measures import summarise_scores
from sweep.scoring.response import Response
from sweep.scoring.significance import benjamini_hochberg

Configure = Callable[..., SweepConfig]
Axes = Mapping[str, Value]
PROMPTS = 40
MEASURE = "quality/exact_match"


def result(index: int, point: Point, share: float, first: int = 0) -> PointResult:
    """A point that answers so many prompts rightly, beginning with the prompt `first`."""
    right = np.roll(np.arange(PROMPTS) < round(share * PROMPTS), first).astype(float)
    return PointResult(index, point, summarise_scores({MEASURE: right}, 0.95), {MEASURE: right})


def scale(axes: Axes) -> dict[str, Any]:
    factor = axes.get("transform.factor", 2.0)
    return {"name": "scale", "factor": factor, "span": axes.get("transform.span", "all")}


def swept(
    configure: Configure,
    shares: Sequence[tuple[Axes, float]],
    control: float = 0.8,
    make: Callable[[Axes], dict[str, Any]] = lambda axes: {"transform": scale(axes)},
) -> Comparison:
    points = [Point(configure(**make(axes)), tuple(axes.items())) for axes, _ in shares]
    results = [result(0, Point(configure(), is_control=True), control)]
    results += [result(i, point, share) for i, (point, (_, share)) in enumerate(zip(points, shares, strict=True), 1)]
    return compare(results, 0.95)


def two_spans(configure: Configure) -> Comparison:
    """Of the issue: one curve falls, the other one is flat."""
    falls = {1.2: 0.75, 1.5: 0.575, 2.0: 0.2, 3.0: 0.05}
    return swept(
        configure,
        [({"transform.factor": dose, "transform.span": "all"}, share) for dose, share in falls.items()]
        + [({"transform.factor": dose, "transform.span": "{positions: [0]}"}, 0.75) for dose in falls],
        make=lambda axes: {
            "transform": scale({"transform.factor": axes["transform.factor"], "transform.span": "all"})
            if axes["transform.span"] == "all"
            else {"name": "scale", "factor": axes["transform.factor"], "span": {"positions": [0]}}
        },
    )


def of(comparison: Comparison, name: str, side: str = "above") -> Response:
    [one] = [one for one in comparison.series if one.series.name == name]
    return one.responses[MEASURE, side]  # type: ignore[index]


def laid_out(comparison: Comparison) -> SweepResults:
    return tables(comparison, pd.DataFrame(), sweep_id="id", name="", command="sweep", confidence=0.95)


def test_a_falling_curve_is_not_averaged_with_a_flat_one(configure: Configure) -> None:
    comparison = two_spans(configure)
    assert [one.series.name for one in comparison.series] == ["span=all", "span={positions: [0]}"]
    falling, flat = of(comparison, "span=all"), of(comparison, "span={positions: [0]}")
    # Half of the control's 0.8 lies between 0.575 at 1.5 and 0.2 at 2.
    assert falling.rho == pytest.approx(-1) and falling.first_effective == 1.5
    assert falling.breaking_point == pytest.approx(1.5 + 0.5 * (0.575 - 0.4) / 0.375)
    assert math.isnan(flat.rho) and math.isnan(flat.first_effective) and math.isnan(flat.breaking_point)
    table = laid_out(comparison).responses
    assert table[["series", "pooled", "first_effective"]].fillna(-1).to_numpy().tolist() == [
        ["span=all", "", 1.5],
        ["span={positions: [0]}", "", -1],
    ]


def test_each_series_is_reported_drawn_and_tabulated(configure: Configure) -> None:
    comparison = two_spans(configure)
    said = list(response_findings(comparison))
    assert said[0].startswith("span=all: quality/exact_match: differs from the control at transform.factor ≥ 1.5 ")
    assert said[1] == (
        "span={positions: [0]}: quality/exact_match: no significant difference from the control along transform.factor; "
        "smallest difference that the prompts could show: 0.19 (one test at p < 0.05, 80 % power)"
    )
    assert len(said) == 2
    assert f"- span=all: `{MEASURE}`: differs" in describe(comparison, "sweep", {})
    results = laid_out(comparison)
    [response] = responses(results)
    rows = [(row.name, *(cell.mean for cell in row.cells)) for row in findings([response], "transform.factor").rows]
    assert rows == [
        ("exact match", "span=all", "above 1", "-1", "1.5", "1.73", "–"),
        ("exact match", "span={positions: [0]}", "above 1", "–", "–", "–", "–"),
    ]
    drawn = figure(response)
    assert [trace["name"] for trace in drawn["data"]] == ["span=all", "span={positions: [0]}"]
    assert [trace["y"] for trace in drawn["data"]] == [[0.75, 0.575, 0.2, 0.05], [0.75] * 4]
    assert drawn["layout"]["showlegend"] is True
    uprights = [shape for shape in drawn["layout"]["shapes"] if shape.get("yref") == "paper"]
    colours = [trace["line"]["color"] for trace in drawn["data"]]
    assert [(shape["x0"], shape["line"]["color"]) for shape in uprights] == [
        (1.5, colours[0]),
        (pytest.approx(1.7333, abs=1e-4), colours[0]),
    ]
    axes = plots.draw([response], 0.95).axes[0]
    lines = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert [container.get_label() for container in axes.containers] == ["span=all", "span={positions: [0]}"]
    assert lines["control"] == [0.8, 0.8]
    page = html.render(results)
    assert page.count("span={positions: [0]}") >= 2


def test_a_steering_vector_is_not_averaged_with_its_random_direction(configure: Configure) -> None:
    """The README's recipe: `transform.control=null,direction`."""

    def steered(axes: Axes) -> dict[str, Any]:
        control = None if axes["transform.control"] == "null" else axes["transform.control"]
        vector = {"positive": ["a"], "negative": ["b"]}
        coefficient = axes["transform.coefficient"]
        return {"transform": {"name": "add_vector", "coefficient": coefficient, "vector": vector, "control": control}}

    shares = {"null": (0.8, 0.1), "direction": (0.8, 0.75)}
    comparison = swept(
        configure,
        [
            ({"transform.coefficient": dose, "transform.control": kind}, share)
            for kind, own in shares.items()
            for dose, share in zip((0.25, 0.5), own, strict=True)
        ],
        make=steered,
    )
    names = [one.series.name for one in comparison.series]
    assert names == ["transform.control=null", "transform.control=direction"]
    assert of(comparison, names[0]).breaking_point == pytest.approx(0.25 + 0.25 * 0.4 / 0.7)
    assert math.isnan(of(comparison, names[1]).breaking_point)
    assert comparison.neutral == {0: {"transform.coefficient": 0.0}}


def test_each_model_is_compared_with_its_own_control(configure: Configure) -> None:
    def of_dtype(dtype: str, factor: float | None = None) -> SweepConfig:
        transform = {"name": "scale", "factor": factor} if factor else {"name": "identity"}
        model = {"id": configure().model.id, "dtype": dtype}
        return configure(transform=transform, model=model)

    results: list[PointResult] = []
    for dtype, control, shares in (("float32", 0.8, (0.75, 0.3)), ("bfloat16", 0.4, (0.375, 0.1))):
        axes: tuple[tuple[str, Value], ...] = (("model.dtype", dtype),)
        results.append(result(len(results), Point(of_dtype(dtype), axes, is_control=True), control))
        for factor, share in zip((2.0, 4.0), shares, strict=True):
            point = Point(of_dtype(dtype, factor), (*axes, ("transform.factor", factor)))
            results.append(result(len(results), point, share))
    comparison = compare(results, 0.95)
    assert [(one.series.name, one.series.control) for one in comparison.series] == [
        ("dtype=float32", 0),
        ("dtype=bfloat16", 3),
    ]
    # 0.3 is less than half of 0.8, but not of the other control's 0.4.
    assert of(comparison, "dtype=float32").breaking_point == pytest.approx(2 + 2 * 0.35 / 0.45)
    assert of(comparison, "dtype=bfloat16").breaking_point == pytest.approx(2 + 2 * 0.175 / 0.275)
    [response] = responses(laid_out(comparison))
    assert response.controls == [(0, 0.8, "control (dtype=float32)"), (1, 0.4, "control (dtype=bfloat16)")]
    shapes = [shape for shape in figure(response)["layout"]["shapes"] if "label" in shape]
    assert [(shape["y0"], shape["label"]["text"]) for shape in shapes] == [
        (0.8, "control (dtype=float32)"),
        (0.4, "control (dtype=bfloat16)"),
    ]


def test_many_series_are_cut_short_in_the_description(configure: Configure) -> None:
    """Fourteen series, of each of which the number of its responses' row is enough to find it."""
    axes = [{"transform.factor": f, "transform.span": f"s{i}"} for i in range(14) for f in (2.0, 3.0)]
    comparison = swept(
        configure,
        [(own, 0.1 if own["transform.span"] == "s0" else 0.8) for own in axes],
        make=lambda axes: {"transform": scale({**axes, "transform.span": "all"})},
    )
    text = describe(comparison, "sweep", {})
    assert text.count("no significant difference from") == 11 and "- and 2 more series in `responses.csv`" in text


@pytest.mark.parametrize(("share", "said"), [(0.8, []), (0.1, ["span=s0", "span=s1"])])
def test_a_series_without_a_finding_is_named_only_next_to_one_with_a_finding(
    configure: Configure, share: float, said: list[str]
) -> None:
    axes = [{"transform.factor": f, "transform.span": f"s{i}"} for i in range(2) for f in (2.0, 3.0)]
    comparison = swept(
        configure,
        [(own, share if own["transform.span"] == "s0" else 0.8) for own in axes],
        make=lambda axes: {"transform": scale({**axes, "transform.span": "all"})},
    )
    assert [one.series.axis for one in comparison.series if one.responses] == ["transform.factor"] * 2
    assert [line.split(":")[0] for line in response_findings(comparison)] == said


def test_text_axis_has_no_series(configure: Configure) -> None:
    comparison = swept(configure, [({"transform.span": "all"}, 0.1), ({"transform.span": "content"}, 0.8)])
    assert comparison.series == [] and list(response_findings(comparison)) == []
    assert responses(laid_out(comparison)) == []


def test_pooled_seeds_are_reported(configure: Configure) -> None:
    def noise(axes: Axes) -> dict[str, Any]:
        return {"transform": {"name": "noise", "sigma": axes["transform.sigma"]}, "seed": int(axes["seed"])}

    shares = {(0.5, 0.0): 0.8, (0.5, 1.0): 0.7, (1.0, 0.0): 0.2, (1.0, 1.0): 0.1}
    comparison = swept(
        configure, [({"transform.sigma": sigma, "seed": seed}, s) for (sigma, seed), s in shares.items()], make=noise
    )
    [one] = comparison.series
    assert (one.series.name, one.series.pooled) == ("", "seed=0,1")
    assert [(dose, round(mean, 9)) for dose, mean, _, _ in one.means[MEASURE]] == [(0.5, 0.75), (1.0, 0.15)]
    assert one.responses[MEASURE, "above"].breaking_point == pytest.approx(0.5 + 0.5 * 0.35 / 0.6)
    [said] = response_findings(comparison)
    assert said.startswith(
        "(pooled over seed=0,1): quality/exact_match: differs from the control at transform.sigma ≥ "
    )
    results = laid_out(comparison)
    assert results.responses["pooled"].tolist() == ["seed=0,1"]
    [response] = responses(results)
    assert response.dose_title == "sigma (pooled over seed=0,1)"
    means, points, band = figure(response)["data"]
    assert means["x"] == [0.5, 1.0] and means["y"] == pytest.approx([0.75, 0.15]) and means["mode"] == "lines"
    assert points["y"] == [0.8, 0.7, 0.2, 0.1] and points["mode"] == "markers"
    (_, _, low, high), (_, _, lower, higher) = one.means[MEASURE]
    assert (band["x"], band["y"]) == ([0.5, 1.0, 1.0, 0.5], [high, higher, lower, low])
    assert plots.draw([response], 0.95).axes[0].get_xlabel() == "sigma (pooled over seed=0,1)"
    assert "pooled over seed=0,1" in html.render(results)


def test_q_values_are_over_all_points_of_all_series(configure: Configure) -> None:
    comparison = two_spans(configure)
    p = [comparison.differences[i][MEASURE].p for i in range(1, 9)]
    q = [comparison.differences[i][MEASURE].q for i in range(1, 9)]
    assert q == pytest.approx(benjamini_hochberg(p).tolist()) and len(set(p)) == 4
    assert p[1] == pytest.approx(2 * 0.5**9)  # 9 of 32 right answers were lost, none gained
    assert [comparison.differences[i][MEASURE].significant for i in range(1, 9)] == [False, True, True, True] + [
        False
    ] * 4


def test_axis_that_changes_the_control_has_no_thresholds(configure: Configure) -> None:
    def sampled(axes: Axes, transform: dict[str, Any]) -> SweepConfig:
        return configure(transform=transform, sampling={"max_tokens": int(axes["sampling.max_tokens"])})

    results: list[PointResult] = []
    for tokens, control, share in ((4.0, 0.8, 0.7), (8.0, 0.6, 0.1)):
        axes: dict[str, Value] = {"sampling.max_tokens": tokens}
        pairs = tuple(axes.items())
        results.append(result(len(results), Point(sampled(axes, {"name": "identity"}), pairs, True), control))
        results.append(result(len(results), Point(sampled(axes, {"name": "scale", "factor": 2.0}), pairs), share))
    comparison = compare(results, 0.95)
    [one] = comparison.series
    assert (one.series.doses, one.series.control, one.responses) == ((4.0, 8.0), None, {})
    [response] = responses(laid_out(comparison))
    assert [mean for mean, _, _ in response.lines[0].means] == pytest.approx([0.7, 0.1])
    assert response.controls == []


@pytest.mark.parametrize("seeds", [(), (0.0, 1.0)], ids=["one seed", "seeds"])
def test_thresholds_are_drawn_where_another_key_changes_the_control(
    configure: Configure, seeds: Sequence[float]
) -> None:
    """The control has a system message of its own, which is therefore the table's first axis but not the points'."""

    def of_system(system: str, transform: dict[str, Any], seed: int = 0) -> SweepConfig:
        return configure(transform=transform, prompts={"path": "p.jsonl", "system": system}, seed=seed)

    results: list[PointResult] = []
    for system in ("a", "b"):
        point = Point(of_system(system, {"name": "identity"}), (("prompts.system", system),), is_control=True)
        results.append(result(len(results), point, 0.8))
    spans: dict[str, Any] = {"all": "all", "{positions: [0]}": {"positions": [0]}}
    for span, system, seed in product(spans, ("a", "b"), seeds or (None,)):
        for factor, share in ((1.5, 0.75), (2.0, 0.2), (3.0, 0.05)):
            axes: dict[str, Value] = {"transform.span": span, "prompts.system": system, "transform.factor": factor}
            axes |= {} if seed is None else {"seed": seed}
            config = of_system(system, {"name": "scale", "factor": factor, "span": spans[span]}, int(seed or 0))
            results.append(result(len(results), Point(config, tuple(axes.items())), share))
    table = laid_out(compare(results, 0.95))
    [response] = responses(table)
    assert [line.series.name for line in response.lines] == table.responses["series"].tolist()
    assert [line.series.name for line in response.lines] == [
        f"span={span}, system={system}" for span in spans for system in ("a", "b")
    ]
    pooled = " (pooled over seed=0,1)" if seeds else ""
    assert all(line.label == f"{line.series.name}{pooled}" for line in response.lines)
    for line in response.lines:
        assert (len(line.sides), line.neutral, line.doses) == (1, 1.0, [1.5, 2.0, 3.0])
        assert [dose for (dose, _, _), _ in line.effective] == [2.0] and len(line.breaking) == 1
    assert "first effective" in html.render(table) and len(plots.draw([response], 0.95).axes) == 1
