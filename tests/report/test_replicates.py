"""Points that differ in their seeds alone: one row, whose unit is the prompt."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from sweep.config.schema import SweepConfig
from sweep.console.terminal import Terminal
from sweep.planning.results import PointResult
from sweep.points.point import Point
from sweep.report import files, html
from sweep.report.comparison import Comparison, compare
from sweep.report.dose_response import responses
from sweep.report.marks import detectable_text
from sweep.report.overview import points_table
from sweep.report.paired_differences import Difference
from sweep.report.replicates import present_mean
from sweep.report.results import SweepResults, tables
from sweep.report.run_summary import describe, response_findings
from sweep.report.terminal import SweepOutcome, print_report
from sweep.scoring.measures import summarise_scores
from sweep.scoring.significance import benjamini_hochberg, p_values
from sweep.scoring.statistics import bootstrap_bca, paired_difference

Configure = Callable[..., SweepConfig]
PROMPTS, SEEDS = 30, 3
QUALITY, AGREEMENT = "quality/token_f1", "divergence/token_agreement"


def result(index: int, point: Point, values: dict[str, np.ndarray], error: str | None = None) -> PointResult:
    return PointResult(index, point, summarise_scores(values, 0.95), values, error)


def noisy(configure: Configure, failed: int | None = None, margin: float = math.nan) -> Comparison:
    """Noise of three strengths with three seeds each; point 1 is sigma=0.5 with the first seed."""
    draw = np.random.default_rng(0)
    clean = draw.uniform(0.4, 0.9, PROMPTS)
    results = [
        result(0, Point(configure(), is_control=True), {QUALITY: clean, AGREEMENT: draw.uniform(0.95, 1, PROMPTS)})
    ]
    for sigma, loss in ((0.5, 0.0), (1.0, 0.2), (2.0, 0.4)):
        for seed in range(SEEDS):
            config = configure(transform={"name": "noise", "sigma": sigma}, seed=seed)
            point = Point(config, (("transform.sigma", sigma), ("seed", float(seed))))
            values = {
                QUALITY: clean - loss + draw.normal(0.02 * seed, 0.1, PROMPTS),
                AGREEMENT: draw.uniform(0.9 - loss, 1 - loss, PROMPTS),
            }
            index = len(results)
            results.append(result(index, point, {} if index == failed else values, "died" if index == failed else None))
    return compare(results, 0.95, margin=lambda measure: margin)


def laid_out(comparison: Comparison) -> SweepResults:
    return tables(comparison, pd.DataFrame(), sweep_id="id", name="", command="sweep", confidence=0.95)


def by_seed(comparison: Comparison, first: int, measure: str = QUALITY) -> np.ndarray:
    return np.stack([comparison.results[first + seed].values[measure] for seed in range(SEEDS)])


def test_a_row_is_the_mean_over_prompts_of_the_mean_over_seeds(configure: Configure) -> None:
    comparison = noisy(configure)
    assert [row.name for row in comparison.rows] == [
        "control",
        "sigma=0.5 (3 seeds)",
        "sigma=1 (3 seeds)",
        "sigma=2 (3 seeds)",
    ]
    row = comparison.rows[2]
    assert ([member.index for member in row.members], row.index, row.control) == ([4, 5, 6], 4, 0)
    assert row.seeds == "seed=0,1,2"
    table = by_seed(comparison, 4)
    alone = bootstrap_bca(table.mean(axis=0)[None])
    mean = row.result.summaries[QUALITY]
    assert (mean.mean, mean.n) == (pytest.approx(table.mean()), PROMPTS)
    assert (mean.ci_low, mean.ci_high) == (pytest.approx(alone.ci_low[0]), pytest.approx(alone.ci_high[0]))
    assert row.seed_sd[QUALITY] == pytest.approx(np.std(table.mean(axis=1), ddof=1))


def test_rows_are_tested_over_prompts_and_corrected_over_rows(configure: Configure) -> None:
    comparison = noisy(configure)
    control = comparison.results[0].values[QUALITY]
    pooled = np.stack([by_seed(comparison, first).mean(axis=0) for first in (1, 4, 7)])
    expected, p = paired_difference(pooled, control), p_values(pooled, control, permutations=1999)
    found = [comparison.row_differences[first][QUALITY] for first in (1, 4, 7)]
    assert [d.mean for d in found] == pytest.approx(expected.mean.tolist())
    assert [d.ci_low for d in found] == pytest.approx(expected.ci_low.tolist())
    assert [d.p for d in found] == pytest.approx(p.tolist())
    assert [d.q for d in found] == pytest.approx(benjamini_hochberg(p).tolist())
    assert [d.significant for d in found] == [False, True, True]
    assert set(comparison.differences) == set(range(1, 10))  # each point keeps its own
    assert comparison.limits["quality"].tests == 3


def test_thresholds_and_means_of_a_series_are_those_of_the_rows(configure: Configure) -> None:
    comparison = noisy(configure)
    [one] = comparison.series
    assert (one.series.pooled, one.series.points) == ("seed=0,1,2", tuple(range(1, 10)))
    means = [(row.result.summaries[QUALITY].mean, row.result.summaries[QUALITY].ci_low) for row in comparison.rows[1:]]
    assert [(mean, low) for _, mean, low, _ in one.means[QUALITY]] == means
    response = one.responses[QUALITY, "above"]
    assert (response.neutral, response.first_effective) == (0, 1.0)
    floor = comparison.results[0].values[AGREEMENT].mean()
    assert one.responses[AGREEMENT, "above"].floor == pytest.approx(floor)


def test_a_failed_seed_is_named_and_left_out(configure: Configure) -> None:
    comparison = noisy(configure, failed=5)
    row = comparison.rows[2]
    assert row.name == "sigma=1 (2 of 3 seeds)" and row.result.error is None
    two = by_seed(noisy(configure), 4)[[0, 2]]
    assert row.result.summaries[QUALITY].mean == pytest.approx(two.mean())
    assert comparison.row_differences[4][QUALITY].mean < -0.1


def sampled(configure: Configure, missing: bool = False) -> Comparison:
    """Two sampling seeds, each with its own control: one control knows all, the other one half of it."""
    results: list[PointResult] = []
    for seed, right in ((0, 1.0), (1, 0.5)):
        clean = np.where(np.arange(PROMPTS) % 2 == 0, right, 0.2)
        axes = (("sampling.seed", float(seed)),)
        sampling = {"seed": seed, "temperature": 1.0}
        control = Point(configure(sampling=sampling), axes, is_control=True)
        floor = np.full(PROMPTS, 0.9 - 0.1 * seed)
        results.append(result(len(results), control, {QUALITY: clean, AGREEMENT: floor}))
        for factor, loss in ((1.5, 0.0), (2.0, 0.15)):
            config = configure(sampling=sampling, transform={"name": "scale", "factor": factor})
            point = Point(config, (*axes, ("transform.factor", factor)))
            gone = missing and seed == 1 and factor == 2.0
            values = {} if gone else {QUALITY: clean - loss, AGREEMENT: floor - loss}
            results.append(result(len(results), point, values, "died" if gone else None))
    return compare(results, 0.95)


def test_controls_of_sampling_seeds_are_pooled_too(configure: Configure) -> None:
    comparison = sampled(configure)
    assert [row.name for row in comparison.rows] == ["control (2 seeds)", "factor=1.5 (2 seeds)", "factor=2 (2 seeds)"]
    control, same, worse = comparison.rows
    assert (same.control, [(one.index, other.index) for one, other in same.pairs]) == (0, [(1, 0), (4, 3)])
    assert control.result.summaries[QUALITY].mean == pytest.approx((0.6 + 0.35) / 2)
    assert control.seed_sd[QUALITY] == pytest.approx(0.25 / math.sqrt(2))
    assert comparison.row_differences[same.index][QUALITY].mean == pytest.approx(0, abs=1e-12)
    assert comparison.row_differences[worse.index][QUALITY].mean == pytest.approx(-0.15)
    [one] = comparison.series
    assert (one.series.pooled, one.series.control) == ("seed=0,1", 0)
    response = one.responses[AGREEMENT, "above"]
    assert response.floor == pytest.approx(0.85) and response.first_effective == 2.0
    [line] = next(plot for plot in responses(laid_out(comparison)) if plot.measure == QUALITY).lines
    assert line.control == pytest.approx(0.475) and line.control_name == "control (2 seeds)"
    assert line.doses == [1.5, 2.0] and len(line.markers) == 4


def test_a_row_without_a_seed_is_compared_with_the_controls_of_its_own_seeds(configure: Configure) -> None:
    """Seed 1, whose control is worse, failed at factor 2. The loss there is still 0.15, not that and the seeds'."""
    comparison = sampled(configure, missing=True)
    worse = comparison.rows[2]
    assert worse.name == "factor=2 (1 of 2 seeds)" and QUALITY not in worse.seed_sd
    assert comparison.row_differences[worse.index][QUALITY].mean == pytest.approx(-0.15)
    [one] = comparison.series
    assert one.responses[QUALITY, "above"].first_effective == 2.0


def printed(comparison: Comparison, config: SweepConfig, folder: Path) -> str:
    text, terminal = io.StringIO(), Terminal()
    terminal._out = Console(file=text, width=250, highlight=False)
    tracker: Any = SimpleNamespace(links=None, row_by_row_url=lambda: None)
    results = {str(one.index): one for one in comparison.results}
    print_report(terminal, SweepOutcome(folder, results, comparison, tracker, False), config)
    return text.getvalue()


def test_one_row_per_strength_is_printed_stored_and_described(configure: Configure, tmp_path: Path) -> None:
    comparison = noisy(configure)
    config = configure(scoring={"primary": "token_f1"})
    object.__setattr__(comparison, "first", config.scoring.first)
    text = printed(comparison, config, tmp_path)
    spread = comparison.rows[2].seed_sd[QUALITY]
    assert "10 points in 4 rows; mean over prompts and seeds [95% interval]" in text
    [line] = [line for line in text.splitlines() if "sigma=1 (3 seeds)" in line and "│" in line]
    assert f"] ±{spread:.2g} *" in line and "seed=0" not in text.replace("seed=0,1,2", "")
    effect = comparison.row_differences[1][QUALITY].detectable
    null = f"{QUALITY}: no significant difference at sigma=0.5 (3 seeds). Smallest difference that the prompts could show: "
    assert f"{null}{effect:.2g} (one test at p < 0.05, 80 % power)." in text
    stored = json.loads((tmp_path / "summary.json").read_text())
    assert [row[0] for row in stored["rows"]] == [row.name for row in comparison.rows]
    assert any(finding.startswith(null) for finding in stored["findings"])
    note = describe(comparison, "sweep", {})
    assert "| sigma=1 (3 seeds) |" in note and f"±{spread:.2g} \\*" not in note and f"±{spread:.2g} *" in note
    assert "standard deviation between the seeds' means" in note and "80 % power" in note
    assert "(pooled over seed=0,1,2): " in next(iter(response_findings(comparison)))


def test_single_points_are_in_the_page_and_the_tables(configure: Configure, tmp_path: Path) -> None:
    results = laid_out(noisy(configure))
    assert results.points["name"].tolist()[1:3] == ["sigma=0.5, seed=0", "sigma=0.5, seed=1"]
    assert results.rows["points"].tolist() == ["0", "1 2 3", "4 5 6", "7 8 9"]
    rows = points_table(results).rows
    assert [(row.name, row.single) for row in rows[:5]] == [
        ("control", False),
        ("sigma=0.5 (3 seeds)", False),
        ("sigma=0.5, seed=0", True),
        ("sigma=0.5, seed=1", True),
        ("sigma=0.5, seed=2", True),
    ]
    comparison = noisy(configure)
    object.__setattr__(comparison, "first", [QUALITY])
    page = html.render(laid_out(comparison))
    assert page.count('<tr class="single">') == 9 and 'id="singles"' in page and "80 % power" in page
    files.write(results, tmp_path)
    written = pd.read_csv(tmp_path / "rows.csv")
    assert written[f"{QUALITY}/seed_sd"].notna().tolist() == [False, True, True, True]
    assert written[f"{QUALITY}/detectable"].tolist()[1:] == pytest.approx(
        [results.rows[f"{QUALITY}/detectable"][i] for i in (1, 2, 3)]
    )
    assert len(pd.read_csv(tmp_path / "points.csv")) == 10


def test_verdicts_on_equivalence(configure: Configure, tmp_path: Path) -> None:
    comparison = noisy(configure, margin=0.08)
    verdicts = [comparison.row_differences[first][QUALITY].verdict for first in (1, 4, 7)]
    assert verdicts == ["equivalent", "different", "different"]
    narrow = noisy(configure, margin=0.01).row_differences[1][QUALITY]
    assert (narrow.verdict, narrow.inner_low > -0.08) == ("undecided", True)
    assert noisy(configure).row_differences[1][QUALITY].verdict == ""
    config = configure(scoring={"quality": ["token_f1"], "equivalence": 0.08})
    object.__setattr__(comparison, "first", config.scoring.first)
    text = printed(comparison, config, tmp_path)
    [line] = [line for line in text.splitlines() if "sigma=0.5 (3 seeds)" in line and "│" in line]
    assert " ≈" in line and "≈ equivalent: the 90 % interval of the difference" in text and "within ±0.08." in text
    assert json.loads((tmp_path / "summary.json").read_text())["equivalence"] == 0.08
    results = laid_out(comparison)
    assert results.rows[f"{QUALITY}/equivalence"].tolist()[1:] == verdicts
    hint = points_table(results).rows[1].cells[0].hint
    assert "equivalent (±0.08): [" in hint and "≈" in points_table(results).rows[1].cells[0].mark
    assert f"{QUALITY}/equivalence" not in laid_out(noisy(configure)).rows


def test_too_few_prompts_are_named() -> None:
    def text(*effects: float) -> str:
        return detectable_text([Difference(0.0, 0.0, 0.0, 1.0, 1.0, effect) for effect in effects], 0.95)

    assert text(math.inf, math.inf) == "These prompts are too few to show any difference at p < 0.05."
    assert "show: 0.1 to 0.2 (one test" in text(0.2, 0.1, 0.15) and "show: 0.1 (one" in text(0.1, 0.1)
    assert text(0.2, math.inf).endswith("80 % power). For some, they are too few to show any.")


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 3])
def test_pooled_intervals_cover_the_truth(seeds: int) -> None:
    """Seeds are not prompts: prompts differ by 0.2, the seeds of a prompt by 0.1. Counted as prompts they would not."""
    draw = np.random.default_rng(1)
    covered = {"pooled": 0, "as prompts": 0}
    prompts = 0.5 + draw.normal(0, 0.2, (2000, 1, PROMPTS))
    values = prompts + draw.normal(0, 0.1, (2000, seeds, PROMPTS))
    for kind, table in (("pooled", values.mean(axis=1)), ("as prompts", values.reshape(2000, -1))):
        found = bootstrap_bca(table)
        covered[kind] = np.mean((found.ci_low <= 0.5) & (found.ci_high >= 0.5))
    assert 0.93 <= covered["pooled"] <= 0.97
    assert seeds == 1 or covered["as prompts"] < 0.85


@pytest.mark.parametrize("seeds", range(1, 11))
def test_the_mean_of_equal_values_is_that_value(seeds: int) -> None:
    """Else a change of the last bit in all prompts would be a significant difference."""
    values = np.array([p / q for q in range(1, 16) for p in range(q + 1)])
    assert (present_mean(np.tile(values, (seeds, 1))) == values).all()
    missing = np.vstack([np.full(len(values), np.nan), np.tile(values, (seeds, 1)), np.full(len(values), np.inf)])
    assert (present_mean(missing) == values).all()
    assert np.isnan(present_mean(np.full((seeds, 2), np.nan))).all()
    table = np.random.default_rng(seeds).normal(size=(seeds, 50))
    assert present_mean(table) == pytest.approx(table.mean(axis=0), rel=1e-12)
