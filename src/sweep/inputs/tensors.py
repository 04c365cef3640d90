"""External tensors: selected by name, reshaped to rows, and validated before an engine starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.errors import ConfigError
from sweep.inputs import peft
from sweep.inputs.tensor_files import SUFFIXES, open_tensors, require_memory
from sweep.util.validators import did_you_mean, require_choice

if TYPE_CHECKING:
    from torch import Tensor

Version = tuple[int, ...]


def tensor_file(path: str, config_key: str) -> Path:
    """Return the file that a path refers to: itself, or the adapter file in the folder of a PEFT checkpoint.

    Args:
        path: relative to the working directory.
        config_key: the configuration key, for errors.

    Raises:
        ConfigError: the file does not exist, a folder holds several checkpoints, or the suffix is unknown.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        file = peft.adapter_file(file, config_key)
    if not file.is_file():
        raise ConfigError(f"{config_key}: there is no file {path!r}.")
    require_choice(config_key, file.suffix, SUFFIXES, what=f"tensor file format ({path})")
    return file


def load_tensor(path: str, key: str | None, *, width: int, config_key: str, task: int | None = None) -> Tensor:
    """Return one tensor of a file as rows: (n, width), float32, finite. Read once; must not be changed in place.

    A tensor of shape (width,) is one row. If there are more than two dimensions, those of length 1 before the last are
    dropped: (1, n, width) and (n, 1, width) become (n, width).

    Args:
        path: a file, or the folder of a PEFT checkpoint, whose soft prompt is used.
        key: the tensor's name, nested names joined by dots; None if the file holds one tensor.
        width: expected width of a row.
        config_key: the configuration key of the path, for errors.
        task: index of the task in a PEFT checkpoint for several tasks; None otherwise.

    Raises:
        ConfigError: the file, tensor or task does not exist; the format is unknown or holds pickled objects; a PEFT
            adapter is not a soft prompt; or the tensor is not floating-point, not finite, empty or of another width.
    """
    file = tensor_file(path, config_key)
    rows = load_rows(file, key, config_key, task, file_version(file))
    _require_width(rows.shape, width, file, config_key)
    return rows


def count_rows(path: str, key: str | None, *, width: int | None, config_key: str, task: int | None = None) -> int:
    """Return the number of rows that `load_tensor` returns for a file. A `width` of None accepts any.

    Raises:
        ConfigError: see `load_tensor`.
    """
    file = tensor_file(path, config_key)
    shape = _shape(file, key, config_key, task, file_version(file))
    _require_width(shape, width, file, config_key)
    return shape[0]


def load_tensors(path: str, *, config_key: str) -> Mapping[str, Tensor]:
    """Return all tensors of a file in float32, such as a layer's weights. Read once; must not be changed in place.

    Raises:
        ConfigError: see `load_tensor`; shapes are not checked.
    """
    file = tensor_file(path, config_key)
    return _load_all(file, config_key, file_version(file))


def file_version(file: Path) -> Version:
    """Return a value that changes with the file, or with the configuration that describes it."""
    config = peft.config_of(file)
    stats = [file.stat(), *([] if config is None else [config.stat()])]
    return tuple(number for stat in stats for number in (stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=64)
def load_rows(file: Path, key: str | None, config_key: str, task: int | None, version: Version) -> Tensor:
    """Return what `load_tensor` returns, of any width.

    Args:
        file: the file that holds the tensor.
        key: as in `load_tensor`.
        config_key: as in `load_tensor`.
        task: as in `load_tensor`.
        version: the file's version (`file_version`), by which results are cached.

    Raises:
        ConfigError: see `load_tensor`.
    """
    opened, adapter = open_tensors(file, config_key), peft.read_adapter(file, config_key)
    peft.require_prompt(adapter, opened.names, key, file, config_key)

    def read(name: str) -> Tensor:
        return checked(opened.read(name), f"{file} ({name})" if name else str(file), config_key)

    if peft.is_multitask(opened.names) and key in (None, peft.PROMPT):
        rows = peft.multitask_prompt(read, task, file, config_key)
    elif task is not None:
        raise ConfigError(f"transform.task: {file} does not hold soft prompts of several tasks. Remove task={task}.")
    else:
        if adapter is not None:
            key = peft.PROMPT  # PEFT also saves the embedding table of a resized vocabulary
        name = select_name(opened.names, key, file, config_key)
        rows = as_rows(read(name), f"{file} ({name})" if name else str(file), config_key)
    peft.require_rows(adapter, rows, file, config_key)
    return rows


@lru_cache(maxsize=65536)
def _shape(file: Path, key: str | None, config_key: str, task: int | None, version: Version) -> tuple[int, int]:
    count, width = load_rows(file, key, config_key, task, version).shape
    return count, width


def _require_width(shape: Sequence[int], width: int | None, file: Path, config_key: str) -> None:
    if width is not None and shape[1] != width:
        column = f" It looks like a column: save its transpose, [1, {width}]." if tuple(shape) == (width, 1) else ""
        raise ConfigError(f"{config_key}: {file} has rows of width {shape[1]}; the model's are {width} wide.{column}")


@lru_cache(maxsize=8)
def _load_all(file: Path, config_key: str, version: Version) -> Mapping[str, Tensor]:
    opened, adapter = open_tensors(file, config_key), peft.read_adapter(file, config_key)
    if not opened.names:
        raise ConfigError(f"{config_key}: {file} holds no tensor.")
    peft.require_weights(adapter, opened.names, file, config_key)
    return {name: checked(opened.read(name), f"{file} ({name})", config_key) for name in opened.names}


def select_name(names: Sequence[str], key: str | None, file: Path, config_key: str, *, hint: str = "") -> str:
    """Return the name of the tensor to read.

    Args:
        names: the names in the file.
        key: the requested name; None if the file holds one tensor.
        file: the file, for errors.
        config_key: the configuration key of the path, for errors.
        hint: another way to choose, appended to the list of names.

    Raises:
        ConfigError: the name is missing, does not exist, or is superfluous.
    """
    key_option = config_key.rpartition(".")[0] + ".key"
    if not names:
        raise ConfigError(f"{config_key}: {file} holds no tensor.")
    if names == [""]:
        if key is not None:
            raise ConfigError(f"{key_option}: {file} holds one tensor without a name. Remove the key {key!r}.")
        return ""
    if key is None and len(names) > 1:
        shown = ", ".join(sorted(names)[:24]) + (" …" if len(names) > 24 else "")
        raise ConfigError(f"{key_option}: {file} holds {len(names)} tensors. Choose one: {shown}.{hint}")
    if key is not None and key not in names:
        suffix_matches = [name for name in names if name.endswith(f".{key}")]
        suggestion = did_you_mean(key, sorted(names))
        if len(suffix_matches) == 1:
            suggestion = f"Did you mean {suffix_matches[0]!r}? {suggestion[suggestion.index('Available:') :]}"
        raise ConfigError(f"{key_option}: {file} holds no tensor {key!r}. {suggestion}")
    return names[0] if key is None else key


def as_rows(tensor: Tensor, label: str, config_key: str) -> Tensor:
    """Return a tensor as rows, (n, width); see `load_tensor`.

    Raises:
        ConfigError: more than two dimensions are longer than 1, or there is none.
    """
    rows = tensor[None] if tensor.ndim == 1 else tensor
    if rows.ndim > 2:
        kept = [length for length in rows.shape[:-1] if length != 1]
        rows = rows.reshape(*(kept or [1]), rows.shape[-1])
    if rows.ndim != 2:
        raise ConfigError(f"{config_key}: {label} has shape {list(tensor.shape)}; expected rows of shape [n, width].")
    return rows


def checked(tensor: Tensor, label: str, config_key: str) -> Tensor:
    """Return a tensor in float32, contiguous.

    Args:
        tensor: of any shape and dtype.
        label: file and name of the tensor, for errors.
        config_key: the configuration key, for errors.

    Raises:
        ConfigError: it is empty, too large for the memory, or does not hold finite real numbers.
    """
    import torch

    kind = "" if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")
    if tensor.layout != torch.strided or tensor.is_nested:
        kind = "a nested tensor" if tensor.is_nested else "a sparse tensor"
    elif tensor.is_meta:
        kind = "a tensor without data (on the device meta)"
    if kind:
        raise ConfigError(f"{config_key}: {label} is {kind}; it must hold floating-point numbers.")
    if not tensor.numel():
        raise ConfigError(f"{config_key}: {label} is empty: its shape is {list(tensor.shape)}.")
    try:
        require_memory(tensor.numel(), 4)  # a small file can hold a tensor expanded to any shape
    except MemoryError as error:
        raise ConfigError(f"{config_key}: {label} has shape {list(tensor.shape)}: {error}.") from error
    result = tensor.detach().to(torch.float32).contiguous()
    invalid = ~result.isfinite()
    if count := int(invalid.sum()):
        first = invalid.nonzero()[0].tolist()
        raise ConfigError(
            f"{config_key}: {label} has {count} entries that are NaN or infinite in float32, the first at {first}."
        )
    return result
