"""What earlier runs have left: points that are done, and answers that need not be generated again."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sweep.disk.archive import Archive, Archived
from sweep.disk.journal import Journal
from sweep.disk.records import Entry
from sweep.errors import ConfigError
from sweep.identity import Contents
from sweep.plan import PlannedPoint, Task
from sweep.point import Point
from sweep.versions import engine_version

if TYPE_CHECKING:
    from sweep.steps import Recalled

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Known:
    """An entry of the journal, as the workload takes it."""

    entry: Entry
    is_own: bool

    @property
    def completions(self):  # type: ignore[no-untyped-def]
        return self.entry.completions

    @property
    def scored(self) -> tuple[float, ...]:
        return self.entry.scored


class Memory:
    """The archive of one sweep and the journal of all.

    Args:
        archive: of this sweep.
        journal: of all sweeps of a folder.
        sweep_id: this sweep's.
        resume: see `SweepSettings`.
    """

    def __init__(self, archive: Archive, journal: Journal, sweep_id: str, resume: str) -> None:
        self._archive, self._journal, self._sweep_id = archive, journal, sweep_id
        self._forced = resume.lower() == "force"
        self._anew = "." in sweep_id
        self._known: dict[str, Archived] | None = None
        self._taken: set[int] = set()
        self._next = 0  # the first index after all that are taken
        self._count = 0

    def tasks(self, points: Sequence[Point], contents: Contents) -> list[Task]:
        """Return points with what is known of each, and its place in the sweep: the one that it had, else the next.

        Raises:
            ConfigError: a model, prompts or a transform's file that cannot be read.
        """
        if self._known is None:
            self._known = {archived.key: archived for archived in self._archive}
            self._taken = {archived.record.index for archived in self._known.values()}
            self._next = max(self._taken, default=-1) + 1
        tasks = []
        for point, identity in zip(points, contents.identify(points), strict=True):
            archived = self._known.get(identity.result_key)
            index = archived.record.index if archived is not None else self._count
            if archived is None and index in self._taken:  # earlier runs had other points
                index = self._next
            self._taken.add(index)
            self._next = max(self._next, index + 1)
            self._count += 1
            tasks.append(Task(point=point, identity=identity, index=index, archived=archived))
        return tasks

    def todo(self, tasks: Sequence[Task]) -> list[Task]:
        """Return the tasks that are not done, and with them those done controls that they are compared with.

        Raises:
            ConfigError: as of `check_versions`.
        """
        wanted = {task.point.control_key for task in tasks if not task.done}
        todo = [t for t in tasks if not t.done or (t.point.is_control and t.point.control_key in wanted)]
        self.check_versions(todo)
        return todo

    def check_versions(self, tasks: Sequence[Task]) -> None:
        """Refuse to go on with what another version of the engine has begun.

        Raises:
            ConfigError: some of this sweep's answers come from another version.
        """
        for task in tasks if not self._forced else ():
            now = engine_version(task.point.config.engine.name)
            for header in self._journal.headers(task.identity.fingerprint):
                if header.get("sweep") == self._sweep_id and header.get("engine") != now:
                    raise ConfigError(
                        f"sweep.resume: this sweep was begun with {header.get('engine')}, and {now} is installed: "
                        "sweep.resume=force goes on and has answers of both, sweep.resume=false begins anew."
                    )

    def header(self, engine: str) -> dict[str, str]:
        """Return what is to be known of the answers that this run adds."""
        return {"sweep": self._sweep_id, "engine": engine_version(engine)}

    def recall(self, planned: PlannedPoint) -> Mapping[tuple[str, str], Recalled]:
        """Return the answers that are known to a point's requests, by kind and prompt id."""
        fingerprint, now = planned.identity.fingerprint, engine_version(planned.point.config.engine.name)

        def accept(header: Mapping[str, str]) -> bool:
            own = header.get("sweep") == self._sweep_id
            # A sweep that was begun anew (`sweep.resume=false`) knows but its own.
            return (own or not self._anew) and (self._forced or header.get("engine") == now)

        recovered = self._journal.read(fingerprint, accept)
        for problem in recovered.problems:
            log.warning("The journal is damaged, and what is there is generated again: %s", problem)
        return {
            key: _Known(entry, entry.header.get("sweep") == self._sweep_id) for key, entry in recovered.entries.items()
        }
