"""Files and modules that `engine.args` name: found without importing them, and counted by their content."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sweep.errors import ConfigError
from sweep.util.digests import file_digest, folder_digest

# Packages whose release is recorded, or changes only the last bits.
RELEASED = frozenset({"vllm", "torch", "transformers"})
# Arguments of which vLLM reads only configuration files and code from a folder.
CONFIGURATIONS = frozenset({"hf_config_path", "generation_config"})

_SECRET = re.compile(r"secret|password|credential|api_key|access_key|(^|_)(auth|hf|access|bearer)_token$")
# Arguments whose value may be a file, a folder or a module without a "/" or "." in its name.
_NAMES_FILE = re.compile(r"(model|path|plugin|file|dir|uri|generation_config)$")
_DOTTED = re.compile(r"[^\W\d]\w*([.:][^\W\d]\w*)*")


def secret_of(args: Mapping[str, Any]) -> str | None:
    """Return the name of the first argument, at any depth, that is a secret by its name."""
    return next((name for name, _ in _leaves(args) if any(map(_SECRET.search, name.lower().split(".")))), None)


def contents(args: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests of the files, folders and modules that arguments name, by argument.

    Args:
        args: arguments by name; values may be nested.

    Raises:
        ConfigError: a file cannot be read.
    """
    found: dict[str, str] = {}
    for name, value in _leaves(args):
        try:
            digest = _digest(name, value) if isinstance(value, str) else None
        except OSError as error:
            raise ConfigError(f"engine.args.{name}: {value} cannot be read: {error.strerror or error}.") from error
        if digest is not None:
            found[name] = digest
    return found


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of the values in mappings and lists, with dots between the names."""
    if isinstance(value, (dict, list, tuple)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _digest(name: str, text: str) -> str | None:
    may_be_bare = any(_NAMES_FILE.search(part) for part in name.split("."))
    path = Path(text)
    if (may_be_bare or "/" in text) and _exists(path):
        if path.is_file():
            return file_digest(path)
        return folder_digest(path, ("*.json", "*.py") if name in CONFIGURATIONS else ("*",))
    if _DOTTED.fullmatch(text) and (may_be_bare or "." in text or ":" in text):
        module = _module_file(text.partition(":")[0]) or _module_file(
            re.split("[.:]", text[::-1], maxsplit=1)[-1][::-1]
        )
        return file_digest(module) if module is not None else None
    return None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # the text is too long for a path, for example
        return False


def _module_file(name: str) -> Path | None:
    """Return the source file of a module; None if there is none. Nothing is imported."""
    first, *rest = name.split(".")
    if first in RELEASED:
        return None
    try:
        spec: ModuleSpec | None = find_spec(first)
        for depth in range(len(rest)):
            if spec is None or spec.submodule_search_locations is None:
                return None
            spec = PathFinder.find_spec(".".join([first, *rest[: depth + 1]]), list(spec.submodule_search_locations))
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.has_location and spec.origin else None
