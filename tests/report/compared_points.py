"""Points that lose all of what the control has, for tests of what a report shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sweep.config.schema import SweepConfig
from sweep.planning.results import PointResult
from sweep.points.point import Point
from sweep.report.comparison import Comparison, compare
from sweep.scoring.measures import summarise_scores

Configure = Callable[..., SweepConfig]
OWN = {"quality": ["chrf", "exact_match", "mine.politeness"], "primary": None}


def result(index: int, point: Point, values: dict[str, list[float]]) -> PointResult:
    arrays = {name: np.array(own, float) for name, own in values.items()}
    return PointResult(index, point, summarise_scores(arrays, 0.95), arrays)


def compared(configure: Configure, prompts: int = 8, points: int = 2, scoring: Any = OWN) -> Comparison:
    """Points that lose all of what the control has in three measures, but for the divergence."""
    config: dict[str, Any] = {"scoring": scoring, "plugins": ["mine"]}
    names = ("quality/exact_match", "quality/chrf", "quality/politeness", "divergence/token_agreement")
    right = {name: [1.0] * prompts for name in names}
    wrong = {name: [0.0 if name.startswith("quality") else 1.0] * prompts for name in names}
    results = [result(0, Point(configure(**config), is_control=True), right)]
    for i in range(1, points + 1):
        transform = {"name": "scale", "factor": 1.0 + i}
        results.append(
            result(i, Point(configure(transform=transform, **config), (("transform.factor", 1.0 + i),)), wrong)
        )
    return compare(results, 0.95, results[0].point.config.scoring.first)


def write_own_plugin(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the plugin with the measure `mine.politeness` into a folder, and put the folder on the path."""
    (folder / "mine.py").write_text("def politeness(generation): return 1.0\n")
    monkeypatch.syspath_prepend(str(folder))
