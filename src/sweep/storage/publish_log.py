"""What has been published of a sweep, on disk, so that nothing is published twice."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from sweep.tracking.records import PointRecord

NAME = "published"


@dataclass(frozen=True, slots=True)
class Entry:
    """A point that MLflow has.

    Attributes:
        place: the store and the experiment.
        key: the point's `Identity.result_key`.
        ended: when the attempt that was published ended, which tells attempts apart.
        run_id: MLflow's.
        name: the point's.
        failed: whether it is there as FAILED.
    """

    place: str
    key: str
    ended: float
    run_id: str
    name: str
    failed: bool


class Ledger:
    """A sweep's published points; the newest entry of a point counts.

    Each process that publishes has a file of its own, and reads all.
    """

    def __init__(self, folder: Path, place: str, writer: str = "") -> None:
        """Read what has been published at this place so far; a line that cannot be read was never complete.

        Args:
            folder: the sweep's.
            place: the store, the experiment and the sweep's run.
            writer: names this process's file; nobody else may have the same.
        """
        self._path = folder / f"{NAME}{writer and f'-{writer}'}.jsonl"
        self.entries: dict[str, Entry] = {}  # replaced as a whole, as other threads read it
        self.open(place)

    def open(self, place: str) -> None:
        """Turn to what has been published at another place."""
        self._place = place
        entries: dict[str, Entry] = {}
        for path in sorted(self._path.parent.glob(f"{NAME}*.jsonl")):
            for line in path.read_text("utf-8", "replace").splitlines():
                try:
                    entry = Entry(**json.loads(line))
                except (ValueError, TypeError):
                    continue
                known = entries.get(entry.key)
                if entry.place == place and (known is None or entry.ended >= known.ended):
                    entries[entry.key] = entry
        self.entries = entries

    def has(self, key: str, record: PointRecord) -> bool:
        """Whether this attempt at a point has been published."""
        known = self.entries.get(key)
        return known is not None and known.ended == record.ended

    def add(self, key: str, record: PointRecord, run_id: str) -> None:
        """Remember a published point.

        Raises:
            OSError: it cannot be written; the point is published none the less.
        """
        entry = Entry(self._place, key, record.ended, run_id, record.name, record.error is not None)
        self.entries[key] = entry
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # A line that a dead process left unfinished must not swallow this one.
        torn = self._path.is_file() and self._path.stat().st_size and self._path.read_bytes()[-1:] != b"\n"
        with self._path.open("a", encoding="utf-8") as file:
            file.write("\n" * bool(torn) + json.dumps(asdict(entry)) + "\n")

    def forget(self, key: str) -> None:
        """Take a point out that has been superseded; on disk its line stays, and says what was."""
        self.entries.pop(key, None)
