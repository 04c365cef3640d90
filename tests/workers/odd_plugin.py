"""Plugin with misbehaving transforms and a misbehaving scorer, for tests of the worker pool."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from sweep.errors import TransformError
from sweep.transforms import Context, Transform, register


@register("test-kill")
@dataclass(frozen=True)
class Kill(Transform):
    """Kill the current process, as the system does when memory runs out, unless its id is `spared`.

    Each time it leaves a file in `folder`. It stops when there are `times` files. Without a folder it never kills.
    """

    default_span: ClassVar[str] = "all"

    spared: int = 0
    folder: str = ""
    times: int = 99

    def apply(self, rows: torch.Tensor, context: Context) -> torch.Tensor:
        if self.folder and os.getpid() != self.spared and len(list(Path(self.folder).iterdir())) < self.times:
            (Path(self.folder) / str(os.getpid())).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return rows * 2.0


@register("test-refuse")
@dataclass(frozen=True)
class Refuse(Transform):
    """Reject prompts of more than `length` rows."""

    default_span: ClassVar[str] = "all"

    length: int = 5

    def apply(self, rows: torch.Tensor, context: Context) -> torch.Tensor:
        if len(rows) > self.length:
            raise TransformError(f"{len(rows)} rows are too many")
        return rows


@register("test-derived")
@dataclass(frozen=True)
class Derived(Transform):
    """Double the rows with a function that is created in `__post_init__` and cannot be pickled."""

    default_span: ClassVar[str] = "all"

    factor: float = 2.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", lambda rows: rows * self.factor)

    def apply(self, rows: torch.Tensor, context: Context) -> torch.Tensor:
        return self.times(rows)  # type: ignore[attr-defined,no-any-return]


@register("test-unsent")
@dataclass(frozen=True)
class Unsent(Transform):
    """Double the rows, but fail to be pickled."""

    default_span: ClassVar[str] = "all"

    def apply(self, rows: torch.Tensor, context: Context) -> torch.Tensor:
        return rows * 2.0

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("not this")


@register("test-unread")
@dataclass(frozen=True)
class Unread(Transform):
    """Double the rows, but fail to be unpickled."""

    default_span: ClassVar[str] = "all"

    def apply(self, rows: torch.Tensor, context: Context) -> torch.Tensor:
        return rows * 2.0

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return _refuse, ("not here",)


def _refuse(reason: str) -> None:
    raise ValueError(reason)


def fails_on_two(generation: str, references: Sequence[str]) -> float:
    """Fail on the prompt with two references."""
    return 1 / (2 - len(references))
