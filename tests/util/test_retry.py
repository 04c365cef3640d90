"""When a call that failed is made again, and when it is given up, by a clock that nobody waits for."""

from __future__ import annotations

import threading

import pytest

from sweep.util.retry import Patience


class Clock:
    """Seconds that pass only while somebody waits; at `hurry_at` somebody is in a hurry."""

    def __init__(self, seconds: float, hurry_at: float) -> None:
        self.time, self.hurry_at = 0.0, hurry_at
        self.patience = Patience(seconds, self.now, self.wait)

    def now(self) -> float:
        return self.time

    def wait(self, event: threading.Event, seconds: float) -> bool:
        until = self.time + seconds
        if self.time < self.hurry_at <= until:
            self.time = self.hurry_at
            self.patience.hurry()
        if not event.is_set():
            self.time = until
        return event.is_set()


def attempts(seconds: float, hurry_at: float, most: int = 200) -> list[float]:
    """Return when a call is made that always fails."""
    clock, times = Clock(seconds, hurry_at), list[float]()
    if hurry_at == 0:
        clock.patience.hurry()
    while len(times) < most:
        times.append(clock.time)
        if not clock.patience.pause(len(times)):
            break
    return times


@pytest.mark.parametrize("seconds", [0, 1, 5, 20, 30, 60])
def test_retries_use_exactly_the_patience(seconds: int) -> None:
    assert attempts(seconds, hurry_at=0) == [float(second) for second in range(seconds + 1)]


@pytest.mark.parametrize("seconds", [20, 60])
def test_retries_use_the_patience_after_a_long_outage(seconds: int) -> None:
    before = [0.0, 1.0, 3.0, 7.0, 15.0, 31.0, 61.0]
    # The wait until 91 ends with the hurry.
    assert attempts(seconds, hurry_at=70.0) == [*before, *(70.0 + second for second in range(seconds + 1))]


def test_the_last_attempt_is_made_when_the_time_is_up() -> None:
    assert attempts(2.5, hurry_at=0) == [0.0, 1.0, 2.0, 2.5]


def test_retries_continue_without_a_deadline() -> None:
    assert attempts(0.0, hurry_at=float("inf"), most=9) == [0, 1, 3, 7, 15, 31, 61, 91, 121]


def test_end_stops_retries_at_once() -> None:
    clock = Clock(60.0, float("inf"))
    clock.patience.end()
    assert not clock.patience.pause(1) and clock.time == 0.0
