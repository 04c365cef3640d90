"""What is said of responses: which doses are neutral, and the sentences about both sides of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from sweep.config.schema import SweepConfig
from sweep.planning.results import PointResult
from sweep.points.point import Point
from sweep.report.comparison import Comparison, compare
from sweep.report.results import tables
from sweep.report.run_summary import describe, response_findings
from sweep.scoring.measures import summarise_scores
from sweep.scoring.response import Response

Configure = Callable[..., SweepConfig]
PROMPTS = 100
MEASURE = "quality/exact_match"


def result(index: int, point: Point, share: float) -> PointResult:
    """A point that gives so many right answers."""
    values = {MEASURE: (np.arange(PROMPTS) < round(share * PROMPTS)).astype(float)}
    return PointResult(index, point, summarise_scores(values, 0.95), values)


def swept(
    configure: Configure, axis: str, shares: Mapping[float, float], transform: Callable[[float], Any]
) -> Comparison:
    """Compare points of these doses, which give these shares of right answers, with a control that gives 0.9."""
    points = [Point(configure(), is_control=True)]
    points += [Point(configure(transform=transform(dose)), ((axis, dose),)) for dose in shares]
    return compare(
        [result(i, p, s) for i, (p, s) in enumerate(zip(points, [0.9, *shares.values()], strict=True))], 0.95
    )


def along(comparison: Comparison) -> dict[tuple[str, str, str], Response]:
    """The responses of the only series along each axis, by axis, measure and side."""
    axes = [one.series.axis for one in comparison.series]
    assert len(axes) == len(set(axes))
    return {(one.series.axis, *key): r for one in comparison.series for key, r in one.responses.items()}


def scale(factor: float) -> dict[str, Any]:
    return {"name": "scale", "factor": factor}


def noise(sigma: float) -> dict[str, Any]:
    return {"name": "noise", "sigma": sigma}


@pytest.mark.parametrize(
    ("axis", "transform", "doses", "expected"),
    [
        ("transform.factor", scale, [0.5, 1.0, 2.0], {"above": 1, "below": 1}),
        ("transform.0.factor", lambda dose: [scale(dose)], [0.5, 2.0], {"above": 1, "below": 1}),
        ("transform.sigma", noise, [0.5, 1.0], {"above": 0}),
        (
            "transform.snr_db",
            lambda dose: {"name": "snr_noise", "snr_db": dose},
            [math.inf, 20.0, 0.0],
            {"below": math.inf},
        ),
        ("transform.1.factor", lambda dose: [noise(1.0), scale(dose)], [0.5, 2.0], {"above": 1, "below": 1}),
        ("transform.0.factor", lambda dose: [noise(1.0), scale(dose)], [0.5, 2.0], {"all": None}),  # there is none
        ("transform.norm", lambda dose: {"name": "normalize", "norm": dose}, [0.5, 2.0], {"all": None}),  # no dose
        ("transform.amount", lambda dose: scale(2.0) if dose == 1 else noise(1.0), [1.0, 2.0], {"all": None}),
    ],
)
def test_neutral_dose_is_taken_from_the_transform(
    configure: Configure, axis: str, transform: Callable[[float], Any], doses: list[float], expected: dict[str, Any]
) -> None:
    comparison = swept(configure, axis, dict.fromkeys(doses, 0.5), transform)
    assert {side: r.neutral for (_, _, side), r in along(comparison).items()} == expected
    assert {(a, m) for a, m, _ in along(comparison)} == {(axis, MEASURE)}


def test_control_has_the_neutral_dose_unless_another_step_changes_rows(configure: Configure) -> None:
    def breaking_point(sigma: float, axis: str = "transform.1.factor") -> float:
        comparison = swept(configure, axis, {2.0: 0.4, 4.0: 0.1}, lambda dose: [noise(sigma), scale(dose)])
        return along(comparison)[axis, MEASURE, "above"].breaking_point

    assert breaking_point(sigma=0.0) == pytest.approx(1.9)  # between the control at 1 and the 0.4 at 2
    assert breaking_point(sigma=1.0) == 2


def test_both_sides_are_reported(configure: Configure) -> None:
    shares = {0.25: 0.1, 0.5: 0.7, 0.8: 0.9, 1.2: 0.9, 1.5: 0.8, 2.0: 0.4, 5.0: 0.1}
    comparison = swept(configure, "transform.factor", shares, scale)
    [said] = response_findings(comparison, as_markdown=True)
    above, below = (along(comparison)["transform.factor", MEASURE, side] for side in ("above", "below"))
    assert (above.first_effective, below.first_effective) == (1.5, 0.5)
    assert above.breaking_point == pytest.approx(1.5 + 0.5 * 0.35 / 0.4)
    assert below.breaking_point == pytest.approx(0.5 - 0.25 * 0.25 / 0.6)

    def interval(dose: str, low: float, high: float) -> str:
        return f"{dose} [{low:.3g}, {high:.3g}]"

    assert said == (
        "`quality/exact_match`: differs from the control at `transform.factor` "
        f"≥ {interval('1.5', above.first_effective_ci_low, above.first_effective_ci_high)} "
        f"and ≤ {interval('0.5', below.first_effective_ci_low, below.first_effective_ci_high)} "
        "(p < 0.05, each dose by itself); half of the control's "
        f"at {interval('1.94', above.breaking_point_ci_low, above.breaking_point_ci_high)} (increasing) "
        f"and {interval('0.396', below.breaking_point_ci_low, below.breaking_point_ci_high)} (decreasing)"
    )
    assert f"- {said}\n" in describe(comparison, "sweep …", {})
    assert list(response_findings(comparison)) == [said.replace("`", "")]


def test_user_texts_are_escaped_in_markdown(configure: Configure) -> None:
    lines = describe(swept(configure, "transform.factor", {2.0: 0.5}, scale), "sweep sweep.name=`<b>`", {}).splitlines()
    assert lines[0] == "`` sweep sweep.name=`<b>` ``"


def test_missing_findings_are_not_reported(configure: Configure) -> None:
    one_sided = swept(configure, "transform.factor", {0.5: 0.9, 2.0: 0.1}, scale)
    [said] = response_findings(one_sided)
    assert " ≥ 2" in said and "; half of the control's at 1.56 " in said
    assert said.endswith(" (increasing)") and "≤" not in said and "decreasing" not in said
    assert list(response_findings(swept(configure, "transform.factor", {0.5: 0.9, 2.0: 0.9}, scale))) == []
    broken = swept(
        configure, "transform.sigma", {1.0: 0.9, 2.0: 0.4, 3.0: 0.9}, noise
    )  # what is stronger has no effect
    [said] = response_findings(broken)
    assert said.startswith("quality/exact_match: half of the control's at transform.sigma = 1.9 ")


def test_the_table_has_a_row_for_each_side(configure: Configure) -> None:
    comparison = swept(configure, "transform.factor", {0.5: 0.1, 2.0: 0.1}, scale)
    table = tables(comparison, None, sweep_id="", name="", command="", confidence=0.95).responses
    assert table[["axis", "measure", "side", "neutral", "first_effective"]].to_numpy().tolist() == [
        ["transform.factor", MEASURE, "above", 1.0, 2.0],
        ["transform.factor", MEASURE, "below", 1.0, 0.5],
    ]
    assert {"rho/ci_low", "first_effective/ci_high", "breaking_point/ci_low", "floor"} <= set(table.columns)
    nothing = tables(Comparison([]), None, sweep_id="", name="", command="", confidence=0.95).responses
    assert list(nothing.columns) == list(table.columns) and nothing.empty


def test_each_control_has_separate_responses(configure: Configure) -> None:
    groups = [swept(configure, "transform.factor", {0.5: 0.1, 2.0: 0.1}, scale).results for _ in range(2)]
    other = [
        replace(
            result,
            index=result.index + 10,
            point=replace(
                result.point,
                config=replace(result.point.config, sampling=replace(result.point.config.sampling, max_tokens=9)),
            ),
        )
        for result in groups[1]
    ]
    both = compare([*groups[0], *other], 0.95)
    table = tables(both, None, sweep_id="", name="", command="", confidence=0.95).responses
    assert table["control"].value_counts().to_dict() == {0: 2, 10: 2}
    assert [one.series.name for one in both.series] == ["control #0", "control #10"]  # nothing swept tells them apart
    assert [line.split(": ")[0] for line in response_findings(both)] == ["control #0", "control #10"]
