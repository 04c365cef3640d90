"""Resume index: finds the points and answers of earlier runs that need not be generated again."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sweep.core.provenance import ENGINE, SERVED
from sweep.engines.base import EngineConfig, Origin
from sweep.errors import ConfigError
from sweep.planning.plan import PlannedPoint, Task
from sweep.points.fingerprint import VERSION, Fingerprints
from sweep.points.point import Point
from sweep.storage.archive import Archive, Archived
from sweep.storage.journal import Journal
from sweep.storage.journal_format import JournalEntry

if TYPE_CHECKING:
    from sweep.execution.prefetch import Recalled

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _JournalAnswer:
    """A journal entry as a `Recalled` answer."""

    entry: JournalEntry
    is_from_this_sweep: bool

    @property
    def completions(self):  # type: ignore[no-untyped-def]
        return self.entry.completions

    @property
    def scored(self) -> tuple[float, ...]:
        return self.entry.scored

    @property
    def origin(self) -> Origin:
        return _origin_of(self.entry.header)


class ResumeIndex:
    """Looks up earlier results: finished points in the sweep's archive, answers in the shared journal.

    Also refuses to mix answers of different engine versions. Owned by the main thread.

    Args:
        archive: the archive of this sweep.
        journal: the journal that all sweeps of a folder share.
        sweep_id: id of this sweep.
        resume: see `SweepSettings`.
        query_servers: whether servers are asked for their versions. False for a dry run.
    """

    def __init__(
        self, archive: Archive, journal: Journal, sweep_id: str, resume: str, *, query_servers: bool = True
    ) -> None:
        self._archive, self._journal, self._sweep_id = archive, journal, sweep_id
        self._query_servers = query_servers
        self._origins: dict[EngineConfig, Origin] = {}
        self._confirmed: dict[EngineConfig, Origin] = {}
        self._recorded: dict[EngineConfig, set[Origin]] = {}  # of this sweep's earlier answers
        self._mixing_allowed = resume.lower() == "force"
        self._is_fresh_sweep = "." in sweep_id  # the sweep id of `sweep.resume=false` has a suffix
        self._archived: dict[str, Archived] | None = None
        self._used_indices: set[int] = set()
        self._next_index = 0  # the first index after all used ones
        self._count = 0

    def tasks(self, points: Sequence[Point], fingerprints: Fingerprints) -> list[Task]:
        """Return a task for each point, with its archived result and its index in the sweep.

        A point keeps the index that it had in an earlier run. New points get free indices.

        Raises:
            ConfigError: the model, prompts or a transform's file cannot be read.
        """
        if self._archived is None:
            self._archived = {archived.key: archived for archived in self._archive}
            self._used_indices = {archived.record.index for archived in self._archived.values()}
            self._next_index = max(self._used_indices, default=-1) + 1
        tasks = []
        for point, point_fingerprint in zip(points, fingerprints.identify(points), strict=True):
            archived = self._archived.get(point_fingerprint.result_key)
            index = archived.record.index if archived is not None else self._count
            if archived is None and index in self._used_indices:  # earlier runs had other points
                index = self._next_index
            self._used_indices.add(index)
            self._next_index = max(self._next_index, index + 1)
            self._count += 1
            tasks.append(Task(point=point, point_fingerprint=point_fingerprint, index=index, archived=archived))
        return tasks

    def todo(self, tasks: Sequence[Task]) -> list[Task]:
        """Return the unfinished tasks together with the finished controls that they are compared with.

        Raises:
            ConfigError: see `check_versions`.
        """
        control_keys = {task.point.control_key for task in tasks if not task.done}
        todo = [t for t in tasks if not t.done or (t.point.is_control and t.point.control_key in control_keys)]
        self.check_versions(tasks if todo else ())
        return todo

    def older_answers(self) -> str | None:
        """Return a message about answers of an older format in the journal, or None if there are none."""
        versions = ", ".join(map(str, self._journal.older_formats(VERSION)))
        return (
            f"The journal has answers in an older format (version {versions}). They are not reused."
            if versions
            else None
        )

    def check_versions(self, tasks: Sequence[Task]) -> None:
        """Refuse to resume with another version of the engine.

        Raises:
            ConfigError: some of this sweep's answers come from another version.
        """
        for task in tasks if not self._mixing_allowed else ():
            engine = task.point.config.engine
            for recorded in self._recorded_origins(task):
                if engine.is_remote and not self._query_servers:
                    break
                self._recorded.setdefault(engine, set()).add(recorded)
                if not _is_same(recorded, current := self.origin(engine)) and not _is_unversioned(engine, current):
                    raise _mixed_versions(recorded, current, engine)

    def _recorded_origins(self, task: Task) -> Iterator[Origin]:
        """Yield the origins of the answers that this sweep already has for a point."""
        if task.archived is not None and task.done:
            tags = task.archived.record.tags
            yield Origin(tags.get(ENGINE, ""), tags.get(SERVED, ""))
        else:
            for header in self._journal.headers(task.point_fingerprint.fingerprint):
                if header.get("sweep") == self._sweep_id:
                    yield _origin_of(header)

    def origin(self, engine: EngineConfig) -> Origin:
        """Return the expected origin of an engine's answers before it is opened. A server is asked once.

        Raises:
            ConfigError: the server is unreachable.
        """
        if engine not in self._origins:
            self._origins[engine] = engine.contact() or Origin(engine.installed())
        return self._origins[engine]

    def confirm_origin(self, engine: EngineConfig, origin: Origin) -> Origin:
        """Check the origin that an open engine reports, and return it in the form in which it is recorded.

        Raises:
            ConfigError: a server has changed since this process first asked it. Or an engine whose version is known
                only once it is open has another version than this sweep's earlier answers.
        """
        expected = self.origin(engine)
        if engine.is_remote and origin != expected:
            raise ConfigError(
                f"engine.url: the server changed from {expected} to {origin}. Answers of both are not mixed. "
                "Run the command again, with sweep.resume=force to mix them, or sweep.resume=false to start over."
            )
        release = Origin(origin.engine.partition("+")[0], origin.served)
        if _is_unversioned(engine, expected):
            for recorded in self._recorded.get(engine, ()):  # empty with `sweep.resume=force`
                if recorded != release:
                    raise _mixed_versions(recorded, release, engine)
            self._confirmed[engine] = release
            return release
        if release != expected:  # e.g. an editable install whose source tree has changed since
            release = Origin(f"{release.engine}{_installed_suffix(expected)}")
        self._confirmed[engine] = release
        return release

    def header(self, engine: EngineConfig) -> dict[str, str]:
        """Return the journal header of the answers that this run adds."""
        origin = self._confirmed.get(engine) or self._origins.get(engine) or Origin(engine.installed())
        return {"sweep": self._sweep_id, "engine": origin.engine} | ({"served": origin.served} if origin.served else {})

    def recall(self, planned: PlannedPoint) -> Mapping[tuple[str, str], Recalled]:
        """Return the journal's usable answers for a point, by kind of answer and prompt id."""
        fingerprint, engine = planned.point_fingerprint.fingerprint, planned.point.config.engine

        def accept(header: Mapping[str, str]) -> bool:
            is_from_this_sweep = header.get("sweep") == self._sweep_id
            if self._is_fresh_sweep and not is_from_this_sweep:
                return False
            # A shard has already compared this sweep's answers with the server, which may be unreachable from here.
            was_compared = is_from_this_sweep and engine.is_remote and engine not in self._origins
            if self._mixing_allowed or was_compared:
                return True
            current = self.origin(engine)
            # `confirm_origin` compares the versions that are not known yet.
            return _is_same(_origin_of(header), current) or (is_from_this_sweep and _is_unversioned(engine, current))

        recovered = self._journal.read(fingerprint, accept)
        for problem in recovered.problems:
            log.warning("The journal is damaged. The answers affected are generated again: %s", problem)
        return {
            key: _JournalAnswer(entry, entry.header.get("sweep") == self._sweep_id)
            for key, entry in recovered.entries.items()
        }


def _origin_of(header: Mapping[str, str]) -> Origin:
    return Origin(header.get("engine", ""), header.get("served", ""))


def _is_same(recorded: Origin, current: Origin) -> bool:
    """Return whether recorded answers may be mixed with those of the current engine."""
    return recorded == current or (
        recorded.served == current.served and recorded.engine.endswith(_installed_suffix(current))
    )


def _is_unversioned(engine: EngineConfig, origin: Origin) -> bool:
    """Return whether an engine's version is known only once it is open."""
    return not engine.is_remote and origin.engine == engine.name


def _mixed_versions(recorded: Origin, current: Origin, engine: EngineConfig) -> ConfigError:
    where = "the server now runs" if engine.is_remote else "the installed engine is"
    return ConfigError(
        f"sweep.resume: this sweep was started with {recorded}, but {where} {current}. "
        "Set sweep.resume=force to continue with answers of both, or sweep.resume=false to start over."
    )


def _installed_suffix(origin: Origin) -> str:
    return f" (installed as {origin.engine})"
