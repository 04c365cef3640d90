"""Background thread: order of items, exceptions and abandoning."""

from __future__ import annotations

import threading

import pytest

from sweep.processes.background_thread import BackgroundThread


def test_items_are_processed_in_order_and_drained() -> None:
    done: list[int] = []
    worker = BackgroundThread("test", done.append)
    for number in range(20):
        worker.put(number)
    worker.close()
    assert done == list(range(20))


def test_an_exception_is_raised_by_the_next_call() -> None:
    def fail(_: int) -> None:
        raise ValueError("not this one")

    worker = BackgroundThread("test", fail)
    worker.put(1)
    with pytest.raises(ValueError, match="not this one"):
        worker.drain()


def test_no_item_starts_after_abandon_on_an_idle_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread clears the event that `abandon` waits for before it checks whether it was abandoned."""
    seen: list[bool] = []

    class Watched(threading.Event):
        def is_set(self) -> bool:
            if threading.current_thread().name == "watched":
                seen.append(worker._idle.is_set())
            return super().is_set()

    worker = BackgroundThread[int]("watched", lambda _: None)
    monkeypatch.setattr(worker, "_abandoned", Watched())
    worker.put(1)
    worker.close()
    assert seen == [False]
