"""Replicates: points that differ in their seeds alone, pooled into one row of the tables.

The value of a prompt is the mean over the seeds. The prompt stays the unit: intervals and tests are over prompts, whose
values are means over the same seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sweep.core.values import Floats
from sweep.planning.results import PointResult
from sweep.points.point import Point
from sweep.report.series import is_pooled, seed_names
from sweep.scoring.measures import summarise_scores


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the tables: a point, or the points that differ in their seeds alone.

    Attributes:
        result: the point. For replicates: the index and configuration of the first one, the swept values without
            seeds, and each measure's values as means over seeds, (prompts,), with their summaries over prompts.
        members: the points, in the order of the sweep. Those that failed have no values.
        pairs: each member that is compared with a control or a baseline, and what it is compared with.
        control: index of the control's row; None for a control, and where there is none.
        seeds: the pooled seeds, such as `seed=0,1,2`; empty for a single point.
        seed_sd: by measure, standard deviation of the seeds' means over prompts, with n - 1. Empty for fewer than two
            seeds with values.
    """

    result: PointResult
    members: tuple[PointResult, ...]
    pairs: tuple[tuple[PointResult, PointResult], ...] = ()
    control: int | None = None
    seeds: str = ""
    seed_sd: Mapping[str, float] = field(default_factory=dict)

    @property
    def index(self) -> int:
        """Index of the row: that of its first point."""
        return self.result.index

    @property
    def name(self) -> str:
        """Name of the point; for replicates with the number of seeds, such as `sigma=1 (3 seeds)`."""
        if not self.is_pooled:
            return self.result.point.name
        done = sum(member.error is None for member in self.members)
        count = str(done) if done == len(self.members) else f"{done} of {len(self.members)}"
        return f"{self.result.point.name} ({count} seeds)"

    @property
    def is_pooled(self) -> bool:
        """Whether the row has several points."""
        return len(self.members) > 1

    @property
    def finished(self) -> tuple[PointResult, ...]:
        """The members with values."""
        return tuple(member for member in self.members if member.values)

    def paired_values(self, measure: str, prompts: int) -> tuple[Floats, Floats]:
        """Return the values and the controls' values, (prompts,) each: means over the seeds that have both."""
        values, controls = (value_table(measure, points, prompts) for points in zip(*self.pairs, strict=True))
        if len(values) == 1:
            return values[0], controls[0]
        missing = np.isnan(values) | np.isnan(controls)
        return tuple(present_mean(np.where(missing, math.nan, table)) for table in (values, controls))  # type: ignore[return-value]


def find_rows(results: Sequence[PointResult], controls: Mapping[int, int], confidence: float) -> list[Row]:
    """Return the rows of a sweep, in the order of their first points.

    Points are pooled if they differ in `seed`, `sampling.seed` or a transform's `seed` alone. The controls of points
    that differ in `sampling.seed` are pooled likewise.

    Args:
        results: all points.
        controls: index of the control, by the index of the point.
        confidence: level of the intervals.
    """
    by_index = {result.index: result for result in results}
    groups: dict[Any, list[PointResult]] = {}
    for result in results:
        groups.setdefault(_key(result), []).append(result)
    members = [part for group in groups.values() for part in _poolable(group)]
    first = {member.index: group[0].index for group in members for member in group}
    rows = []
    for group in sorted(members, key=lambda group: group[0].index):
        compared = [member for member in group if member.index in controls]
        row = Row(
            group[0],
            tuple(group),
            tuple((member, by_index[controls[member.index]]) for member in compared),
            first[controls[compared[0].index]] if compared else None,
        )
        rows.append(_pooled(row, confidence) if row.is_pooled else row)
    return rows


def value_table(measure: str, points: Iterable[PointResult], prompts: int) -> Floats:
    """Return the points' values, (points, prompts); NaN marks missing values."""
    empty = np.full(prompts, math.nan)
    return np.stack([result.values.get(measure, empty) for result in points])


def present_mean(table: Floats) -> Floats:
    """Return the mean of each column over the rows that have a finite value; NaN if none has."""
    present = np.isfinite(table)
    count = present.sum(axis=0)
    # Deviations from the first value, so that equal values have exactly themselves as mean: a rounding error in all
    # prompts would count as a change in all of them.
    base = np.where(count > 0, np.take_along_axis(table, present.argmax(axis=0)[None], axis=0)[0], 0.0)
    total = np.where(present, table - base, 0.0).sum(axis=0)
    return np.where(count > 0, base + total / np.maximum(count, 1), math.nan)


def _key(result: PointResult) -> Any:
    point = result.point
    if point.is_control:
        return True, shared_control_key(point)
    if not any(is_pooled(key) for key, _ in point.axes):
        return False, result.index
    fixed = tuple(axis for axis in point.axes if not is_pooled(axis[0]))
    return False, shared_control_key(point), tuple(sorted(fixed))


def shared_control_key(point: Point) -> str:
    """Return the hash that points share whose controls differ in `sampling.seed` alone."""
    sampling = point.config.sampling
    if sampling.seed == 0:
        return point.control_key
    return Point(replace(point.config, sampling=replace(sampling, seed=0))).control_key


def _poolable(group: Sequence[PointResult]) -> list[list[PointResult]]:
    """Return the group as one, or each point alone if their numbers of prompts differ."""
    prompts = {len(values) for result in group for values in result.values.values()}
    return [list(group)] if len(prompts) <= 1 else [[result] for result in group]


def _pooled(row: Row, confidence: float) -> Row:
    axes = tuple(axis for axis in row.result.point.axes if not is_pooled(axis[0]))
    point = replace(row.result.point, axes=axes)
    seeds = seed_names([dict(member.point.axes) for member in row.members])
    if not (finished := row.finished):
        return replace(row, result=replace(row.result, point=point), seeds=seeds)
    names = list(dict.fromkeys(name for member in finished for name in member.values))
    prompts = len(next(iter(finished[0].values.values())))
    tables = {name: value_table(name, finished, prompts) for name in names}
    values = {name: present_mean(table) for name, table in tables.items()}
    result = PointResult(row.index, point, summarise_scores(values, confidence), values, None, finished[0].prompt_ids)
    spread = {name: _spread(table) for name, table in tables.items()} if len(finished) > 1 else {}
    return replace(row, result=result, seeds=seeds, seed_sd=spread)


def _spread(table: Floats) -> float:
    """Return the standard deviation between the seeds' means over prompts."""
    means = present_mean(table.T)
    means = means[~np.isnan(means)]
    return float(means.std(ddof=1)) if len(means) > 1 else math.nan
