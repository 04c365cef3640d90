"""File formats of external tensors. Names are read first and each tensor on demand; no code in a file is executed.

Unpickling can run arbitrary code, so PyTorch files are read with `weights_only`, and NumPy files without pickles.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from sweep.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".safetensors", ".npy", ".npz", ".pt", ".pth", ".bin", ".gguf", ".svec")
MAX_JSON_BYTES = 1 << 28  # maximum bytes of a .svec file, enough for thousands of vectors
_DIRECTION = re.compile(r"direction\.\d+")


@dataclass(frozen=True, slots=True)
class TensorFile:
    """An opened file.

    Attributes:
        names: tensor names in the file's order; `[""]` for a single tensor without a name.
        read: returns a tensor by name, in the file's dtype.
        note: what the file says about itself, such as "control vector for llama"; empty if it says nothing.
        numbered: whether the format has one vector per layer, whose number ends its name.
        ignored: names of values that are not read, because they are not tensors or not vectors.
    """

    names: list[str]
    read: Callable[[str], Tensor]
    note: str = ""
    numbered: bool = False
    ignored: tuple[str, ...] = ()


def open_tensors(file: Path, config_key: str) -> TensorFile:
    """Open a file in the format of its suffix, one of `SUFFIXES`.

    Args:
        file: an existing file.
        config_key: the configuration key, for errors.

    Raises:
        ConfigError: the file is damaged, holds pickled objects, or two tensors with one name. `read` raises it too.
    """
    try:
        opened = _OPENERS[file.suffix](file)
    except Exception as error:  # the libraries raise almost any exception type for a broken file
        raise unreadable(error, file, "", config_key) from error

    def read(name: str) -> Tensor:
        try:
            return opened.read(name)
        except Exception as error:  # a dtype that PyTorch lacks, or a truncated file
            raise unreadable(error, file, name, config_key) from error

    return replace(opened, read=read)


def require_memory(count: int, size: int) -> None:
    """Raise a `MemoryError` if `count` numbers of `size` bytes exceed this machine's memory."""
    available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if count * size > available:
        raise MemoryError(f"it needs {count * size / 2**30:.3g} GiB; this machine has {available / 2**30:.3g}")


def unreadable(error: Exception, file: Path, name: str, config_key: str) -> ConfigError:
    """Return the error for a file, or a named tensor in it, that cannot be read."""
    if isinstance(error, ConfigError):
        return ConfigError(f"{config_key}: {error}")
    text = str(error)
    if "GLOBAL" in text or "allow_pickle" in text:
        return ConfigError(
            f"{config_key}: {file} holds pickled objects, which could run any code. "
            "Save tensors only, preferably as .safetensors."
        )
    reason = text.rpartition("WeightsUnpickler error:")[2].strip().split("\n")[0] or type(error).__name__
    place = f"{file} ({name})" if name else str(file)
    return ConfigError(f"{config_key}: {place} cannot be read as {file.suffix}: {reason[:200].removesuffix('.')}.")


def _safetensors(file: Path) -> TensorFile:
    from safetensors import safe_open

    opened: Any = safe_open(file, framework="pt")
    return TensorFile(list(opened.keys()), opened.get_tensor)


def _npy(file: Path) -> TensorFile:
    def read(name: str) -> Tensor:
        with file.open("rb") as stream:
            return _array(stream, file.stat().st_size)

    tensor = read("")
    return TensorFile([""], lambda _: tensor)


def _npz(file: Path) -> TensorFile:
    archive = zipfile.ZipFile(file)
    members = {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}

    def read(name: str) -> Tensor:
        with archive.open(members[name]) as stream:
            return _array(stream, archive.getinfo(members[name]).file_size)  # type: ignore[arg-type]

    ignored = tuple(name for name in archive.namelist() if not name.endswith(".npy"))
    return TensorFile(list(members), read, ignored=ignored)


def _array(stream: BinaryIO, size: int) -> Tensor:
    """Return an array in NumPy's format; `size` is the number of bytes of header and data."""
    import numpy
    import torch

    # A header can claim any shape, so it is compared with the file size before memory is allocated.
    version = numpy.lib.format.read_magic(stream)  # type: ignore[no-untyped-call]
    header: Any = (
        numpy.lib.format.read_array_header_1_0 if version == (1, 0) else numpy.lib.format.read_array_header_2_0
    )
    shape, fortran, dtype = header(stream)
    if dtype.hasobject:
        raise ValueError("allow_pickle=False: it holds Python objects")
    if dtype.kind == "V":
        raise TypeError(
            f"NumPy has no name for its numbers of {dtype.itemsize} bytes, such as bfloat16. Save them as float32"
        )
    count = 1
    for length in shape:  # Python integers do not overflow
        count *= int(length)
    if (available := size - stream.tell()) < count * dtype.itemsize:
        raise ValueError(f"it ends early: found {available} of {count * dtype.itemsize} bytes")
    require_memory(count, dtype.itemsize)
    flat = numpy.frombuffer(stream.read(count * dtype.itemsize), dtype=dtype, count=count)
    array = flat.reshape(shape, order="F" if fortran else "C")
    # PyTorch supports neither long doubles nor foreign byte orders.
    supported = dtype.newbyteorder("=") if dtype.kind != "f" or dtype.itemsize <= 8 else numpy.dtype(numpy.float64)
    return torch.from_numpy(numpy.array(array, dtype=supported, order="C"))


def _torch(file: Path) -> TensorFile:
    import torch

    loaded = torch.load(file, map_location="cpu", weights_only=True)
    if isinstance(loaded, torch.Tensor):
        return TensorFile([""], lambda _: loaded)
    if not isinstance(loaded, (Mapping, list, tuple)):
        raise TypeError(f"it holds a {type(loaded).__name__}; expected a tensor, or tensors by name or number")
    leaves = list(_leaves(loaded))
    tensors = _named((name, value) for name, value in leaves if isinstance(value, torch.Tensor))
    ignored = tuple(name for name, value in leaves if not isinstance(value, torch.Tensor))
    return TensorFile(list(tensors), tensors.__getitem__, ignored=ignored)


def _svec(file: Path) -> TensorFile:
    """Open a steering vector of IBM's activation-steering: JSON, `{"directions": {layer: [numbers]}, …}`."""
    import torch

    if file.stat().st_size > MAX_JSON_BYTES:
        raise MemoryError(f"it has {file.stat().st_size} bytes of JSON; the limit is {MAX_JSON_BYTES}")
    loaded = json.loads(file.read_text(encoding="utf-8"))
    directions = loaded.get("directions") if isinstance(loaded, dict) else None
    if not isinstance(directions, dict):
        raise TypeError('it is not {"directions": {layer: [numbers]}, …}, the format of activation-steering')
    vectors = {f"directions.{layer}": numbers for layer, numbers in directions.items()}
    model = loaded.get("model_type")
    note = "steering vector of activation-steering" + (f" for {model}" if isinstance(model, str) else "")
    ignored = tuple(key for key in loaded if key not in ("directions", "model_type"))

    def read(name: str) -> Tensor:
        return torch.tensor(vectors[name], dtype=torch.float64)

    return TensorFile(list(vectors), read, note, numbered=True, ignored=ignored)


def _gguf(file: Path) -> TensorFile:
    """Open a control vector of llama.cpp, repeng or EasySteer: tensors `direction.N` of layers N."""
    import torch

    try:
        import gguf
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{file}: reading .gguf needs the package gguf. Install it (pip install gguf), "
            "or save the vector as .safetensors."
        ) from error
    reader = gguf.GGUFReader(file)
    tensors = {tensor.name: tensor for tensor in reader.tensors if _DIRECTION.fullmatch(tensor.name)}
    if not tensors:
        field = reader.get_field("general.architecture")
        kind = f"architecture {field.contents()!r}" if field is not None else "no architecture"
        raise ConfigError(
            f"{file} holds no control vector (tensors direction.1, direction.2, …): it has {kind} and "
            f"{len(reader.tensors)} other tensors. Whole models in .gguf are not supported."
        )

    def read(name: str) -> Tensor:
        # bf16 and quantised GGML types are raw bytes until dequantised.
        return torch.from_numpy(gguf.dequantize(tensors[name].data, tensors[name].tensor_type).copy())

    hint = reader.get_field("controlvector.model_hint")
    note = "control vector" + (f" for {hint.contents()}" if hint is not None else "")
    ignored = tuple(tensor.name for tensor in reader.tensors if tensor.name not in tensors)
    return TensorFile(list(tensors), read, note, numbered=True, ignored=ignored)


_OPENERS: dict[str, Callable[[Path], TensorFile]] = {
    ".safetensors": _safetensors,
    ".npy": _npy,
    ".npz": _npz,
    ".pt": _torch,
    ".pth": _torch,
    ".bin": _torch,
    ".gguf": _gguf,
    ".svec": _svec,
}


def _leaves(container: Any) -> Iterator[tuple[str, Any]]:
    """Yield (name, value) for each leaf of nested mappings and lists; names and indices are joined by dots.

    Each container is entered once, because pickles can refer to themselves.
    """
    entered: set[int] = set()
    stack: list[tuple[str, Any]] = [("", container)]
    while stack:
        name, value = stack.pop()
        if not isinstance(value, (Mapping, list, tuple)):
            yield name, value
        elif id(value) not in entered:
            entered.add(id(value))
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            inner = [(f"{name}.{key}" if name else str(key), item) for key, item in items]
            stack += reversed(inner)


def _named(tensors: Iterator[tuple[str, Any]]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for name, tensor in tensors:
        if name in named:
            raise ValueError(f"two of its tensors are named {name!r}")
        named[name] = tensor
    return named
