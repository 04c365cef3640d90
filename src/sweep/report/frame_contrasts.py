"""Contrasts of generations in DataFrames: points of one sweep or of two, paired by prompt id."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sweep.report.measures import measures as measure_columns
from sweep.report.paired_differences import DifferenceTest, adjust_for_multiplicity, table_tests
from sweep.scoring.registry import spec

NEEDED = ("point", "name", "prompt_id")
COLUMNS = (
    *("first", "second", "measure", "difference", "difference/ci_low", "difference/ci_high", "p", "q"),
    *("significant", "gained", "lost", "detectable", "n", "only_first", "only_second"),
)


@dataclass(frozen=True, slots=True)
class _FramePoint:
    """A point's name, its values (one row per prompt id, one column per measure), and whether it is a control."""

    name: str
    values: pd.DataFrame
    digests: pd.Series
    is_control: bool


def frame_contrasts(
    first: pd.DataFrame, second: pd.DataFrame, measures: Sequence[str] | None, confidence: float
) -> pd.DataFrame:
    """Return the differences between points of two frames of generations; see `sweep.contrast`."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}.")
    names = _shared_measures(first, second, measures)
    tests: dict[tuple[int, str], DifferenceTest] = {}
    labels: list[tuple[str, str, int, int]] = []
    for one, other in _pairs(_points(first, "first", names), _points(second, "second", names)):
        shared = one.values.index.intersection(other.values.index, sort=False)
        if not len(shared):
            raise ValueError(
                f"{one.name!r} and {other.name!r} have no prompt id in common: pairs are made by prompt_id. "
                f"First ids: {list(one.values.index[:3])} and {list(other.values.index[:3])}."
            )
        _warn_of_other_contents(one, other, shared)
        for name in names:
            if one.is_control and other.is_control and spec(name).group.floor:
                continue  # two noise floors
            table, against = (point.values.loc[shared, [name]].to_numpy(float).T for point in (one, other))
            for _, test in table_tests(name, table, against, confidence):
                tests[len(labels), name] = test
        labels.append((one.name, other.name, len(one.values) - len(shared), len(other.values) - len(shared)))
    rows = []
    for pair, differences in sorted(adjust_for_multiplicity(tests).items()):
        one_name, other_name, *unpaired = labels[pair]
        for name, d in differences.items():
            numbers = (d.mean, d.ci_low, d.ci_high, d.p, d.q, d.significant, d.gained, d.lost, d.detectable)
            rows.append((one_name, other_name, name, *numbers, tests[pair, name].prompts, *unpaired))
    return pd.DataFrame(rows, columns=COLUMNS).astype({"gained": "Int64", "lost": "Int64"})


def _shared_measures(first: pd.DataFrame, second: pd.DataFrame, measures: Sequence[str] | None) -> list[str]:
    for which, frame in (("first", first), ("second", second)):
        missing = [column for column in NEEDED if column not in frame]
        if missing or frame.empty:
            lacks = f"has no column {missing[0]!r}" if missing else "has no rows"
            raise ValueError(f"The {which} frame {lacks}. Pass generations of sweep.load(), or some of their rows.")
    shared = [name for name in measure_columns(first.columns) if name in second.columns and spec(name).group.tested]
    full = {name.partition("/")[2]: name for name in shared if name.startswith("quality/")}
    chosen = shared if measures is None else [full.get(name, name) for name in measures]
    for name in chosen:
        if name not in shared:
            raise ValueError(f"{name!r} is not a tested measure of both frames. Available: {', '.join(shared)}.")
    if not shared:
        raise ValueError("The frames have no tested measure in common.")
    return chosen


def _points(frame: pd.DataFrame, which: str, names: Sequence[str]) -> list[_FramePoint]:
    points = []
    for _, rows in frame.groupby("point", sort=True):
        ids = list(dict.fromkeys(rows["prompt_id"]))
        by_prompt = rows.groupby("prompt_id", sort=False)
        values = pd.DataFrame({name: by_prompt[name].agg(spec(name).aggregate) for name in names}).loc[ids]
        digests = by_prompt["prompt_digest"].first() if "prompt_digest" in rows else pd.Series(dtype=object)
        if "sample" in rows and rows.duplicated(["prompt_id", "sample"]).any():
            raise ValueError(
                f"The {which} frame has several rows for one point, prompt and sample. Do not join frames of several "
                "sweeps."
            )
        is_control = "role" in rows and rows["role"].iloc[0] == "control"
        points.append(_FramePoint(str(rows["name"].iloc[0]), values, digests, is_control))
    return points


def _pairs(first: list[_FramePoint], second: list[_FramePoint]) -> Iterator[tuple[_FramePoint, _FramePoint]]:
    if 1 in (len(first), len(second)):
        yield from ((one, other) for one in first for other in second)
        return
    for which, points in (("first", first), ("second", second)):
        twice = [name for name, count in Counter(point.name for point in points).items() if count > 1]
        if twice:
            raise ValueError(f"The {which} frame has several points named {twice[0]!r}. Select one point on a side.")
    by_name = {point.name: point for point in second}
    shared = [(one, by_name[one.name]) for one in first if one.name in by_name]
    if not shared:
        names = [", ".join(repr(point.name) for point in points[:4]) for points in (first, second)]
        raise ValueError(
            f"No point has the same name in both frames ({names[0]}; {names[1]}). Select one point on a side, such as "
            'answers[answers["name"] == "control"].'
        )
    yield from shared


def _warn_of_other_contents(one: _FramePoint, other: _FramePoint, shared: pd.Index) -> None:
    if one.digests.empty or other.digests.empty:
        return
    different = int(np.sum(one.digests.loc[shared].to_numpy() != other.digests.loc[shared].to_numpy()))
    if different:
        warnings.warn(
            f"{different} of {len(shared)} prompts have the same id but another content in {one.name!r} and "
            f"{other.name!r}. They are compared all the same.",
            stacklevel=4,
        )
