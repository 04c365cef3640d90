"""Series of zipped keys: one for each group, along its first numeric key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from sweep.report.series import TreatedPoint, find_series

FACTOR, TOKENS = "transform.factor", "sampling.max_tokens"


def entries(*rows: dict[str, float | str], control: int | None = 0) -> list[TreatedPoint]:
    return [TreatedPoint(index + 1, row, control) for index, row in enumerate(rows)]


def test_a_group_is_one_series() -> None:
    points = [
        TreatedPoint(1, {FACTOR: 1.2, TOKENS: 32.0}, 0),
        TreatedPoint(3, {FACTOR: 1.5, TOKENS: 64.0}, 2),
    ]
    assert [(one.axis, one.doses) for one in find_series(points)] == [
        (FACTOR, (1.2,)),
        (FACTOR, (1.5,)),
        (TOKENS, (32.0,)),
        (TOKENS, (64.0,)),
    ]
    [series] = find_series(points, [[FACTOR, TOKENS]])
    assert (series.axis, series.doses, series.points) == (FACTOR, (1.2, 1.5), (1, 3))
    assert (series.control, series.zipped, series.label) == (None, (TOKENS,), "(with max_tokens)")


def test_keys_of_the_transform_share_a_control() -> None:
    rows = [{"transform.sigma": 0.5, "transform.unit": "rms"}, {"transform.sigma": 1.0, "transform.unit": "std"}]
    [series] = find_series(entries(*rows), [["transform.unit", "transform.sigma"]])
    assert (series.axis, series.control, series.zipped) == ("transform.sigma", 0, ("transform.unit",))


def test_other_keys_still_separate_series() -> None:
    rows = [{FACTOR: f, TOKENS: t, "model": m} for m in ("a", "b") for f, t in ((1.0, 4.0), (2.0, 8.0))]
    assert [(one.name, one.doses) for one in find_series(entries(*rows), [[FACTOR, TOKENS]])] == [
        ("model=a", (1.0, 2.0)),
        ("model=b", (1.0, 2.0)),
    ]


def test_the_first_key_that_tells_the_points_apart_is_the_axis() -> None:
    rows = [{FACTOR: 1.0, TOKENS: 4.0}, {FACTOR: 1.0, TOKENS: 8.0}, {FACTOR: 2.0, TOKENS: 16.0}]
    assert [one.axis for one in find_series(entries(*rows), [[FACTOR, TOKENS]])] == [TOKENS]


def test_a_sweep_with_zipped_keys_has_one_line_in_its_plots(
    command_line: Callable[..., tuple[int, str, str]], tiny: Path, tmp_path: Path
) -> None:
    arguments = ["plugins=[sweep.testing.scripted]", "engine=scripted", f"model.id={tiny}", "prompts.items=[Hi,Ho,Hey]"]
    arguments += ["transform=noise", "transform.sigma=0.5,1,2", "transform.unit=table_std,row_rms,absolute"]
    code, out, err = command_line(*arguments, "sweep.zip=transform.sigma+transform.unit", f"sweep.dir={tmp_path}")
    assert code == 0, out + err
    [table] = tmp_path.glob("sweeps/*/report/responses.csv")
    responses = pd.read_csv(table)
    assert set(responses["axis"]) == {"transform.sigma"} and responses["series"].isna().all()
    code, again, err = command_line(*arguments, f"sweep.dir={tmp_path}", "sweep.dry_run=true")
    assert code == 0, err
    assert "10 points" in again  # without the zip it is another sweep: all combinations and the control
