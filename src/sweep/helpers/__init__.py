"""What an engine should not wait for, and done beside it: requests built ahead, and points scored that are finished."""

from __future__ import annotations

from collections.abc import Sequence

from sweep.cores import helping_hands, usable_cores
from sweep.helpers.base import Helpers
from sweep.helpers.processes import Processes
from sweep.helpers.threads import Threads

FEW_CORES, NICE = 4, 10


def open_helpers(count: int | None, plugins: Sequence[str] = ()) -> Helpers:
    """Return what helps; no process and no thread is started before it is asked for something.

    Args:
        count: how many processes; 0: threads of this one; None: by the cores that this process may use.
        plugins: modules that have registered transforms, which are imported there too.
    """
    cores = usable_cores()
    if count is None:
        count = helping_hands() if cores > 1 else 0
    if count == 0:
        return Threads()
    # On few cores an engine is on them too, and is not to be kept from its own.
    nice = NICE if cores < FEW_CORES else 0
    return Processes(count, plugins, threads=max((cores - 1) // count, 1), nice=nice)
