"""Tensors from outside: read without running anything that a file may hold, and checked before an engine sees them.

A pickle can run any code while it is read, so that objects in it are refused; safetensors hold nothing but numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.checks import did_you_mean, require_choice
from sweep.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

ADAPTER = "adapter_model.safetensors"  # in the folder of a PEFT checkpoint
SUFFIXES = (".safetensors", ".npy", ".pt", ".pth", ".bin")


def tensor_file(path: str, what: str) -> Path:
    """Return the file that a path names: itself, or the tensors of a PEFT checkpoint's folder.

    Args:
        path: relative to the working directory.
        what: the configuration's key, for errors.

    Raises:
        ConfigError: there is none, or its suffix is of no known format.
    """
    file = Path(path).expanduser()
    if file.is_dir():
        file /= ADAPTER
        if not file.is_file():
            raise ConfigError(f"{what}: the folder {path!r} holds no {ADAPTER}.")
    if not file.is_file():
        raise ConfigError(f"{what}: there is no file {path!r}.")
    require_choice(what, file.suffix, SUFFIXES, what=f"format of tensors ({path})")
    return file


def load_tensor(path: str, key: str | None, *, width: int, what: str) -> Tensor:
    """Return one of a file's tensors as rows, [n, width] in fp32; one of shape [width] counts as one row.

    It is read once and must not be changed in place.

    Args:
        path: a file, or the folder of a PEFT checkpoint.
        key: the tensor's name; None if the file holds one tensor only.
        width: of a row.
        what: the configuration's key of the path, for errors.

    Raises:
        ConfigError: no such file or tensor, none of the formats, pickled objects, or a tensor that is not of real
            numbers, not finite, empty or of another width.
    """
    file = tensor_file(path, what)
    rows = _load_rows(file, key, what, _version(file))
    _require_width(rows.shape[1], width, file, what)
    return rows


def count_rows(path: str, key: str | None, *, width: int | None, what: str) -> int:
    """Return how many rows `load_tensor` returns of a file, which is read for that only once; of any width if None.

    Raises:
        ConfigError: as of `load_tensor`.
    """
    file = tensor_file(path, what)
    count, found = _shape(file, key, what, _version(file))
    _require_width(found, width, file, what)
    return count


def load_tensors(path: str, *, what: str) -> Mapping[str, Tensor]:
    """Return all of a file's tensors in fp32, such as a layer's weights; read once, not to be changed.

    Raises:
        ConfigError: as of `load_tensor`, but for the shapes.
    """
    file = tensor_file(path, what)
    return _load_all(file, what, _version(file))


def _version(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_mtime_ns, stat.st_size


@lru_cache(maxsize=64)
def _load_rows(file: Path, key: str | None, what: str, version: tuple[int, int]) -> Tensor:
    names, read = _open(file, what)
    name = _chosen(names, key, file, what)
    named = f"{file} ({name})" if name else str(file)
    tensor = _checked(_read(read, name, file, what), named, what)
    rows = tensor[None] if tensor.ndim == 1 else tensor
    if rows.ndim != 2:
        raise ConfigError(f"{what}: {named} has the shape {list(tensor.shape)}, which is not that of rows: [n, width].")
    return rows


@lru_cache(maxsize=65536)
def _shape(file: Path, key: str | None, what: str, version: tuple[int, int]) -> tuple[int, int]:
    count, width = _load_rows(file, key, what, version).shape
    return count, width


def _require_width(found: int, width: int | None, file: Path, what: str) -> None:
    if width is not None and found != width:
        raise ConfigError(f"{what}: {file} has rows of width {found}; the model's are {width} wide.")


@lru_cache(maxsize=8)
def _load_all(file: Path, what: str, version: tuple[int, int]) -> Mapping[str, Tensor]:
    names, read = _open(file, what)
    if not names:
        raise ConfigError(f"{what}: {file} holds no tensor.")
    return {name: _checked(_read(read, name, file, what), f"{file} ({name})", what) for name in names}


def _open(file: Path, what: str) -> tuple[Sequence[str], Callable[[str], Any]]:
    """Return the names of a file's tensors, and what reads one."""
    try:
        if file.suffix == ".safetensors":
            return _open_safetensors(file)
        return _open_numpy(file) if file.suffix == ".npy" else _open_torch(file)
    except Exception as error:  # the three libraries raise nearly every type there is for a broken file
        if "GLOBAL" in str(error) or "allow_pickle" in str(error):
            raise ConfigError(
                f"{what}: {file} holds pickled objects, which could run any code: save tensors only, "
                "best as .safetensors."
            ) from error
        reason = str(error).rpartition("WeightsUnpickler error:")[2].strip().split("\n")[0] or type(error).__name__
        raise ConfigError(f"{what}: {file} cannot be read as {file.suffix}: {reason[:200]}.") from error


def _open_safetensors(file: Path) -> tuple[Sequence[str], Callable[[str], Any]]:
    from safetensors import safe_open

    opened: Any = safe_open(file, framework="pt")
    return list(opened.keys()), opened.get_tensor


def _open_numpy(file: Path) -> tuple[Sequence[str], Callable[[str], Any]]:
    import numpy
    import torch

    with file.open("rb") as stream:
        array = numpy.lib.format.read_array(stream, allow_pickle=False)  # type: ignore[no-untyped-call]

    def read(name: str) -> Tensor:
        # PyTorch knows neither long doubles nor another machine's order of bytes.
        return torch.from_numpy(array.astype(numpy.float64) if array.dtype.kind == "f" else array)

    return [""], read


def _open_torch(file: Path) -> tuple[Sequence[str], Callable[[str], Any]]:
    import torch

    loaded = torch.load(file, map_location="cpu", weights_only=True)
    if isinstance(loaded, torch.Tensor):
        return [""], lambda name: loaded
    if not isinstance(loaded, Mapping):
        raise TypeError(f"it holds a {type(loaded).__name__}, neither a tensor nor tensors by name")
    tensors = {str(name): value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    return list(tensors), tensors.__getitem__


def _read(read: Callable[[str], Any], name: str, file: Path, what: str) -> Any:
    try:
        return read(name)
    except Exception as error:  # a type of numbers that PyTorch does not know, or a file that ends early
        raise ConfigError(f"{what}: {file} ({name}) cannot be read: {str(error)[:200]}.") from error


def _chosen(names: Sequence[str], key: str | None, file: Path, what: str) -> str:
    named = what.rpartition(".")[0] + ".key"
    if not names:
        raise ConfigError(f"{what}: {file} holds no tensor.")
    if names == [""]:
        if key is not None:
            raise ConfigError(f"{named}: {file} holds one tensor without a name; leave out {key!r}.")
        return ""
    if key is None and len(names) > 1:
        shown = ", ".join(sorted(names)[:24]) + (" …" if len(names) > 24 else "")
        raise ConfigError(f"{named}: {file} holds {len(names)} tensors; say which: {shown}.")
    if key is not None and key not in names:
        raise ConfigError(f"{named}: {file} holds no tensor {key!r}. {did_you_mean(key, sorted(names))}")
    return names[0] if key is None else key


def _checked(tensor: Any, named: str, what: str) -> Tensor:
    import torch

    if tensor.layout != torch.strided or not tensor.is_floating_point():
        kind = str(tensor.dtype)[6:] if tensor.layout == torch.strided else "a sparse tensor"
        raise ConfigError(f"{what}: {named} is {kind}; it must be of floating-point numbers.")
    if not tensor.numel():
        raise ConfigError(f"{what}: {named} is empty: its shape is {list(tensor.shape)}.")
    result: Tensor = tensor.detach().to(torch.float32).contiguous()
    if wrong := int((~result.isfinite()).sum()):
        raise ConfigError(f"{what}: {named} has {wrong} entries that are NaN or infinite in float32.")
    return result
