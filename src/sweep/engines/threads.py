"""Number of threads that run a model on a CPU."""

from __future__ import annotations

from pathlib import Path

from sweep.processes.cpu import usable_cores

SMALL_MODEL_BYTES = 256 << 20


def threads_for(folder: Path) -> int:
    """Return the number of threads for a model: one per usable core, but one for a small model.

    In a small model, threads spend more time waiting for each other than they save.
    """
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if size < SMALL_MODEL_BYTES:
        return 1
    return usable_cores()
