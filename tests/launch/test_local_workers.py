"""Tests of how the local launcher assigns shards to its workers, with processes that answer on command."""

from __future__ import annotations

import queue
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from hydra_plugins.sweep_launchers import _local_backend
from hydra_plugins.sweep_launchers._local_backend import LocalBackend
from sweep.launch.backend import ATTEMPTS
from sweep.launch.manifest import Manifest
from sweep.launch.shard_state import DONE, FAILED, StateFile


class StandIn:
    """Worker process that records its shards. `finish` and `die` answer the oldest one."""

    all: ClassVar[list[StandIn]] = []

    def __init__(self, base_path: Path, devices: Mapping[str, str]) -> None:
        self.name, self.shards, self.has_answered, self.is_dead = base_path.name, list[int](), False, False
        self._answers: queue.Queue[Any] = queue.Queue()
        self.ended = self
        StandIn.all.append(self)

    def is_set(self) -> bool:
        return self.is_dead

    def answer_to(self, answers: queue.Queue[Any]) -> None:
        self._answers = answers

    def send(self, manifest: Manifest, index: int) -> None:
        self.shards.append(index)

    def begin(self, manifest: Manifest, index: int) -> StateFile:
        state = StateFile(manifest.state(index))
        state.write(now=True)
        return state

    def finish(self, manifest: Manifest, reason: str = "") -> None:
        state = self.begin(manifest, index := self.shards.pop(0))
        state.state.state, state.state.reason = (FAILED, reason) if reason else (DONE, None)
        state.write(now=True)
        self.has_answered = True
        self._answers.put((self, (index, int(bool(reason)), reason)))

    def die(self) -> None:
        self._answers.put((self, None))

    def end(self, deadline: float) -> int:
        return -9


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list[StandIn]:
    monkeypatch.setattr(_local_backend, "_Process", StandIn)
    monkeypatch.setattr(StandIn, "all", [])
    return StandIn.all


def manifest_of(folder: Path, shards: int) -> Manifest:
    return Manifest(
        folder=folder, sweep_id="s", command="", workdir=str(folder), parent=None, shards=shards, written=0.0
    )


def run(manifest: Manifest, workers: int, script: Sequence[Any]) -> Mapping[int, str]:
    """Run shards; after each round of assignments, call the next function of the script."""
    steps = iter(script)

    class Answers(queue.Queue[Any]):
        def get(self, block: bool = True, timeout: float | None = None) -> Any:
            next(steps)()
            return super().get(block, timeout)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_local_backend.queue, "Queue", Answers)
        reasons = LocalBackend(workers).work(manifest, lambda: None)
    assert next(steps, None) is None, "the script was not played to its end"
    return reasons


def test_a_started_worker_has_its_next_shard_before_it_finishes(tmp_path: Path, processes: list[StandIn]) -> None:
    manifest = manifest_of(tmp_path, 6)
    seen: list[list[list[int]]] = []

    def finish(number: int) -> None:
        seen.append([list(process.shards) for process in processes])
        processes[number].finish(manifest)

    numbers = (0, 0, 1, 0, 0, 1)
    assert run(manifest, 2, [lambda number=number: finish(number) for number in numbers]) == {}
    assert seen == [
        [[0], [1]],  # no engine is open yet: a slow start must not hold up a second shard
        [[2, 3], [1]],
        [[3, 4], [1]],
        [[3, 4], [5]],
        [[4], [5]],
        [[], [5]],
    ]


def test_the_shards_of_a_dead_worker_go_to_others(tmp_path: Path, processes: list[StandIn]) -> None:
    """Only the shards that it had begun count as attempts."""
    manifest = manifest_of(tmp_path, 3)

    def die() -> None:
        worker = processes[-1]
        worker.begin(manifest, worker.shards[0])
        worker.die()

    def finish() -> None:
        processes[-1].finish(manifest)

    assert run(manifest, 1, [finish, *[die] * (ATTEMPTS - 1), finish, finish]) == {}
    assert len(processes) == ATTEMPTS


def test_a_worker_that_dies_after_an_answer_loses_no_shard(tmp_path: Path, processes: list[StandIn]) -> None:
    """It is dead when its next shard would be sent, but the message that says so has not been read."""
    manifest = manifest_of(tmp_path, 4)

    def answer_and_die() -> None:
        worker = processes[-1]
        worker.finish(manifest)
        worker.begin(manifest, worker.shards[0])
        worker.is_dead = True
        worker.die()

    def finish() -> None:
        processes[-1].finish(manifest)

    assert run(manifest, 1, [finish, answer_and_die, lambda: None, finish, finish]) == {}
    assert len(processes) == 2


def test_a_worker_that_dies_before_it_begins_is_not_replaced_for_ever(tmp_path: Path, processes: list[StandIn]) -> None:
    manifest = manifest_of(tmp_path, 1)
    reasons = run(manifest, 1, [lambda: processes[-1].die()] * ATTEMPTS)
    assert len(processes) == ATTEMPTS
    assert "its worker process exited with code -9; see worker-0.log" in reasons[0]
