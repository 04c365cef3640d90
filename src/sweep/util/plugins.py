"""Import of plugins: modules by name, or entry points of installed packages."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points

GROUP = "sweep.plugins"


def import_plugin(name: str) -> None:
    """Import a module or, if there is none of this name, the entry point `name` of the group `sweep.plugins`.

    Nothing is imported that is not named, whatever packages are installed.

    Raises:
        Exception: anything that the module raises; ModuleNotFoundError if there is neither.
    """
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        entries = list(entry_points(group=GROUP, name=name)) if error.name == name else []
        if not entries:
            raise
        entries[0].load()
