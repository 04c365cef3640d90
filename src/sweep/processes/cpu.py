"""Number of usable CPU cores, and number of workers for them."""

from __future__ import annotations

import os

CORES_PER_WORKER, MAX_WORKERS = 4, 4


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS


def default_worker_count() -> int:
    """Return the number of workers next to an engine: one per four cores, from one to four."""
    return min(max(usable_cores() // CORES_PER_WORKER, 1), MAX_WORKERS)
