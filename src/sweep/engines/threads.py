"""How many threads a model is run with on a CPU."""

from __future__ import annotations

import os
from pathlib import Path

SMALL_MODEL_BYTES = 256 << 20


def threads_for(folder: Path) -> int:
    """Return one thread for a model of a few matrix rows, which two would only slow down by waiting for each other."""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if size < SMALL_MODEL_BYTES:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS
