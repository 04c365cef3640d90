"""What a transform is: a pure function on one prompt's embedding rows, in fp32.

A transform knows tensors and its own parameters, nothing of configurations, engines or trackers.  It is a frozen
dataclass, so that its fields are its parameters in `conf/transform/`, checked before anything starts:

    @register("negate")
    @dataclass(frozen=True, slots=True)
    class Negate(Transform):
        \"\"\"-E.\"\"\"

        def apply(self, rows, context):
            return -rows

PyTorch is imported inside the functions that need it, so that reading a configuration does not wait for it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Generator, Tensor

TRANSFORMS: dict[str, type[Transform]] = {}
T = TypeVar("T", bound="type[Transform]")


class Table(Protocol):
    """What a transform may ask of the model's input-embedding table."""

    @property
    def std(self) -> float:
        """The standard deviation of all entries of the table."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a transform may know beside the rows.

    Attributes:
        seed: derived from the point's seed, the prompt's id and the transform's place; the same in every process.
        table: the embedding table that the rows come from.
    """

    seed: int
    table: Table

    def generator(self) -> Generator:
        """Return a fresh CPU generator.  The global one is never used: engines reseed it."""
        import torch

        return torch.Generator().manual_seed(self.seed)


@dataclass(frozen=True, slots=True)
class Transform(ABC):
    """A pure function on the rows of one prompt."""

    name: ClassVar[str]

    @abstractmethod
    def apply(self, rows: Tensor, context: Context) -> Tensor:
        """Return the transformed rows, [seq_len, hidden_size] in fp32, without changing `rows` in place.

        At strength zero (factor 1, sigma 0) the result is bit-equal to `rows`.
        """


def register(name: str) -> Callable[[T], T]:
    """Make a transform known as `transform.name=<name>`.

    Raises:
        ValueError: the name is taken by another class.
    """

    def add(cls: T) -> T:
        known = TRANSFORMS.setdefault(name, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"the transform name {name!r} is taken by {known.__module__}.{known.__qualname__}")
        cls.name = name
        TRANSFORMS[name] = cls
        return cls

    return add
