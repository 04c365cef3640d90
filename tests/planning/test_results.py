"""Tests of point results."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from sweep.planning.results import ControlAnswers, Progress


def test_durations_use_a_monotonic_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    planned: Any = SimpleNamespace(index=0, point=None, point_fingerprint=None, prompts=(), given=())
    progress = Progress(planned, started=1000.0, began=50.0)
    monkeypatch.setattr(time, "time", lambda: 1.0)  # the system clock was set back
    monkeypatch.setattr(time, "monotonic", lambda: 53.5)
    assert progress.end(ControlAnswers(None, {}), {}, None, None).ended == 1003.5
