"""Which measures are shown first, and what is said of marks that cannot come."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from compared_points import Configure, compared, result, write_own_plugin
from omegaconf import OmegaConf

from conftest import compose
from sweep.app import sweep_folder
from sweep.config import loader
from sweep.config.scoring_config import ScoringConfig
from sweep.errors import ConfigError
from sweep.points.fingerprint import Fingerprints
from sweep.points.point import Point
from sweep.report import html
from sweep.report.comparison import compare
from sweep.report.live import summary_line
from sweep.report.matrix import Matrix
from sweep.report.measures import main_measures
from sweep.report.overview import points_table
from sweep.report.results import tables
from sweep.report.run_summary import power_notes, ranking_measure, response_findings, shown_measures
from sweep.scoring.significance import mcnemar_p, permutation_p, smallest_p


@pytest.fixture
def own_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_own_plugin(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("quality", "primary", "expected"),
    [
        (["exact_match", "contains"], None, ["quality/exact_match"]),
        (["chrf", "a.b.mine", "c:other"], None, ["quality/chrf", "quality/mine", "quality/other"]),
        (["chrf", "a.b.mine"], "mine", ["quality/mine"]),
        (["chrf", "a.b.mine"], "a.b.mine", ["quality/mine"]),
        (["quality/chrf", "bleu"], "quality/bleu", ["quality/bleu"]),
        (["chrf"], "divergence/token_agreement", ["divergence/token_agreement"]),
        ([], None, []),
    ],
)
def test_primary_and_custom_measures_are_first(quality: list[str], primary: str | None, expected: list[str]) -> None:
    assert ScoringConfig(quality=quality, primary=primary).first == expected


def test_a_primary_measure_that_is_not_measured_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"scoring\.primary: 'chfr' is not a measure .* Did you mean 'chrf'\? Available: chrf, div"
    ):
        ScoringConfig(quality=["chrf"], primary="chfr")
    with pytest.raises(ConfigError, match=r"scoring\.primary: 'divergence/kl' is not a measure"):
        ScoringConfig(primary="divergence/kl")


def test_the_primary_measure_decides_only_what_is_shown(
    configure: Configure, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = [Point(configure(scoring={"primary": primary})) for primary in (None, "contains")]
    first, second = Fingerprints().identify(points)
    assert first == second
    ids = []
    for argument in ("transform=scale", "scoring.primary=contains"):
        monkeypatch.setattr("sys.argv", ["sweep", "transform=scale", *([argument] if "primary" in argument else [])])
        base = compose(tiny, tmp_path, scoring={"primary": argument.partition("primary=")[2] or None})
        ids.append(sweep_folder.make_sweep_id(base, "folder"))
    assert ids[0] == ids[1]
    monkeypatch.setattr("sys.argv", ["sweep", "transform=scale", "scoring.confidence=0.9"])
    assert sweep_folder.make_sweep_id(OmegaConf.create(base), "folder") != ids[0]
    assert loader.parse(compose(tiny, tmp_path, scoring={"primary": "contains"})).scoring.primary == "contains"


@pytest.mark.usefixtures("own_plugin")
def test_first_measures_are_in_live_lines_thresholds_and_the_first_view(configure: Configure) -> None:
    comparison = compared(configure)
    assert summary_line(comparison.results[1]) == "factor=2: chrf 0, politeness 0, token agreement 1"
    assert ranking_measure(comparison) == "quality/chrf"
    assert shown_measures(comparison)[:2] == ["quality/chrf", "quality/politeness"]
    assert [line.split(": differs")[0] for line in response_findings(comparison)] == [
        "quality/chrf",
        "quality/politeness",
    ]
    rows = {
        "point": [0, 1],
        "prompt_id": "q",
        "prompt": "?",
        "sample": 0,
        "generation": "g",
        "reference": "",
        "role": "x",
    }
    scores = {name: [1.0, 0.0] for name in comparison.results[0].values}
    results = tables(
        comparison,
        pd.DataFrame(rows | {"finish_reason": "stop"} | scores),
        sweep_id="",
        name="",
        command="",
        confidence=0.95,
    )
    columns = points_table(results).columns
    assert [column.measure for column in columns if column.main][:2] == ["quality/chrf", "quality/politeness"]
    shown = [score["name"] for score in Matrix.of(results, [0, 1, 2]).scores if score["shown"]]
    assert shown == ["quality/chrf", "quality/politeness", "divergence/token_agreement"]
    assert '"main":["quality/chrf","quality/politeness","divergence/token_agreement"]' in html.render(results)


def test_all_first_measures_are_shown_and_others_fill_up() -> None:
    names = ["quality/exact_match", "quality/contains", "quality/a", "quality/b", "quality/c"]
    assert main_measures(names, ["quality"]) == ["quality/exact_match", "quality/contains"]
    assert main_measures(names, ["quality"], ["quality/b"]) == ["quality/b", "quality/exact_match"]
    assert main_measures(names, ["quality"], ["quality/c", "quality/a", "quality/b"]) == [
        "quality/c",
        "quality/a",
        "quality/b",
    ]


@pytest.mark.parametrize("prompts", [1, 2, 6, 12, 20])
def test_no_test_is_below_the_smallest_p(prompts: int) -> None:
    assert permutation_p(np.full((1, prompts), 0.5))[0] == pytest.approx(smallest_p(prompts))
    assert mcnemar_p(np.zeros((1, prompts)), np.ones(prompts))[0] == pytest.approx(smallest_p(prompts))
    assert smallest_p(0) == 1


@pytest.mark.usefixtures("own_plugin")
def test_impossible_significance_is_explained(configure: Configure) -> None:
    """Six comparisons of quality need p < 0.0083 each; 2^-7 is the first power of two below that."""
    few = compared(configure, prompts=5)
    assert not few.differences[1]["quality/chrf"].significant
    assert list(power_notes(few)) == [
        "quality: too few prompts (5): the smallest possible p is 0.062, but p < 0.0083 is required for a "
        "single difference in 6 comparisons. Use at least 8 prompts.",
        "divergence: too few prompts (5): the smallest possible p is 0.062, but p < 0.025 is required for a "
        "single difference in 2 comparisons. Use at least 7 prompts.",
    ]
    # With six prompts all six differences are significant together: nothing is to be explained of quality.
    six = compared(configure, prompts=6)
    assert six.differences[1]["quality/chrf"].significant
    assert [line.split(":")[0] for line in power_notes(six)] == ["divergence"]
    assert list(power_notes(compared(configure, prompts=8))) == []


def test_prompts_that_the_control_fails_cannot_be_lost(configure: Configure) -> None:
    control = Point(configure(), is_control=True)
    point = Point(configure(transform={"name": "scale", "factor": 2.0}), (("transform.factor", 2.0),))
    values = {"quality/exact_match": [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]}
    lost = {"quality/exact_match": [0.0] * 7}
    comparison = compare([result(0, control, values), result(1, point, lost)], 0.95)
    assert list(power_notes(comparison)) == [
        "quality: too few prompts (7, of which at most 4 can change in one direction): the smallest possible p is "
        "0.12, but p < 0.05 is required for a single difference in 1 comparison. Use at least 6 prompts whose result "
        "can change in one direction."
    ]
