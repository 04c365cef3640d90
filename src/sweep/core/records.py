"""What is published of a point, and of the sweep once its points are done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweep.scoring.values import Summary

Value = str | float


@dataclass(frozen=True, slots=True)
class PointRecord:
    """All that is published of one point but its generations.

    Attributes:
        index: its place in the sweep.
        name, role, fingerprint: see `point.Point`.
        started, ended: seconds since the epoch; `ended` differs in each attempt at a point.
        parameters: under their override names.
        axes: swept values; the numbers among them become metrics, which MLflow sorts as numbers.
        summaries: measures over prompts; metrics: single numbers.
        tags: further ones, such as versions.
        config: the resolved configuration, as YAML.
        error: why the point failed, if it did; traceback: where, if an exception was the reason.
    """

    index: int
    name: str
    role: str
    fingerprint: str
    started: float
    ended: float
    parameters: Mapping[str, Any]
    axes: Sequence[tuple[str, Value]]
    summaries: Mapping[str, Summary]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    config: str
    error: str | None = None
    traceback: str | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """A point's generations, as MLflow's table view takes them: the first column differs in every row."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Closing:
    """What the sweep's own run is given once all points are done.

    Attributes:
        series: (metric, value, step) of measures over the points, whose step is the point's place in the sweep.
        files: what is kept with the run, a folder and all that lies in it.
        axes, measures: metrics of the points that the view of charts shows.
        differences: metrics that a point's run is given beside the other points', by the run's id.
        time: seconds since the epoch, the same whenever the same points are closed, so that what is logged again is
            the same entry.
    """

    series: Sequence[tuple[str, float, int]]
    files: Path
    axes: Sequence[str]
    measures: Sequence[str]
    differences: Mapping[str, Mapping[str, float]]
    time: float
