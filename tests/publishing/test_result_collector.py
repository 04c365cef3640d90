"""Results that one thread adds while another one reads."""

from __future__ import annotations

from threading import Event, Thread
from types import SimpleNamespace
from typing import Any

from sweep.publishing.result_collector import ResultCollector


def entry(name: str) -> tuple[Any, Any]:
    return SimpleNamespace(point=SimpleNamespace(key=name)), SimpleNamespace(key=f"archived {name}")


def test_results_may_be_added_while_they_are_read() -> None:
    collector, reading, added = ResultCollector(), Event(), Event()
    for number in range(3):
        collector.add(*entry(str(number)))

    def add() -> None:
        reading.wait(10)
        collector.add(*entry("late"))
        added.set()

    thread = Thread(target=add)
    thread.start()
    seen = []
    for key in collector.results:
        reading.set()
        assert added.wait(10)
        seen.append(key)
    thread.join()
    assert seen == ["0", "1", "2"]
    assert list(collector.results) == [*seen, "late"]
    assert list(collector.archived) == [f"archived {key}" for key in (*seen, "late")]


def test_a_later_result_replaces_an_earlier_one() -> None:
    collector = ResultCollector()
    collector.add(*entry("a"))
    retried = entry("a")
    collector.add(*retried)
    assert collector.results == {"a": retried[0]} and collector.archived == {"archived a": retried[1]}
