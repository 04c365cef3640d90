"""Vectors in files: control vectors, steering vectors per layer, and features of sparse autoencoders."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.errors import ConfigError
from sweep.inputs import peft, sae
from sweep.inputs.tensor_files import TensorFile, open_tensors
from sweep.inputs.tensors import Version, as_rows, checked, file_version, load_rows, select_name, tensor_file

if TYPE_CHECKING:
    from torch import Tensor

_NUMBER = re.compile(r"(\d+)")


def vector_file(path: str, config_key: str) -> Path:
    """Return the file that a path refers to: itself, or the weights in the folder of an SAE or a PEFT checkpoint.

    Raises:
        ConfigError: the file does not exist, its suffix is unknown, or a folder holds none or several.
    """
    found = find_sae(path, config_key)
    if found is not None:
        return found.file
    folder = Path(path).expanduser()
    return (
        peft.adapter_file(folder, config_key, tuple(sae.WEIGHTS)) if folder.is_dir() else tensor_file(path, config_key)
    )


def find_sae(path: str, config_key: str) -> sae.Sae | None:
    """Return the SAE in the folder at a path; None for any other folder and for files.

    Raises:
        ConfigError: see `sae.find`.
    """
    folder = Path(path).expanduser()
    return sae.find(folder, config_key) if folder.is_dir() else None


def load_vectors(path: str, key: str | None, row: int | None, *, width: int, config_key: str) -> Tensor:
    """Return one or several vectors of a file: (n, width), float32, finite. Must not be changed in place.

    A tensor of shape (width,) or (width, 1) is one vector, and dimensions of length 1 before the last are dropped.

    Args:
        path: a file, or the folder of an SAE or of a PEFT checkpoint.
        key: the tensor's name, nested names joined by dots. With `row` it can also be what precedes the number in the
            names of a file with one tensor per layer. None if the file holds one tensor; and, with `row`, for the
            decoder of an SAE or one tensor per layer.
        row: index of a row, or number of a layer; None for all rows. Of a tensor (width, n), it is the index of a
            column.
        width: expected width of a vector.
        config_key: the configuration key of the path, for errors.

    Raises:
        ConfigError: the file, tensor or row does not exist; the format is unknown or holds pickled objects; or the
            tensor is not floating-point, not finite, empty or of another width.
    """
    found = find_sae(path, config_key)
    file = vector_file(path, config_key) if found is None else found.file
    if found is not None and found.width not in (None, width):
        raise ConfigError(
            f"{config_key}: {path} is the {found.note}, {found.width} wide; the model's rows are {width} wide."
        )
    rows = _load(file, key, row, width, config_key, file_version(file), found is not None)
    if rows.shape[1] != width:
        note = ""
        if rows.shape[0] == width:
            end = rows.shape[1] - 1
            note = f" It has columns of this width: set {_sibling(config_key, 'row')}=0 (to {end}) to use one."
        raise ConfigError(
            f"{config_key}: {file} has rows of width {rows.shape[1]}; the model's are {width} wide.{note}"
        )
    return rows


def by_number(names: Sequence[str], prefix: str | None = None) -> Mapping[int, str]:
    """Return tensor names by the one number in which they differ, such as 12 for `direction.12`.

    Args:
        names: the names, of any order.
        prefix: what precedes the number; None for names that are equal apart from their number. Other names are then
            not allowed.

    Returns:
        Ascending by number; empty if the names have no such number.
    """
    if prefix is not None:
        pattern = re.compile(rf"{re.escape(prefix)}[._-]?(\d+)")
        pairs = [(int(match[1]), name) for name in names if (match := pattern.fullmatch(name))]
    else:
        parts = [_NUMBER.split(name) for name in names]
        if not parts or len({tuple(part[::2]) for part in parts}) != 1 or len(parts[0]) == 1:
            return {}
        places = [i for i in range(1, len(parts[0]), 2) if len({part[i] for part in parts}) > 1]
        if len(places) > 1:
            return {}
        place = places[0] if places else len(parts[0]) - 2
        pairs = [(int(part[place]), name) for part, name in zip(parts, names, strict=True)]
    return dict(sorted(pairs)) if len(dict(pairs)) == len(pairs) else {}


def _sibling(config_key: str, name: str) -> str:
    return f"{config_key.rpartition('.')[0]}.{name}"


@lru_cache(maxsize=1)
def _opened(file: Path, config_key: str, version: Version) -> TensorFile:
    return open_tensors(file, config_key)


@lru_cache(maxsize=1)  # the decoder of an SAE can have gigabytes, so it is read once for all its swept rows
def _tensor(file: Path, name: str, config_key: str, version: Version) -> Tensor:
    return _opened(file, config_key, version).read(name)


@lru_cache(maxsize=64)
def _load(
    file: Path, key: str | None, row: int | None, width: int, config_key: str, version: Version, is_sae: bool
) -> Tensor:
    opened, adapter = _opened(file, config_key, version), peft.read_adapter(file, config_key)
    peft.require_prompt(adapter, opened.names, key, file, config_key)
    if adapter is not None or peft.is_multitask(opened.names):
        return _row(load_rows(file, key, config_key, None, version), row, str(file), config_key)
    name, index = _select(opened, key, row, file, config_key, is_sae)
    label = f"{file} ({name})" if name else str(file)
    raw = _tensor(file, name, config_key, version)
    if str(raw.layout) != "torch.strided" or raw.is_nested or raw.is_meta:
        return checked(raw, label, config_key)  # raises
    return checked(
        _row(_oriented(raw, name, index, width, label, config_key), index, label, config_key), label, config_key
    )


def _select(
    opened: TensorFile, key: str | None, row: int | None, file: Path, config_key: str, is_sae: bool
) -> tuple[str, int | None]:
    """Return the name of the tensor and the index of its row; None for all rows."""
    names, decoder = opened.names, sae.decoder(opened.names)
    numbered = by_number(names, key) if len(names) > 1 or opened.numbered else {}
    if row is not None and key not in names and numbered:
        if row not in numbered:
            key_option, available = _sibling(config_key, "row"), _ranges(numbered)
            raise ConfigError(f"{key_option}: {file} holds no vector of number {row}. Available: {available}.")
        return numbered[row], None
    if key is None and decoder is not None and (row is not None or is_sae):
        return decoder, row
    hint = ""
    if decoder is not None:
        hint = f" Or set {_sibling(config_key, 'row')} to a feature of {decoder}."
    elif numbered:
        hint = f" Or set {_sibling(config_key, 'row')} to one of {_ranges(numbered)}."
    return select_name(names, key, file, config_key, hint=hint), row


def _oriented(tensor: Tensor, name: str, row: int | None, width: int, label: str, config_key: str) -> Tensor:
    """Return a tensor with vectors as rows: transposed if it has a column for each."""
    if not tensor.numel():
        return checked(tensor, label, config_key)  # raises
    if tensor.ndim > 2 and tuple(tensor.shape[-2:]) == (width, 1):
        tensor = tensor[..., 0]  # a batch of columns
    rows = as_rows(tensor, label, config_key)
    count, length = rows.shape
    as_columns = row is not None and sae.is_columns(name) and count == width
    if as_columns or (count == width != length and (row is not None or length == 1)):
        return rows.T
    return rows


def _row(rows: Tensor, row: int | None, label: str, config_key: str) -> Tensor:
    """Return one of the rows, (1, width); all rows if `row` is None."""
    if row is None:
        return rows
    if row >= len(rows):
        there = f"rows 0 to {len(rows) - 1}" if len(rows) > 1 else "a single row, 0"
        raise ConfigError(f"{_sibling(config_key, 'row')}: {label} has {there}; got {row}.")
    return rows[row : row + 1]


def _ranges(numbers: Mapping[int, str]) -> str:
    """Return numbers with runs shortened: `0 to 3, 7`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    texts = [str(first) if first == last else f"{first} to {last}" for first, last in runs]
    return ", ".join(texts[:12]) + (" …" if len(texts) > 12 else "")
