"""Weight files of a checkpoint and the tensors in them."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from sweep.errors import ConfigError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLE = "pytorch_model.bin"
PICKLE_INDEX = "pytorch_model.bin.index.json"


@contextmanager
def translate_errors(model: str) -> Iterator[None]:
    """Turn errors of unreadable files into a `ConfigError` that names the model.

    Raises:
        ConfigError: a file cannot be read in the `with` block.
    """
    try:
        yield
    except (SafetensorError, OSError, ValueError, RecursionError, struct.error) as error:
        reason = (
            "it is nested too deeply"
            if isinstance(error, RecursionError)
            else (str(error).splitlines() or [type(error).__name__])[0][:200]
        )
        raise ConfigError(f"model.id: the checkpoint {model!r} cannot be read: {reason}") from error


def files(folder: Path, model: str) -> list[Path]:
    """Return a checkpoint's safetensors files, in the order in which Transformers reads them.

    Raises:
        ConfigError: the index is damaged, or names a file that is not in the folder.
    """
    with translate_errors(model):
        if indexed := _indexed(folder, model):
            return [folder / name for name in sorted({file for file, _ in indexed})]
        return _unindexed(folder)


def tensors(folder: Path, model: str) -> list[tuple[Path, str]]:
    """Return (file, name) of each tensor.

    Raises:
        ConfigError: see `files`; or a file cannot be read.
    """
    with translate_errors(model):
        if indexed := _indexed(folder, model):
            return [(folder / file, name) for file, name in indexed]
        names = []
        for file in _unindexed(folder):
            with safe_open(file, framework="numpy") as opened:
                names += [(file, name) for name in opened.keys()]  # noqa: SIM118 - not a dict
        return names


def pickle_file(folder: Path, model: str) -> Path | None:
    """Return the first PyTorch file from which Transformers reads weights; None if there is none.

    Raises:
        ConfigError: the index is damaged, or names a file that is not in the folder.
    """
    if (single := folder / PICKLE).is_file():
        return single
    with translate_errors(model):
        if (folder / PICKLE_INDEX).is_file():
            return folder / min(file for file, _ in _entries(folder, PICKLE_INDEX, ".bin", model, must_exist=True))
        return min(folder.glob("pytorch_model-*.bin"), default=None)


def _unindexed(folder: Path) -> list[Path]:
    single = folder / SINGLE
    return [single] if single.is_file() else sorted(folder.glob("*.safetensors"))


def _indexed(folder: Path, model: str) -> list[tuple[str, str]]:
    """Return (file name, tensor name) of each entry of the index; empty if the index is not used."""
    if not (folder / INDEX).is_file():
        return []
    single = (folder / SINGLE).is_file()
    entries = _entries(folder, INDEX, ".safetensors", model, must_exist=not single)
    if not single:
        return entries
    # Transformers reads the single file and vLLM those of the index, so having both is ambiguous.
    other = next((file for file, _ in entries if file != SINGLE and (folder / file).is_file()), None)
    if other is not None:
        raise ConfigError(
            f"model.id: {model!r} has {SINGLE} and {INDEX}, which names {other[:80]!r}. Remove one of the two."
        )
    return []


def _entries(folder: Path, index: str, suffix: str, model: str, *, must_exist: bool) -> list[tuple[str, str]]:
    """Return (file name, tensor name) of each entry of an index."""
    document: Any = json.loads((folder / index).read_text("utf-8"))
    entries = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(entries, dict) or not entries:
        raise ConfigError(f"model.id: {index} of {model!r} has no weight_map of names to files.")
    for name, file in entries.items():
        plain = isinstance(file, str) and Path(file).name == file and file.endswith(suffix) and "\0" not in file
        if not plain:
            raise ConfigError(
                f"model.id: {index} of {model!r} maps {name[:80]!r} to {str(file)[:80]!r}; expected a {suffix} file in "
                "the model's folder."
            )
        if must_exist and not (folder / file).is_file():
            raise ConfigError(f"model.id: {index} of {model!r} names {file[:80]!r}, which is not in its folder.")
    return [(file, name) for name, file in entries.items()]
