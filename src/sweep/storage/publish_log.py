"""Publish log: records on disk which points were published, so that no point is published twice."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from sweep.core.records import PointRecord
from sweep.util import state_files

log = logging.getLogger(__name__)

NAME = "published"


@dataclass(frozen=True, slots=True)
class Published:
    """A published point.

    Attributes:
        place: identifies the store, the experiment and the sweep's run.
        key: the point's `PointFingerprint.result_key`.
        ended: end of the published attempt in seconds since the epoch. Identifies the attempt.
        run_id: MLflow's run id.
        name: name of the point.
        failed: whether it was published as FAILED.
    """

    place: str
    key: str
    ended: float
    run_id: str
    name: str
    failed: bool


class PublishLog:
    """A sweep's published points. The newest entry of a point counts.

    Each publishing process appends to its own file and reads the files of all. Written by the publishing thread, read
    by other threads.
    """

    def __init__(self, folder: Path, place: str, writer: str = "") -> None:
        """Read the points published at a place so far. Incomplete lines are skipped.

        Args:
            folder: the sweep's folder.
            place: identifies the store, the experiment and the sweep's run.
            writer: name of this process's file, unique among the sweep's processes.
        """
        self._path = folder / f"{NAME}{writer and f'-{writer}'}.jsonl"
        self.entries: dict[str, Published] = {}  # replaced as a whole, because other threads read it
        self.open(place)

    def open(self, place: str) -> None:
        """Switch to another place and read its published points."""
        self._place = place
        entries: dict[str, Published] = {}
        for path in sorted(self._path.parent.glob(f"{NAME}*.jsonl")):
            try:
                lines = state_files.read(path).decode("utf-8", "replace").splitlines()
            except OSError as error:
                log.warning("%s is not used: %s.", path, error.strerror or error)
                continue
            for line in lines:
                try:
                    entry = state_files.build(Published, state_files.parse(line))
                except (ValueError, TypeError):
                    continue
                other = entries.get(entry.key)
                if entry.place == place and (other is None or entry.ended >= other.ended):
                    entries[entry.key] = entry
        self.entries = entries

    def has(self, key: str, record: PointRecord) -> bool:
        """Return whether this attempt at a point has been published."""
        entry = self.entries.get(key)
        return entry is not None and entry.ended == record.ended

    def add(self, key: str, record: PointRecord, run_id: str) -> None:
        """Record a published point.

        Raises:
            OSError: the file cannot be written. The point is published nevertheless.
        """
        entry = Published(self._place, key, record.ended, run_id, record.name, record.error is not None)
        self.entries[key] = entry
        self._path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(asdict(entry)).encode() + b"\n"
        with state_files.open_to_append(self._path) as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                # Do not append to a line that a dead process left unfinished.
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line)

    def forget(self, key: str) -> None:
        """Remove a superseded point from `entries`. Its line stays on disk."""
        self.entries.pop(key, None)
