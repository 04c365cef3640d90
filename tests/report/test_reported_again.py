"""Samples and margins of a whole sweep: pass@k is published, and another margin only writes the report again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from conftest import compose
from sweep.app import sweep_folder


def test_another_margin_scores_no_point_again(sweep_here: Callable[..., str], tmp_path: Path) -> None:
    arguments = ("transform.factor=1.5,4", "sampling.n=3", "sampling.temperature=1", "scoring.pass_at=[2,3]")
    items = "prompts.items=[{prompt: Hi, reference: a}, {prompt: Ho, reference: [b, c]}, {prompt: He}]"
    first = sweep_here(*arguments, items)
    [folder] = (tmp_path / "outputs" / "sweeps").iterdir()
    points = pd.read_csv(folder / "report" / "points.csv")
    assert points["quality/pass_at_3/n"].tolist() == [2, 2, 2]
    assert {"quality/pass_at_2", "quality/majority_vote/ci_low"} <= set(points.columns)
    assert "≈" not in first
    scored = {path.name: path.stat().st_mtime_ns for path in (folder / "points").iterdir()}
    again = sweep_here(*arguments, items, "scoring.equivalence={exact_match: 0.3}")
    assert {path.name: path.stat().st_mtime_ns for path in (folder / "points").iterdir()} == scored
    assert list((tmp_path / "outputs" / "sweeps").iterdir()) == [folder]
    rows = pd.read_csv(folder / "report" / "rows.csv")
    assert set(rows["quality/exact_match/equivalence/margin"].dropna()) == {0.3}
    assert "quality/contains/equivalence" not in rows and "undecided" in again
    assert "Nothing to do" in sweep_here(*arguments, items, "scoring.equivalence={exact_match: 0.3}")


def test_a_sweep_keeps_its_id_with_new_keys_and_other_margins(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sweep_id(scoring: dict[str, Any], *arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["sweep", "transform=scale", *arguments])
        return sweep_folder.make_sweep_id(compose(tiny, tmp_path, scoring=scoring), "folder")

    earlier = sweep_id({"confidence": 0.95, "primary": None})  # as a version without these keys composed it
    defaults = {"confidence": 0.95, "primary": None, "correct": None, "pass_at": None, "equivalence": None}
    assert sweep_id(defaults) == earlier
    assert sweep_id(defaults | {"equivalence": 0.05}, "scoring.equivalence=0.05") == earlier
    assert sweep_id(defaults | {"equivalence": {"chrf": 1}}, "+scoring.equivalence.chrf=1") == earlier
    assert sweep_id(defaults | {"pass_at": [2]}, "scoring.pass_at=[2]") != earlier
