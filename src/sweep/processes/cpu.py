"""Number of usable CPU cores, and number of pool processes for them."""

from __future__ import annotations

import os

CORES_PER_PROCESS, MAX_PROCESSES = 4, 4


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS


def default_pool_size() -> int:
    """Return the number of pool processes next to an engine: one per four cores, from one to four."""
    return min(max(usable_cores() // CORES_PER_PROCESS, 1), MAX_PROCESSES)
