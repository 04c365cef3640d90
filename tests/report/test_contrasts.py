"""Baselines and contrasts: which points are compared, what is counted, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sweep.app import sweep_folder
from sweep.config.report_config import ReportConfig
from sweep.config.schema import SweepConfig
from sweep.errors import ConfigError
from sweep.planning.results import PointResult
from sweep.points.point import Point
from sweep.report.baselines import aligned
from sweep.report.comparison import compare
from sweep.report.contrast_text import COLUMNS, baseline_notes, contrast_rows
from sweep.report.paired_differences import table_tests
from sweep.report.point_selectors import check_selectors, pairs, select, selectable
from sweep.report.results import tables
from sweep.report.run_summary import describe, response_findings
from sweep.scoring.measures import summarise_scores

Configure = Callable[..., SweepConfig]
EXACT, CHRF = "quality/exact_match", "quality/chrf"
RIGHT = {  # of ten prompts, those that each point answers
    None: "1111110000",
    1.2: "1111111100",
    1.5: "1110000011",
    2.0: "1000000000",
}


def bits(text: str) -> list[float]:
    return [float(bit) for bit in text]


def result(
    index: int, point: Point, values: Mapping[str, Sequence[float]], ids: Sequence[str] = (), error: str | None = None
) -> PointResult:
    arrays = {name: np.array(own, float) for name, own in values.items()}
    return PointResult(index, point, summarise_scores(arrays, 0.95), arrays, error, ids)


def factors(configure: Configure, right: Mapping[float | None, str] = RIGHT) -> list[PointResult]:
    results = []
    for index, (factor, text) in enumerate(right.items()):
        axes = () if factor is None else (("transform.factor", factor),)
        transform = {"name": "identity"} if factor is None else {"name": "scale", "factor": factor}
        point = Point(configure(transform=transform), axes, is_control=factor is None)
        results.append(result(index, point, {EXACT: bits(text), CHRF: [bit / 2 for bit in bits(text)]}))
    return results


def steered(configure: Configure) -> list[PointResult]:
    """A control, and three coefficients with the vector itself and with a random direction."""
    results = [result(0, Point(configure(), is_control=True), {EXACT: bits("1111111111")})]
    for kind, texts in (
        ("null", ("1111111100", "1111110000", "1100000000")),
        ("direction", ("1111111111", "1111111100", "1111111100")),
    ):
        for coefficient, text in zip((0.5, 1.0, 2.0), texts, strict=True):
            axes = (("transform.coefficient", coefficient), ("transform.control", kind))
            transform = {"name": "noise", "sigma": coefficient}
            results.append(result(len(results), Point(configure(transform=transform), axes), {EXACT: bits(text)}))
    return results


@pytest.mark.parametrize("text", ["2", "factor=1.5", "transform.factor=1.5", "transform.factor=1.50", " factor=1.5 "])
def test_a_baseline_is_found_by_number_name_and_values(configure: Configure, text: str) -> None:
    compared = compare(factors(configure), 0.95, (), report=ReportConfig(baseline=text))
    assert compared.baselines.name == "factor=1.5" and compared.baselines.of == {0: 2, 1: 2, 3: 2}
    changes = {index: differences[EXACT] for index, differences in compared.differences.items()}
    assert {i: (d.mean, d.gained, d.lost) for i, d in changes.items()} == {
        0: (pytest.approx(0.1), 3, 2),
        1: (pytest.approx(0.3), 5, 2),
        3: (pytest.approx(-0.4), 0, 4),
    }
    # The exact McNemar test of 2 against 5, and of 0 against 4.
    assert changes[1].p == pytest.approx(stats.binomtest(2, 7).pvalue)
    assert changes[3].p == pytest.approx(stats.binomtest(0, 4).pvalue)
    assert all(differences[CHRF].gained is None for differences in compared.differences.values())


def test_without_a_baseline_points_are_compared_with_the_control(configure: Configure) -> None:
    plain = compare(factors(configure), 0.95)
    assert plain.baselines.of == {1: 0, 2: 0, 3: 0} and plain.baselines.word == "control"
    assert [(plain.differences[i][EXACT].gained, plain.differences[i][EXACT].lost) for i in (1, 2, 3)] == [
        (2, 0),
        (2, 3),
        (0, 5),
    ]
    assert list(baseline_notes(plain)) == [] and contrast_rows(plain) == []
    same = compare(factors(configure), 0.95, (), report=ReportConfig(baseline="control"))
    assert same.baselines == plain.baselines and same.differences == plain.differences


def test_a_baseline_of_several_points_pairs_those_that_agree_otherwise(configure: Configure) -> None:
    compared = compare(steered(configure), 0.95, (), report=ReportConfig(baseline="transform.control=direction"))
    assert compared.baselines.of == {1: 4, 2: 5, 3: 6} and compared.baselines.single is None
    assert [compared.differences[i][EXACT].lost for i in (1, 2, 3)] == [2, 2, 6]
    assert "First effective doses and breaking points are against the control" in list(baseline_notes(compared))


def test_thresholds_are_against_a_single_baseline(configure: Configure) -> None:
    texts = {None: "1" * 40, 0.5: "1" * 40, 1.5: "1" * 20 + "0" * 20, 2.0: "1" * 20 + "0" * 20, 4.0: "0" * 40}
    results = factors(configure, texts)
    assert "differs from the control at transform.factor ≥ 1.5" in next(response_findings(compare(results, 0.95)))
    against = compare(results, 0.95, (), report=ReportConfig(baseline="factor=1.5"))
    line = next(response_findings(against))
    assert "differs from the baseline at transform.factor ≥ 4" in line and "≤ 0.5" in line
    assert "half of the baseline's at 3" in line  # from 0.5 at 2 to 0 at 4


def test_contrasts_of_points(configure: Configure) -> None:
    report = ReportConfig(contrasts=[["factor=1.2", "factor=1.5"], ["2", "control"]])
    compared = compare(factors(configure), 0.95, ["quality/exact_match"], report=report)
    assert [(row.first, row.second) for row in compared.contrasts.rows] == [
        ("factor=1.2", "factor=1.5"),
        ("factor=1.5", "control"),
    ]
    [first, second] = (row.differences for row in compared.contrasts.rows)
    assert (first[EXACT].mean, first[EXACT].gained, first[EXACT].lost) == (pytest.approx(0.3), 5, 2)
    assert (second[EXACT].mean, second[EXACT].gained, second[EXACT].lost) == (pytest.approx(-0.1), 2, 3)
    ps = [d[m].p for d in (first, second) for m in (EXACT, CHRF)]
    qs = [d[m].q for d in (first, second) for m in (EXACT, CHRF)]
    assert qs == pytest.approx(stats.false_discovery_control(ps))
    [shown, _] = contrast_rows(compared)
    assert shown == [
        "factor=1.2 − factor=1.5", "exact match", f"+0.3 [{first[EXACT].ci_low:+.3g}, {first[EXACT].ci_high:+.3g}]",
        f"{ps[0]:.2g}", f"{qs[0]:.2g}", "+5/-2", "10", f"{first[EXACT].detectable:.2g}",
    ]  # fmt: skip
    page = describe(compared, "sweep", {})
    assert f"| {' | '.join(COLUMNS)} |" in page and "factor=1.2 − factor=1.5" in page.replace("\\", "")


def test_controls_of_two_wordings_are_compared_but_not_averaged_with_points(configure: Configure) -> None:
    """Two prompt files: two controls, and a point of each."""
    results, floor = [], "divergence/token_agreement"
    for j, name in enumerate(("w1", "w2")):
        prompts, axes = {"items": [f"{name} {i}" for i in range(10)]}, (("prompts.path", name),)
        own = {EXACT: bits("1111100000"), floor: bits("1111111111")}
        results.append(result(2 * j, Point(configure(prompts=prompts), axes, is_control=True), own))
        config = configure(prompts=prompts, transform={"name": "scale", "factor": 2.0})
        changed = {EXACT: bits("1110000000" if j else "1000000000"), floor: bits("0000011111" if j else "0000000001")}
        results.append(result(2 * j + 1, Point(config, (("transform.factor", 2.0), *axes)), changed))
    report = ReportConfig(contrasts=[["prompts.path=w2", "prompts.path=w1"]])
    compared = compare(results, 0.95, (), report=report)
    controls, points = compared.contrasts.rows[:2]
    assert [set(row.differences) for row in (controls, points)] == [{EXACT}, {EXACT, floor}]
    assert controls.differences[EXACT].mean == 0 and points.differences[floor].mean == pytest.approx(0.4)
    assert len(compared.contrasts.rows) == 2  # a mean of one pair would count twice in the correction


def test_contrasts_of_series(configure: Configure) -> None:
    report = ReportConfig(contrasts=[["control=null", "control=direction"]])
    rows = compare(steered(configure), 0.95, (), report=report).contrasts.rows
    assert [row.first for row in rows[:3]] == [f"coefficient={dose}, control=null" for dose in ("0.5", "1", "2")]
    assert [row.differences[EXACT].mean for row in rows] == pytest.approx([-0.2, -0.2, -0.6, -1 / 3])
    last = rows[-1]
    assert last.first == "control=null (mean of 3 points)" and last.prompts == {EXACT: 10}
    # Prompts 3 to 8 lose one or two of three answers, 9 and 10 lose 2 of 3; two are equal.
    assert (last.differences[EXACT].gained, last.differences[EXACT].lost) == (0, 8)


@pytest.mark.slow
def test_intervals_of_differences_cover_the_truth() -> None:
    """2,000 points that differ from one baseline by 0.2 on average, with a skewed spread over 40 prompts."""
    generator = np.random.default_rng(0)
    baseline = generator.random(40)
    table = baseline + 0.2 + 0.3 * (generator.exponential(size=(2000, 40)) - 1)
    controls = np.broadcast_to(baseline, table.shape)
    covered = [t.difference.ci_low <= 0.2 <= t.difference.ci_high for _, t in table_tests(CHRF, table, controls, 0.95)]
    assert 0.93 < np.mean(covered) < 0.97
    null_table = baseline + generator.normal(size=(2000, 40))
    null = [test.difference.p for _, test in table_tests(CHRF, null_table, controls, 0.95)]
    assert 0.03 < np.mean(np.array(null) < 0.05) < 0.07


def test_one_point_is_compared_with_each_of_a_series(configure: Configure) -> None:
    points = selectable((r.index, r.point) for r in steered(configure))
    single, series = (select(text, points, "key") for text in ("control", "control=direction"))
    assert [(a.index, b.index) for a, b in pairs(series, single)] == [(4, 0), (5, 0), (6, 0)]
    assert [(a.index, b.index) for a, b in pairs(single, series)] == [(0, 4), (0, 5), (0, 6)]
    own = select("coefficient=1, control=null", points, "key")
    assert [(a.index, b.index) for a, b in pairs(own, series)] == [(2, 5)]


def test_prompts_are_paired_by_id(configure: Configure) -> None:
    """Two system messages: each has its own control, and the second file lacks a prompt and has another order."""
    results = []
    for index, (system, ids, text) in enumerate((("A", "abcd", "1100"), ("B", "dbae", "1010"))):
        config = configure(prompts={"items": ["x"], "system": system})
        point = Point(config, (("prompts.system", system),), is_control=True)
        results.append(result(index, point, {EXACT: bits(text)}, tuple(ids)))
    assert aligned(results[1], results[0]).values[EXACT] == pytest.approx([1, 0, math.nan, 1], nan_ok=True)
    compared = compare(
        results, 0.95, (), report=ReportConfig(baseline="system=A", contrasts=[["system=B", "system=A"]])
    )
    difference = compared.differences[1][EXACT]  # d: 1 for 0; b: 0 for 1; a: 1 for 1
    assert (difference.gained, difference.lost, difference.mean) == (1, 1, 0)
    assert compared.contrasts.rows[0].prompts == {EXACT: 3}


@pytest.mark.parametrize(
    ("report", "says"),
    [
        ({"baseline": "factr=1.2"}, r"report\.baseline: there is no point 'factr=1\.2'. Did you mean 'factor=1\.2'\?"),
        ({"baseline": "factor=1.3"}, "Available: control, factor=1.2, factor=1.5, factor=2"),
        ({"baseline": "7"}, "there is no point '7'"),
        ({"contrasts": [["factor=1.2", "factor=9"]]}, r"report\.contrasts: there is no point 'factor=9'"),
        ({"contrasts": [["factor=1.2", "1"]]}, "have no two points in common"),
    ],
)
def test_points_that_do_not_exist_are_refused(configure: Configure, report: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        check_selectors(ReportConfig(**report), ((r.index, r.point) for r in factors(configure)))


def test_a_sweep_of_the_control_alone_has_no_baseline(configure: Configure) -> None:
    with pytest.raises(ConfigError, match="no other point can be compared with 'control'"):
        check_selectors(ReportConfig(baseline="control"), [(0, Point(configure(), is_control=True))])


def test_a_failed_baseline_is_reported(configure: Configure) -> None:
    results = factors(configure)
    results[2] = result(2, results[2].point, {}, error="out of memory")
    report = ReportConfig(baseline="factor=1.5", contrasts=[["factor=1.2", "factor=1.5"]])
    compared = compare(results, 0.95, (), report=report)
    assert compared.baselines.of == {1: 0, 3: 0} and compared.contrasts.rows == []
    assert list(baseline_notes(compared)) == [
        "report.baseline: factor=1.5 failed, so points are compared with their controls",
        "report.contrasts: 'factor=1.2' and 'factor=1.5': 1 pair without results",
    ]


def test_tables_have_the_baseline_and_the_contrasts(configure: Configure) -> None:
    report = ReportConfig(baseline="factor=1.5", contrasts=[["factor=1.2", "factor=1.5"]])
    compared = compare(factors(configure), 0.95, (), report=report)
    results = tables(compared, pd.DataFrame(), sweep_id="", name="", command="", confidence=0.95)
    assert results.points["baseline"].tolist()[0] == 2 and math.isnan(results.points["baseline"].tolist()[2])
    assert results.points[f"{EXACT}/gained"].tolist()[:2] == [3, 5] and f"{CHRF}/gained" not in results.points
    [row] = results.contrasts[results.contrasts["measure"] == EXACT].to_dict("records")
    assert (row["first"], row["second"], row["gained"], row["lost"], row["n"]) == ("factor=1.2", "factor=1.5", 5, 2, 10)
    assert results.contrasts["gained"].isna().tolist() == [False, True]


def test_the_section_does_not_change_which_sweep_it_is(
    configure: Configure, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from conftest import compose

    ids = []
    for more in ([], ["report.baseline='factor=1.2'", "+report.tolerance=0.1"]):
        monkeypatch.setattr("sys.argv", ["sweep", "transform=scale", *more])
        ids.append(sweep_folder.make_sweep_id(compose(tiny, tmp_path, report={"baseline": len(more)}), "folder"))
    assert ids[0] == ids[1]


def test_a_sweep_is_reported_again_with_another_baseline(sweep_here: Callable[..., str], tmp_path: Path) -> None:
    command = ["transform.factor=1.5,4"]
    assert "Baseline" not in sweep_here(*command)
    refused = sweep_here(*command, "report.baseline=factor=9", code=2)
    assert "report.baseline: there is no point 'factor=9'" in refused and "Available: control, factor=1.5" in refused
    pair = 'report.contrasts=[["factor=4","factor=1.5"]]'
    for _ in range(2):  # the second time from summary.json
        printed = sweep_here(*command, "report.baseline=factor=1.5", pair)
        assert "Baseline: factor=1.5. Differences" in printed and "factor=4 − factor=1.5" in printed
        assert "* differs from the baseline" in printed
    assert "Nothing to do" in printed
    [folder] = (tmp_path / "outputs" / "sweeps").iterdir()
    page = (folder / "report" / "report.html").read_text()
    assert '<section id="contrasts">' in page and "above or below the baseline" in page
    assert (folder / "report" / "contrasts.csv").read_text().startswith("first,second,measure,difference")
    assert "Baseline" not in sweep_here(*command)
    assert not (folder / "report" / "contrasts.csv").exists()
