"""Contents of a vector file: its tensors, and the overrides that select one of them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sweep.errors import ConfigError
from sweep.inputs import peft, sae
from sweep.inputs.tensor_files import TensorFile, open_tensors
from sweep.inputs.vector_files import by_number, find_sae, vector_file
from sweep.util.counts import counted

KEY = "transform.vector"
NOTHING = "It holds no vector that can be used: a tensor of floating-point numbers with one or two dimensions."
NO_PROMPT = "It holds changes of the model's weights, not vectors or a soft prompt."
MAX_NAMES = 12  # names of ignored values that are listed


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file.

    Attributes:
        name: its name; empty for a single tensor without a name.
        shape: its shape; None if it cannot be read.
        dtype: its dtype in the file, such as `float32`; the reason if it cannot be read.
    """

    name: str
    shape: tuple[int, ...] | None
    dtype: str


def describe(path: str) -> str:
    """Return a text that lists the tensors of a file or folder, and overrides that select vectors.

    Args:
        path: as in `transform.vector.path`.

    Raises:
        ConfigError: the file cannot be read.
    """
    folder, file = find_sae(path, f"{KEY}.path"), vector_file(path, f"{KEY}.path")
    opened = open_tensors(file, f"{KEY}.path")
    entries = list(_entries(opened))
    adapter = peft.read_adapter(file, f"{KEY}.path")
    origin = f"PEFT adapter of type {adapter.kind}" if adapter else folder.note if folder else opened.note
    notes = [origin, counted(len(entries), "tensor")]
    names = [entry.name or "(without a name)" for entry in entries]
    shapes = ["" if entry.shape is None else str(list(entry.shape)) for entry in entries]
    widths = max(map(len, names), default=0), max(map(len, shapes), default=0)
    lines = [f"{path}: {', '.join(filter(None, notes))}"]
    for entry, name, shape in zip(entries, names, shapes, strict=True):
        lines.append(f"  {name:<{widths[0]}}  {shape:<{widths[1]}}  {entry.dtype}".rstrip())
    if opened.ignored:
        shown = ", ".join(opened.ignored[:MAX_NAMES]) + (" …" if len(opened.ignored) > MAX_NAMES else "")
        lines.append(f"  not read: {shown}")
    if adapter is not None:
        is_prompt = adapter.kind in peft.PROMPTS
        location = shlex.quote(f"transform.path={path}")
        lines.append(f"Use it: transform=soft_prompt {location}" if is_prompt else NO_PROMPT)
        return "\n".join(lines)
    usage = _usage(opened, entries)
    location = shlex.quote(f"{KEY}.path={path}")
    lines.append(f"Use one: transform=add_vector {' '.join([location, *usage])}" if usage is not None else NOTHING)
    return "\n".join(lines)


def _entries(opened: TensorFile) -> Iterator[Entry]:
    for name in opened.names:
        try:
            tensor = opened.read(name)
            yield Entry(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        except (ConfigError, RuntimeError) as error:  # PyTorch: nested tensors have no shape
            yield Entry(name, None, str(error).removeprefix(f"{KEY}.path: ").splitlines()[0])


def _usage(opened: TensorFile, entries: Sequence[Entry]) -> list[str] | None:
    """Return the overrides that select a first vector, next to the path; None if there is no vector."""
    usable = {entry.name: entry.shape for entry in entries if entry.shape is not None and _is_usable(entry)}
    decoder = sae.decoder(opened.names)
    if decoder in usable:
        return [f"{KEY}.row=0"]
    numbers = by_number(opened.names) if len(opened.names) > 1 or opened.numbered else {}
    if numbers and set(numbers.values()) <= usable.keys():
        return [f"{KEY}.row={','.join(map(str, list(numbers)[:3]))}"]
    if not usable:
        return None
    name = next(iter(usable))
    key = [shlex.quote(f"{KEY}.key={name}")] if len(opened.names) > 1 else []
    return [*key, *([f"{KEY}.row=0"] if _has_rows(usable[name]) else [])]


def _is_usable(entry: Entry) -> bool:
    shape = entry.shape or ()
    is_real = entry.dtype.startswith(("float", "bfloat"))
    return is_real and 0 not in shape and 1 <= len([length for length in shape if length != 1] or shape) <= 2


def _has_rows(shape: tuple[int, ...]) -> bool:
    return len([length for length in shape if length != 1]) > 1
