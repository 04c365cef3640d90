"""What a transform is: a pure function on some of a prompt's embedding rows, in fp32.

A transform knows tensors and its own parameters, nothing of configurations, engines or trackers.  It is a frozen
dataclass whose fields are its parameters on the command line, checked before anything starts:

    @register("negate")
    @dataclass(frozen=True, slots=True)
    class Negate(Transform):
        \"\"\"-E.\"\"\"

        def apply(self, rows, context):
            return -rows

It is handed the rows of its span and no others; `pipeline` puts what it returns back into its place.  PyTorch is
imported inside the functions that need it, so that reading a configuration does not wait for it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from sweep.transforms.context import Context, Corpus

if TYPE_CHECKING:
    from torch import Tensor

TRANSFORMS: dict[str, type[Transform]] = {}
T = TypeVar("T", bound="type[Transform]")


@dataclass(frozen=True, slots=True)
class Transform(ABC):
    """A pure function on rows that keeps their number and order.

    The first paragraph of a transform's docstring is its formula, the rest says where it is from and what its fields
    are.  Class attributes describe it to the program:

        dose: the field that says how much; None if there is none.
        neutral: the dose at which nothing is changed; `apply` is not called then, so that rows stay bit-equal.
        proportional: whether the change is in proportion to the dose; then how much of the change the cast to the
            engine's dtype has left says how much of the dose has been given, and `achieved` is not asked.
        default_span: the part of the prompt that it is for, unless the user says otherwise.
        examples: parameters at which it changes something, for the conformance tests.
        paths: the fields that name `files`, whose contents and not whose places say what the transform is.
    """

    name: ClassVar[str]
    dose: ClassVar[str | None] = None
    neutral: ClassVar[float | None] = None
    proportional: ClassVar[bool] = False
    default_span: ClassVar[str] = "content"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({},)
    paths: ClassVar[Sequence[str]] = ()

    @abstractmethod
    def apply(self, rows: Tensor, context: Context) -> Tensor:
        """Return the transformed rows, [n, hidden_size] in fp32, without changing `rows` in place.

        Raises:
            TransformError: it cannot be applied to these rows.
        """

    def requested(self, context: Context) -> float:
        """Return the dose that is asked for."""
        return float(getattr(self, self.dose or ""))

    def achieved(self, before: Tensor, after: Tensor, context: Context) -> float | None:
        """Return the dose that `after`, rounded to the engine's dtype, has really been given, in the dose's own unit.

        None where that is not defined.  It is logged beside the dose that was asked for.
        """
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        """Go to another process by its parameters, of which the rest is made again there."""
        return _make, (type(self), {field.name: getattr(self, field.name) for field in fields(self) if field.init})

    @property
    def is_neutral(self) -> bool:
        """Whether nothing is changed at these parameters."""
        return self.dose is not None and getattr(self, self.dose) == self.neutral

    def max_rows(self, count: int) -> int:
        """Return the most rows that `count` rows can become."""
        return count

    def files(self) -> Sequence[Path]:
        """Return the files that it reads, whose contents are part of what it is."""
        return ()

    def check(self, corpus: Corpus) -> None:  # noqa: B027 - most have nothing to check
        """Read what comes from outside and check that it fits the model; called before any engine starts.

        Raises:
            ConfigError: a file is missing or malformed, or what it holds is of another width or not finite.
        """


def _make(transform: type[Transform], parameters: Mapping[str, Any]) -> Transform:
    return transform(**parameters)


@dataclass(frozen=True, slots=True)
class Rearranged:
    """What a stretch of rows has become.

    Attributes:
        rows: [m, hidden_size].
        parents: for each of them the rows of the stretch, by number, that it stems from; none for one from outside.
        token_ids: for each of them the token that it stands for, which repetition penalties read; None for that of
            its first parent.
    """

    rows: Tensor
    parents: Sequence[tuple[int, ...]]
    token_ids: Sequence[int | None] | None = None


@dataclass(frozen=True, slots=True)
class Rearrangement(Transform):
    """A transform that moves, drops, repeats, merges or inserts rows.

    It is given each contiguous stretch of the span by itself; or, if `whole` is set, the rows from the span's first to
    its last as one stretch, of which it must then change none.
    """

    whole: ClassVar[bool] = False

    @abstractmethod
    def rearrange(self, rows: Tensor, context: Context) -> Rearranged:
        """Return what becomes of a stretch of rows, [n, hidden_size]."""

    def apply(self, rows: Tensor, context: Context) -> Tensor:
        """Return the rows of `rearrange`."""
        return self.rearrange(rows, context).rows


def register(name: str) -> Callable[[T], T]:
    """Make a transform known as `transform=<name>`.

    Raises:
        ValueError: the name is taken by another class, or a field has a name that every transform has already.
    """

    def add(cls: T) -> T:
        known = TRANSFORMS.setdefault(name, cls)
        if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"the transform name {name!r} is taken by {known.__module__}.{known.__qualname__}")
        own = {field.name for field in fields(cls)} if is_dataclass(cls) else set()
        if taken := own & {"span", "control", *dir(Transform), *Transform.__annotations__}:
            raise ValueError(f"the transform {name!r} has fields that every transform has already: {sorted(taken)}")
        cls.name = name
        TRANSFORMS[name] = cls
        return cls

    return add
