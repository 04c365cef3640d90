"""How many cores there are, and for how many things."""

from __future__ import annotations

import os

EACH, MOST = 4, 4


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS


def helping_hands() -> int:
    """Return how many things may go on beside an engine: one for every four cores, one at least and four at most."""
    return min(max(usable_cores() // EACH, 1), MOST)
