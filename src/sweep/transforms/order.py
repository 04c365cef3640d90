"""Order transforms: permute rows."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from sweep.transforms.base import Rearranged, Rearrangement, register
from sweep.transforms.context import Context
from sweep.util.validators import require

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Reordering(Rearrangement):
    """Base class: a permutation of the rows of a range."""

    @abstractmethod
    def order(self, count: int, context: Context) -> Tensor:
        """Return, for each new position, the index of the row that moves there: (count,), int64."""

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
        window: rows per window; 0 is the whole range, 1 changes nothing.
    """

    dose: ClassVar[str] = "window"
    neutral: ClassVar[float] = 1
    examples: ClassVar = ({}, {"window": 4})

    window: int = 0

    def __post_init__(self) -> None:
        _require_window(self.window)

    def order(self, count: int, context: Context) -> Tensor:
        """Return row indices sorted by window, then by random keys that do not depend on the window."""
        import torch

        starts, _ = _windows(count, self.window)
        random = torch.rand(count, dtype=torch.float64, generator=context.generator())
        return (starts + random).argsort()


@register("reverse")
@dataclass(frozen=True, slots=True)
class Reverse(Reordering):
    """Each of consecutive windows of rows, last row first; applying it twice is the identity.

    After the reversed languages of Kallini et al. 2024 (arXiv:2401.06416).

    Attributes:
        window: rows per window; 0 is the whole range, 1 changes nothing.
    """

    dose: ClassVar[str] = "window"
    neutral: ClassVar[float] = 1
    examples: ClassVar = ({}, {"window": 3})

    window: int = 0

    def __post_init__(self) -> None:
        _require_window(self.window)

    def order(self, count: int, context: Context) -> Tensor:
        """Return row indices, descending within each window."""
        import torch

        starts, sizes = _windows(count, self.window)
        return 2 * starts + sizes - 1 - torch.arange(count)


@register("roll")
@dataclass(frozen=True, slots=True)
class Roll(Reordering):
    """Row i of a window of w rows moves to place (i + shift) mod w of it; -shift moves it back.

    All neighbours but one pair per window stay together. This separates the effect of absolute positions from that of
    order.

    Attributes:
        shift: number of positions; negative values move rows towards the start.
        window: rows per window; 0 is the whole range.
    """

    dose: ClassVar[str] = "shift"
    neutral: ClassVar[float] = 0
    examples: ClassVar = ({"shift": 1}, {"shift": -2, "window": 3})

    shift: int = 0
    window: int = 0

    def __post_init__(self) -> None:
        _require_window(self.window)

    def order(self, count: int, context: Context) -> Tensor:
        """Return row indices, rotated within each window."""
        import torch

        starts, sizes = _windows(count, self.window)
        return starts + (torch.arange(count) - starts - self.shift) % sizes


def _require_window(window: int) -> None:
    require(window >= 0, "transform.window", "must be a number of rows, or 0 for the whole range", window)


def _windows(count: int, window: int) -> tuple[Tensor, Tensor]:
    """Return, for each of `count` rows, the start and the size of its window: (count,), int64 each."""
    import torch

    numbers = torch.arange(count)
    width = min(window or count, count)
    starts = numbers - numbers % max(width, 1)
    return starts, (count - starts).clamp(max=width)
