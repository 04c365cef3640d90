"""What an engine should not wait for, and done beside it: requests built ahead, and points scored that are finished."""

from __future__ import annotations

import os
from collections.abc import Sequence

from sweep.helpers.base import Helpers

CORES = 4  # for each process, of which there are up to MOST
MOST = 4


def open_helpers(count: int | None, plugins: Sequence[str] = ()) -> Helpers:
    """Return what helps; no process and no thread is started before it is asked for something.

    Args:
        count: how many processes; 0: threads of this one; None: by the cores that this process may use.
        plugins: modules that have registered transforms, which are imported there too.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if count is None:
        count = min(max(cores // CORES, 1), MOST) if cores > 1 else 0
    if count == 0:
        from sweep.helpers.threads import Threads

        return Threads()
    from sweep.helpers.processes import Processes

    return Processes(count, plugins, threads=max((cores - 1) // count, 1))
