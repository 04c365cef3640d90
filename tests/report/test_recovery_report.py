"""Recovery against utility, from the command line to terminal and report."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from shards import arguments

CommandLine = Callable[..., tuple[int, str, str]]
RECOVERY = "scoring.recovery=[nearest,rotation,linear]"


def points_of(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "report" / "points.csv").set_index("name")


@pytest.fixture
def recover(tiny: Path, tmp_path: Path, command_line: CommandLine) -> Callable[..., tuple[Path, str]]:
    """Run a sweep on the scripted engine; return its folder and what it printed."""

    def run(*overrides: str) -> tuple[Path, str]:
        shared = [word for word in arguments(tiny, tmp_path, *overrides) if not word.startswith("transform.factor=")]
        code, out, err = command_line(*shared)
        assert code == 0, out + err
        [folder] = (tmp_path / "sweeps").iterdir()
        return folder, out + err

    return run


def test_recovery_falls_with_noise(recover: Callable[..., tuple[Path, str]]) -> None:
    folder, printed = recover(RECOVERY, "transform=noise", "transform.sigma=0.001,50")
    table = points_of(folder)
    recovered = table["perturbation/recovered_nearest"]
    assert recovered["control"] == recovered["sigma=0.001"] == 1.0
    assert recovered["sigma=50"] < 0.5
    assert table["perturbation/recovered_rotation"].notna().to_list() == [True, False, False]
    page = (folder / "report" / "report.html").read_text("utf-8")
    assert "Recovery against utility" in page and "Random rows in place of the rows of control: nearest" in page
    [data] = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    [figure] = [figure for figure in json.loads(data)["figures"] if figure["axis"] == "recovery"]
    assert [trace["name"] for trace in figure["data"]] == ["nearest", "rotation", "linear"]
    assert figure["data"][0]["x"] == recovered.to_list()
    assert (folder / "report" / "plots" / "recovery.png").stat().st_size > 5000
    assert "recovered nearest" in printed


def test_a_point_without_recovery_has_a_reason(recover: Callable[..., tuple[Path, str]]) -> None:
    folder, printed = recover(RECOVERY, "transform=drop_rows", "transform.p=0.5", "transform.span=all")
    reason = "No recovery of tokens where the transform changes the number of rows: p=0.5"
    assert reason in " ".join(printed.split())
    assert reason in (folder / "report" / "report.html").read_text("utf-8")
    points = points_of(folder)
    assert points["perturbation/recovered_nearest"].isna().to_list() == [False, True]


def test_without_the_key_nothing_is_shown(recover: Callable[..., tuple[Path, str]]) -> None:
    folder, printed = recover("transform=noise", "transform.sigma=1")
    assert "recover" not in printed.lower()
    assert "Recovery against utility" not in (folder / "report" / "report.html").read_text("utf-8")
    assert not (folder / "report" / "plots" / "recovery.png").exists()


def test_a_linear_attack_on_one_prompt_is_refused(
    recover: Callable[..., tuple[Path, str]], tiny: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    overrides = arguments(tiny, tmp_path, "scoring.recovery=[linear]", "prompts.items=[Hi]", "transform.factor=2")
    code, _, err = command_line(*overrides)
    assert code == 2 and "linear needs at least 2 prompts" in err
