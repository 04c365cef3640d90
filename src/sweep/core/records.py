"""Records sent to the tracker: one per point, and one for the finished sweep."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweep.core.values import Summary

Value = str | float


@dataclass(frozen=True, slots=True)
class PointRecord:
    """Everything that is published of one point except its generations.

    Attributes:
        index: position of the point in the sweep.
        name, role, fingerprint: see `points.point.Point` and `points.fingerprint.PointFingerprint`.
        started, ended: seconds since the epoch; `ended` differs between attempts at a point.
        parameters: by override name.
        axes: swept values; numeric ones are also published as metrics, because MLflow sorts those as numbers.
        summaries: measures over prompts.
        metrics: single numbers.
        tags: further tags, such as versions.
        config: the resolved configuration as YAML.
        error: why the point failed; None if it did not.
        traceback: set if an exception was the reason.
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
    """A point's generations in the form of MLflow's table view: the first column is unique per row."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


ReadTable = Callable[[], Table]  # must be picklable


@dataclass(frozen=True, slots=True)
class Publication:
    """A point to be published.

    Attributes:
        record: everything except the generations.
        table: the generations, or a function that reads them.
        replaces: run id of an earlier failed attempt at this point.
    """

    record: PointRecord
    table: Table | ReadTable
    replaces: str | None = None


@dataclass(frozen=True, slots=True)
class Closing:
    """Data published to the sweep's parent run once all points are finished.

    Attributes:
        name: of the sweep, and of its saved view.
        series: (metric, value, step) of measures over the points; the step is the point's position in the sweep.
        files: folder whose contents are stored as artifacts of the run.
        axes, measures: metrics of the points shown in the chart view.
        differences: metrics that compare a point with the other points, by run id of the point.
        time: seconds since the epoch; equal for equal points, so that logging twice gives the same entry.
    """

    name: str
    series: Sequence[tuple[str, float, int]]
    files: Path
    axes: Sequence[str]
    measures: Sequence[str]
    differences: Mapping[str, Mapping[str, float]]
    time: float
