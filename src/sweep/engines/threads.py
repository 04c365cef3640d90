"""How many threads a model is run with on a CPU."""

from __future__ import annotations

from pathlib import Path

from sweep.cores import usable_cores

SMALL_MODEL_BYTES = 256 << 20


def threads_for(folder: Path) -> int:
    """Return one thread for a model of a few matrix rows, which two would only slow down by waiting for each other."""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if size < SMALL_MODEL_BYTES:
        return 1
    return usable_cores()
