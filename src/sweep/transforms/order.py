"""Rows in another order."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sweep.checks import require
from sweep.transforms.base import Rearranged, Rearrangement, register
from sweep.transforms.context import Context

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Reordering(Rearrangement):
    """A permutation of the rows of a stretch."""

    @abstractmethod
    def order(self, count: int, context: Context) -> Tensor:
        """Return for each place the number of the row that comes there, [count]."""

    def rearrange(self, rows: Tensor, context: Context) -> Rearranged:
        """Return the rows in their new order."""
        order = self.order(len(rows), context)
        return Rearranged(rows[order], [(i,) for i in order.tolist()])


@register("shuffle")
@dataclass(frozen=True, slots=True)
class Shuffle(Reordering):
    """E[π], with a random permutation π of the rows in each of consecutive windows.

    After the local shuffles of Kallini et al. 2024 (arXiv:2401.06416) and the n-gram shuffles of Sinha et al. 2021
    (arXiv:2104.06644).

    Attributes:
        window: rows in a window; 0 is the whole stretch, 1 moves nothing.
    """

    dose: ClassVar[str] = "window"
    neutral: ClassVar[float] = 1
    examples: ClassVar = ({}, {"window": 4})

    window: int = 0

    def __post_init__(self) -> None:
        _require_window(self.window)

    def order(self, count: int, context: Context) -> Tensor:
        """Return the rows' numbers, sorted by window and, within it, by random numbers that no window changes."""
        import torch

        starts, _ = _windows(count, self.window)
        random = torch.rand(count, dtype=torch.float64, generator=context.generator())
        return (starts + random).argsort()


@register("reverse")
@dataclass(frozen=True, slots=True)
class Reverse(Reordering):
    """Each of consecutive windows of rows, last row first; twice is the identity.

    After the reversed languages of Kallini et al. 2024 (arXiv:2401.06416).

    Attributes:
        window: rows in a window; 0 is the whole stretch, 1 moves nothing.
    """

    dose: ClassVar[str] = "window"
    neutral: ClassVar[float] = 1
    examples: ClassVar = ({}, {"window": 3})

    window: int = 0

    def __post_init__(self) -> None:
        _require_window(self.window)

    def order(self, count: int, context: Context) -> Tensor:
        """Return the rows' numbers, descending within each window."""
        import torch

        starts, sizes = _windows(count, self.window)
        return 2 * starts + sizes - 1 - torch.arange(count)


@register("roll")
@dataclass(frozen=True, slots=True)
class Roll(Reordering):
    """Row i of a window of w rows moves to place (i + shift) mod w of it; -shift moves it back.

    It keeps all neighbours but one pair in each window, and so sets what absolute positions mean apart from what order
    means.

    Attributes:
        shift: places to move by; negative ones move towards the start.
        window: rows in a window; 0 is the whole stretch.
    """

    dose: ClassVar[str] = "shift"
    neutral: ClassVar[float] = 0
    examples: ClassVar = ({"shift": 1}, {"shift": -2, "window": 3})

    shift: int = 0
    window: int = 0

    def __post_init__(self) -> None:
        _require_window(self.window)

    def order(self, count: int, context: Context) -> Tensor:
        """Return the rows' numbers, each window's rotated."""
        import torch

        starts, sizes = _windows(count, self.window)
        return starts + (torch.arange(count) - starts - self.shift) % sizes


def _require_window(window: int) -> None:
    require(window >= 0, "transform.window", "must be a number of rows, or 0 for the whole stretch", window)


def _windows(count: int, window: int) -> tuple[Tensor, Tensor]:
    """Return for each of `count` rows where its window starts and how many rows that has, [count] each."""
    import torch

    numbers = torch.arange(count)
    width = min(window or count, count)
    starts = numbers - numbers % max(width, 1)
    return starts, (count - starts).clamp(max=width)
