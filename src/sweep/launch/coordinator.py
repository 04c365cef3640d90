"""The process that planned: it hands shards to a crew, and takes what they have done."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sweep.disk.archive import Archive
from sweep.generator import Generator
from sweep.memory import Memory
from sweep.outcome import Progress
from sweep.plan import EngineGroup, PlannedPoint
from sweep.publication.publisher import Publisher
from sweep.shards import manifest as manifests
from sweep.shards import plans
from sweep.shards.crew import Crew
from sweep.shards.manifest import Manifest
from sweep.steps import ANSWER, FLOOR
from sweep.terminal import Advance, Terminal

log = logging.getLogger(__name__)

PERIOD = 2.0  # seconds between looks at what the shards have done


class Head:
    """One sweep's shards, as its own process sees them."""

    def __init__(
        self, crew: Crew, folder: Path, sweep_id: str, command: str, archive: Archive, terminal: Terminal
    ) -> None:
        self._crew, self._folder, self._sweep_id, self._command = crew, folder, sweep_id, command
        self._archive, self._terminal = archive, terminal

    @property
    def waits(self) -> bool:
        """Whether what is handed out is waited for."""
        return self._crew.waits

    @property
    def patience(self) -> float:
        """Seconds to wait for what may be left of an earlier run."""
        return self._crew.patience

    def wants(self, groups: Sequence[EngineGroup]) -> bool:
        """Whether groups are to be handed out."""
        return bool(groups) or self._crew.plans_anyway

    def attach(self) -> None:
        """Wait for what an earlier process of this sweep has left at work.

        Raises:
            SweepHeld: something is at work, and this one does not wait.
        """
        if self._folder.is_dir():
            self._crew.attach(self._folder)

    def hand_out(
        self, groups: Sequence[EngineGroup], publisher: Publisher, generator: Generator, memory: Memory
    ) -> None:
        """Have groups of points worked off in shards, and take what becomes of them."""
        points, shards = [planned for group in groups for planned in group.points], self._crew.cut(groups)
        manifest = manifests.write(
            self._crew.place(self._folder),
            groups,
            shards,
            sweep_id=self._sweep_id,
            command=self._command,
            parent=publisher.share() if shards else None,
        )
        todo = sum(not planned.done for planned in points)
        self._terminal.say(f"{todo} points in {manifest.shards} shards")
        takings = _Takings(points, self._archive, publisher)
        with self._terminal.progress(sum(group.requests for group in groups)) as advance:
            reasons = self._crew.work(manifest, _Watch(manifest, takings, advance))
            if not self.waits:
                return
            takings.look()
        given = {id(planned): f"shard {i}: {why}" for i, why in reasons.items() for planned in shards[i]}
        self._finish(groups, takings, given, publisher, generator, memory)

    def close(self) -> None:
        """End what was started, if it is to end with this process."""
        self._crew.close()

    def _finish(
        self,
        groups: Sequence[EngineGroup],
        takings: _Takings,
        reasons: Mapping[int, str],
        publisher: Publisher,
        generator: Generator,
        memory: Memory,
    ) -> None:
        """Score what was answered and left for a control that came too late; fail what was not answered."""
        for group in groups:
            left = [planned for planned in group.points if id(planned) in takings.left]
            controls = {p.point.control_key: p for p in map(self._known, group.points) if p.point.is_control}
            usable = {key for key, control in controls.items() if control.done or _is_answered(control, memory)}
            answered = [p for p in left if p.point.control_key in usable and _is_answered(p, memory)]
            known = {id(planned) for planned in answered}
            for planned in left:
                if id(planned) not in known:
                    reason = reasons.get(id(planned), "its shard ended without it")
                    publisher.scoring.fail(Progress(planned, started=time.time()), reason)
            if answered:
                own = [controls[key] for key in dict.fromkeys(p.point.control_key for p in answered)]
                generator.work_off(replace(group, points=[*own, *answered]), publisher.scoring, lambda: None)

    def _known(self, planned: PlannedPoint) -> PlannedPoint:
        archived = self._archive.get(planned.identity.result_key)
        return planned if archived is None else replace(planned, archived=archived)


class _Takings:
    """What shards have archived, on its way to the publisher.

    Attributes:
        left: the points of which nothing was archived yet, by `id`.
    """

    def __init__(self, points: Sequence[PlannedPoint], archive: Archive, publisher: Publisher) -> None:
        self._archive, self._publisher = archive, publisher
        self.left = {id(planned): planned for planned in points if not planned.done}
        self._waiting = {planned.identity.result_key: planned for planned in self.left.values()}
        self._seen: dict[str, float] = {}
        self._failed = 0

    def look(self) -> None:
        """Take what is new in the archive.

        Raises:
            TooManyFailures: more points failed than the sweep is to bear; each shard counts its own only.
        """
        for key, written in self._archive.written():
            planned = self._waiting.get(key)
            if planned is None or self._seen.get(key) == written:
                continue
            archived = self._archive.get(key)
            if archived is None:  # it is being written, or not to be seen from here yet
                continue
            self._seen[key] = written
            if archived.done or archived != planned.archived:  # else it is what an earlier attempt has failed of
                del self._waiting[key], self.left[id(planned)]
                self._publisher.take(planned, archived)
                if archived.record.error is not None:
                    self._failed += 1
                    planned.point.config.sweep.bear(self._failed)


class _Watch:
    """Looks at shards' states and takings now and then, and shows how far they are."""

    def __init__(self, manifest: Manifest, takings: _Takings, advance: Advance) -> None:
        self._manifest, self._takings, self._advance = manifest, takings, advance
        self._then = 0.0
        self._done = self._tokens = 0

    def __call__(self) -> None:
        if time.monotonic() - self._then < PERIOD:
            return
        self._then = time.monotonic()
        states = plans.states(self._manifest)
        done, tokens = sum(state.done for state in states), sum(state.tokens for state in states)
        for i in range(done - self._done):
            self._advance(tokens - self._tokens if i == 0 else 0)
        self._done, self._tokens = max(done, self._done), max(tokens, self._tokens)
        self._takings.look()


def _is_answered(planned: PlannedPoint, memory: Memory) -> bool:
    """Whether all that is asked for a point is in the journal; teacher forcing asks more once the control is there."""
    if planned.point.config.scoring.teacher_forced:
        return False
    known = memory.recall(planned)
    kinds = (ANSWER, FLOOR)[: planned.runs]
    return all((kind, encoded.prompt.id) in known for kind in kinds for encoded in planned.prompts)
