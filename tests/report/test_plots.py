"""The plots for papers."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest
from matplotlib.colors import to_hex
from synthetic import make

from sweep.report import plots
from sweep.report.dose_response import responses
from sweep.report.figures import BREAKING, EFFECTIVE


def test_one_plot_for_each_axis_and_group(tmp_path: Path) -> None:
    results = make()
    renamed = results.points.rename(columns={"axis/transform.factor": "axis/a/b $x$"})
    object.__setattr__(results, "points", renamed)
    files = plots.write(results, tmp_path / "plots")
    assert [file.name for file in files] == ["quality_a_b_x_.png", "divergence_a_b_x_.png"]
    assert sorted(tmp_path.joinpath("plots").iterdir()) == sorted(files)  # nothing half-written is left
    data = files[0].read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, _ = struct.unpack(">II", data[16:24])
    assert width == pytest.approx(2 * plots.PANEL[0] * 200, abs=2)  # two panels


def test_panels_show_intervals_control_floor_and_doses() -> None:
    found = {r.measure: r for r in responses(make(below=True))}
    figure = plots.draw([found["quality/exact_match"], found["divergence/edit_distance"]], 0.9)
    quality, edit = figure.axes
    assert len(quality.containers) == 1  # a line with error bars
    uprights = [
        (to_hex(line.get_color()).upper(), line.get_xdata()[0])
        for line in quality.lines
        if line.get_label() in ("first effective", "breaking point")
    ]
    said = [(to_hex(text.get_color()).upper(), text.get_text()) for text in quality.texts]
    assert said == [(EFFECTIVE, "first effective 0.5 ↓, 1.4 ↑"), (BREAKING, "breaking point 0.4 ↓, 1.7 ↑")]
    assert sorted(uprights) == [
        (EFFECTIVE, pytest.approx(0.5)),
        (EFFECTIVE, pytest.approx(1.4)),
        (BREAKING, pytest.approx(0.4)),
        (BREAKING, pytest.approx(1.7)),
    ]
    assert any(line.get_label() == "control" and line.get_ydata()[0] == 1 for line in quality.lines)
    band = next(patch for patch in edit.patches if patch.get_label() == "noise floor")
    assert (band.get_y(), band.get_height()) == (0, pytest.approx(0.02))
    assert quality.get_xlabel() == "factor" and quality.get_ylabel() == "exact match\nmean [90%]"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(labels) == len(set(labels)) and set(labels) == {
        "mean",
        "control",
        "noise floor",
        "first effective",
        "breaking point",
    }


def test_without_responses_no_plot_is_written(tmp_path: Path) -> None:
    assert plots.write(make(factors=1), tmp_path / "plots") == []
    assert not (tmp_path / "plots").exists()


def test_pyplot_is_not_used(tmp_path: Path) -> None:
    sys.modules.pop("matplotlib.pyplot", None)
    plots.write(make(prompts=2), tmp_path)
    assert "matplotlib.pyplot" not in sys.modules
