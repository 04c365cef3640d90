"""Results of a sweep's points, handed from the scoring thread to the main thread."""

from __future__ import annotations

from contextlib import suppress
from queue import Empty, SimpleQueue

from sweep.planning.results import PointResult
from sweep.storage.archive import Archived


class ResultCollector:
    """Results and archive entries of the points so far.

    Owned by the main thread, which reads. Any thread may call `add`: the dictionaries change only when the main thread
    reads one of them, so iterating over one is safe.
    """

    def __init__(self) -> None:
        self._incoming: SimpleQueue[tuple[PointResult, Archived]] = SimpleQueue()
        self._results: dict[str, PointResult] = {}
        self._archived: dict[str, Archived] = {}

    def add(self, result: PointResult, archived: Archived) -> None:
        """Add a point's result and its entry in the archive; a later one replaces an earlier one."""
        self._incoming.put((result, archived))

    @property
    def results(self) -> dict[str, PointResult]:
        """Result of each point, by `Point.key`."""
        self._collect()
        return self._results

    @property
    def archived(self) -> dict[str, Archived]:
        """Archive entry of each point, by `PointFingerprint.result_key`."""
        self._collect()
        return self._archived

    def _collect(self) -> None:
        with suppress(Empty):
            while True:
                result, archived = self._incoming.get_nowait()
                self._results[result.point.key] = result
                self._archived[archived.key] = archived
