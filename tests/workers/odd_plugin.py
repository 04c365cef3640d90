"""Transforms and a scorer of a user's that do what they should not, wherever they are run."""

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
    """Kill the process that it is run in, as the system does when memory runs out, unless that is `spared`.

    It leaves a file in `folder` each time, and kills none any more once there are `times` of them; without one, never.
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
    """Refuse prompts of more than `length` rows."""

    default_span: ClassVar[str] = "all"

    length: int = 5

    def apply(self, rows: torch.Tensor, context: Context) -> torch.Tensor:
        if len(rows) > self.length:
            raise TransformError(f"{len(rows)} rows are too many")
        return rows


@register("test-derived")
@dataclass(frozen=True)
class Derived(Transform):
    """Double the rows, by something that is made when it is."""

    default_span: ClassVar[str] = "all"

    factor: float = 2.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "times", lambda rows: rows * self.factor)

    def apply(self, rows: torch.Tensor, context: Context) -> torch.Tensor:
        return self.times(rows)  # type: ignore[attr-defined,no-any-return]


@register("test-unsent")
@dataclass(frozen=True)
class Unsent(Transform):
    """Double the rows, and be pickled by nobody."""

    default_span: ClassVar[str] = "all"

    def apply(self, rows: torch.Tensor, context: Context) -> torch.Tensor:
        return rows * 2.0

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("not this")


@register("test-unread")
@dataclass(frozen=True)
class Unread(Transform):
    """Double the rows, and be refused by whoever reads the pickle."""

    default_span: ClassVar[str] = "all"

    def apply(self, rows: torch.Tensor, context: Context) -> torch.Tensor:
        return rows * 2.0

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return _refuse, ("not here",)


def _refuse(reason: str) -> None:
    raise ValueError(reason)


def fails_on_two(generation: str, references: Sequence[str]) -> float:
    """Fail on the prompt whose references are two."""
    return 1 / (2 - len(references))
