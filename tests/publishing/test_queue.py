"""Points that wait are published together, each once, whatever becomes of a call."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from point_records import RECORD
from sweep.core.timing import SharedCosts
from sweep.errors import TrackingError
from sweep.publishing.queue import TOGETHER, PublishQueue
from sweep.storage.archive import Archive, Archived
from sweep.storage.publish_log import PublishLog
from sweep.tracking import PointRecord, Publication, point_publishing
from sweep.util.retry import Patience


class Scripted:
    """A tracker that notes what it is asked, and fails as a test says.

    Attributes:
        calls: the points of each call, and whether an earlier attempt may have got somewhere.
        there: how often each point was published.
        refuse: points that are refused so many times.
        lose: calls for several points that fail as a whole though they got somewhere, as when a process dies.
        few: how many points a call for several has time for.
        goes_on: whether points after a failed one are published, as with simultaneous calls.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], bool]] = []
        self.there: dict[str, int] = {}
        self.refuse: dict[str, int] = {}
        self.lose, self.few, self.goes_on = 0, TOGETHER, False

    def publish(self, record: PointRecord, table: Any, *, retry: bool, replaces: str | None) -> str:
        self.calls.append(([record.name], retry))
        return self._publish(record.name, retry)

    def publish_all(self, points: Sequence[Publication], *, retry: bool) -> list[str | None]:
        self.calls.append(([point.record.name for point in points], retry))
        done: list[str | None] = []
        for point in points[: self.few]:
            try:
                done.append(self._publish(point.record.name, retry))
            except TrackingError:
                done.append(None)
                if not self.goes_on:
                    return done
        if self.lose:
            self.lose -= 1
            raise TrackingError("The call to MLflow failed: the process died", "the process died")
        return done

    def _publish(self, name: str, retry: bool) -> str:
        if self.refuse.get(name, 0):
            self.refuse[name] -= 1
            raise TrackingError(f"MLflow failed to publish the point {name}: no", "no")
        if not (retry and name in self.there):  # else it is found
            self.there[name] = self.there.get(name, 0) + 1
        return f"run of {name}"


@pytest.fixture
def scripted() -> Scripted:
    return Scripted()


@pytest.fixture
def gate() -> threading.Event:
    """Set once all points of a test are in, so that they wait together."""
    return threading.Event()


@pytest.fixture
def publish_queue(scripted: Scripted, gate: threading.Event, tmp_path: Path) -> Iterator[PublishQueue]:
    def begin() -> bool:
        gate.wait(30)
        return False

    publish_log = PublishLog(tmp_path, "here")
    own = PublishQueue(scripted, Archive(tmp_path), publish_log, SharedCosts(), begin, Patience(0.5))  # type: ignore[arg-type]
    yield own
    gate.set()
    own.close()


def put(publish_queue: PublishQueue, count: int) -> list[str]:
    names = [f"point {number}" for number in range(count)]
    for name in names:
        publish_queue.put(Archived(name, replace(RECORD, name=name)))
    return names


def test_waiting_points_are_published_together(
    publish_queue: PublishQueue, scripted: Scripted, gate: threading.Event
) -> None:
    names = put(publish_queue, 2 * TOGETHER + 1)
    gate.set()
    publish_queue.drain()
    assert scripted.calls == [(names[:TOGETHER], False), (names[TOGETHER:-1], False), (names[-1:], False)]
    assert scripted.there == dict.fromkeys(names, 1)
    assert {name: entry.run_id for name, entry in publish_queue._publish_log.entries.items()} == {
        n: f"run of {n}" for n in names
    }


def test_points_after_a_failed_one_are_not_published_twice(
    publish_queue: PublishQueue, scripted: Scripted, gate: threading.Event
) -> None:
    scripted.goes_on, scripted.refuse = True, {"point 1": 2, "point 3": 1}
    names = put(publish_queue, 6)
    gate.set()
    publish_queue.drain()
    assert scripted.calls[:3] == [(names, False), (names[1:2], True), (names[1:2], True)]
    assert [retry for called, retry in scripted.calls if called == names[3:4]] == [True]
    assert scripted.there == dict.fromkeys(names, 1) and not publish_queue.unpublished


def test_repeated_point_is_published_once(
    publish_queue: PublishQueue, scripted: Scripted, gate: threading.Event
) -> None:
    names = put(publish_queue, 3)
    put(publish_queue, 2)
    gate.set()
    publish_queue.drain()
    assert scripted.calls == [(names, False)] and scripted.there == dict.fromkeys(names, 1)


def test_points_left_by_a_call_are_published_next(
    publish_queue: PublishQueue, scripted: Scripted, gate: threading.Event
) -> None:
    scripted.few = 2
    names = put(publish_queue, 5)
    gate.set()
    publish_queue.drain()
    assert [asked for asked, _ in scripted.calls] == [names, names[2:3], names[3:]]
    assert scripted.there == dict.fromkeys(names, 1)


def test_refused_point_is_retried_alone(publish_queue: PublishQueue, scripted: Scripted, gate: threading.Event) -> None:
    scripted.refuse = {"point 2": 2}
    names = put(publish_queue, 5)
    gate.set()
    publish_queue.drain()
    assert scripted.calls == [(names, False), (names[2:3], True), (names[2:3], True), (names[3:], False)]
    assert scripted.there == dict.fromkeys(names, 1) and not publish_queue.unpublished


def test_points_of_a_lost_call_are_searched_before_publishing(
    publish_queue: PublishQueue, scripted: Scripted, gate: threading.Event
) -> None:
    scripted.lose = 1
    names = put(publish_queue, 3)
    gate.set()
    publish_queue.drain()
    assert scripted.calls == [(names, False), (names[:1], True), (names[1:], True)]
    assert scripted.there == dict.fromkeys(names, 1)
    assert set(publish_queue._publish_log.entries) == set(names)


def test_only_a_repeatedly_refused_point_is_given_up(
    publish_queue: PublishQueue, scripted: Scripted, gate: threading.Event
) -> None:
    scripted.refuse = {"point 1": 1000}
    names = put(publish_queue, 4)
    gate.set()
    publish_queue.hurry()
    publish_queue.drain()
    assert publish_queue.unpublished == {"point 1": "no"}
    assert scripted.there == dict.fromkeys([names[0], *names[2:]], 1)


def test_call_with_many_points_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def publish(at: object, point: Publication, *_: Any, **__: Any) -> str:
        now[0] += 0.2
        return point.record.name

    monkeypatch.setattr(point_publishing, "publish", publish)
    monkeypatch.setattr(point_publishing, "has_known_schema", lambda: False)
    monkeypatch.setattr(point_publishing.time, "monotonic", lambda: now[0])
    points = [Publication(replace(RECORD, name=str(number)), lambda: None) for number in range(9)]  # type: ignore
    at = SimpleNamespace(database=SimpleNamespace(is_sql=True), traces=None)
    assert point_publishing.publish_all(at, points, "parent", retry=False) == ["0", "1", "2"]  # type: ignore[arg-type]
