"""Results of earlier runs of a sweep, restored from the archive for the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sweep.planning.results import PointResult
from sweep.points.point import Point
from sweep.storage.archive import Archive, Archived


def restored_results(
    points: Mapping[str, Point],
    results: Mapping[str, PointResult],
    archive: Archive,
    archived: dict[str, Archived],
    supersede: Callable[[str], None],
) -> dict[str, PointResult]:
    """Return all results with values, also those of earlier runs, by `PointFingerprint.result_key`.

    A stale result belongs to a point whose fingerprint has changed, for example because its prompts were edited.

    Args:
        points: this run's points, by result key.
        results: this run's results, by `Point.key`.
        archive: the sweep's archive.
        archived: archive entries of this run, by result key. Those of earlier runs are added.
        supersede: is called with the result key of each stale result.
    """
    from sweep.workers.score_point import restore

    names = {(point.name, point.role) for point in points.values()}
    for entry in archive:
        if entry.key in archived:
            continue
        if (entry.record.name, entry.record.role) in names:
            supersede(entry.key)
        else:  # requested by an optimising sweeper in an earlier run
            archived[entry.key] = entry
    restored = {}
    for key, entry in archived.items():
        point = points.get(key)
        result = results.get(point.key) if point is not None else None
        if result is None or not (result.values or result.error):
            result = restore(entry.record, archive.read([key]), point)
        restored[key] = result
    return restored
