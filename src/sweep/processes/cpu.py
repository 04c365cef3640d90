"""Number of usable CPU cores, and number of pool processes for them."""

from __future__ import annotations

import os

CORES_PER_PROCESS, MAX_PROCESSES = 4, 4


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS


def core_share(index: int, shares: int) -> list[int]:
    """Return the numbers of the cores in one of several equal shares of those that this process may use.

    Empty if there is only one share, if there are fewer cores than shares, or where the cores are unknown (macOS).
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    each = len(cores) // shares
    return cores[index * each : (index + 1) * each] if shares > 1 else []


def default_pool_size() -> int:
    """Return the number of pool processes next to an engine: one per four cores, from one to four."""
    return min(max(usable_cores() // CORES_PER_PROCESS, 1), MAX_PROCESSES)
