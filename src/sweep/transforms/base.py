"""Base classes of transforms: pure functions on some of a prompt's embedding rows, in fp32.

A transform uses tensors and its own parameters only; it knows nothing of configurations, engines or trackers. It is a
frozen dataclass whose fields are its command-line parameters, checked before anything starts:

    @register("negate")
    @dataclass(frozen=True, slots=True)
    class Negate(Transform):
        \"\"\"-E.\"\"\"

        def apply(self, rows, context):
            return -rows

A transform receives only the rows of its span; `pipeline` puts its result back in their place. PyTorch is imported
inside the functions that need it, so that reading a configuration does not load it.
"""

from __future__ import annotations

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
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

    The first paragraph of a transform's docstring is its formula. The rest gives the source and describes the fields.
    Instances are immutable and may be used by any thread; they are pickled to pool processes.

    Attributes:
        name: set by `register`.
        dose: the field that sets how much is changed; None if there is none.
        neutral: the dose at which nothing changes. `apply` is not called for it, so rows stay bit-identical.
        proportional: whether the change is proportional to the dose. If so, the achieved dose is computed from the part
            of the change that remains after the cast to the engine's dtype, and `achieved` is not called.
        default_span: the part of the prompt that is changed unless the user sets another span.
        examples: parameters at which the transform changes something, for the conformance tests.
        paths: fields that name `files`. The contents of these files are part of the fingerprint, not their paths.
        added: fields that later versions added, dotted if nested, with their defaults. At these values they count
            neither in fingerprints nor in sweep ids, so that unchanged commands resume the sweeps of earlier versions.
    """

    name: ClassVar[str]
    dose: ClassVar[str | None] = None
    neutral: ClassVar[float | None] = None
    proportional: ClassVar[bool] = False
    default_span: ClassVar[str] = "content"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({},)
    paths: ClassVar[Sequence[str]] = ()
    added: ClassVar[Mapping[str, Any]] = {}

    @abstractmethod
    def apply(self, rows: Tensor, context: Context) -> Tensor:
        """Return the transformed rows without changing `rows` in place.

        Args:
            rows: (n, hidden_size), float32.
            context: seeds, prompt, table and tokenizer.

        Returns:
            (n, hidden_size), float32.

        Raises:
            TransformError: the transform cannot be applied to these rows.
        """

    def requested(self, context: Context) -> float:
        """Return the requested dose."""
        return float(getattr(self, self.dose or ""))

    def achieved(self, before: Tensor, after: Tensor, context: Context) -> float | None:
        """Return the dose that was achieved after rounding to the engine's dtype, in the dose's own unit.

        Args:
            before: the rows before the transform, (n, hidden_size), float32.
            after: the transformed rows, rounded to the engine's dtype.
            context: as in `apply`.

        Returns:
            The achieved dose, logged next to the requested one; None if it is not defined.
        """
        return None

    def undo_rotation(self, rows: Tensor, context: Context) -> Tensor | None:
        """Return the rows before a rotation, computed from the rows after it with its parameters and seeds.

        `scoring.recovery` calls it for an attacker who knows the rotation.

        Args:
            rows: (n, hidden_size), float32: some of the rows of the span.
            context: as in `apply`, without the rows' origins.

        Returns:
            (n, hidden_size), float32; None if this transform is not a rotation.
        """
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as class and parameters; derived fields are computed again."""
        return _unpickle, (type(self), {field.name: getattr(self, field.name) for field in fields(self) if field.init})

    @property
    def is_neutral(self) -> bool:
        """Whether these parameters change nothing."""
        return self.dose is not None and getattr(self, self.dose) == self.neutral

    def max_rows(self, count: int) -> int:
        """Return the maximum number of rows that `count` rows can become."""
        return count

    def files(self) -> Sequence[Path]:
        """Return the files that the transform reads. Their contents are part of its fingerprint."""
        return ()

    def facts(self, corpus: Corpus) -> Mapping[str, float]:
        """Return numbers about the transform itself, by name of a measure in the group `perturbation`."""
        return {}

    def check(self, corpus: Corpus) -> None:  # noqa: B027 - most have nothing to check
        """Read external inputs and check that they fit the model. Called before an engine starts.

        Raises:
            ConfigError: a file is missing or malformed, or its contents have another width or are not finite.
        """


def _unpickle(transform: type[Transform], parameters: Mapping[str, Any]) -> Transform:
    return transform(**parameters)


@dataclass(frozen=True, slots=True)
class Rearranged:
    """Result of rearranging a range of rows.

    Attributes:
        rows: (m, hidden_size), float32.
        parents: for each new row, the indices of the original rows it originates from; empty for an external row.
        token_ids: for each new row, the token it stands for, which repetition penalties read. None for the token of its
            first parent.
    """

    rows: Tensor
    parents: Sequence[tuple[int, ...]]
    token_ids: Sequence[int | None] | None = None


@dataclass(frozen=True, slots=True)
class Rearrangement(Transform):
    """A transform that moves, drops, repeats, merges or inserts rows.

    It is called for each contiguous range of the span separately. With `whole` set, it is called once with all rows
    from the span's first to its last, and must keep each of them.
    """

    whole: ClassVar[bool] = False

    @abstractmethod
    def rearrange(self, rows: Tensor, context: Context) -> Rearranged:
        """Return the rearranged rows of one range.

        Args:
            rows: (n, hidden_size), float32.
            context: seeds, prompt, table and tokenizer.

        Raises:
            TransformError: the transform cannot be applied to these rows.
        """

    def apply(self, rows: Tensor, context: Context) -> Tensor:
        """Return the rows of `rearrange`."""
        return self.rearrange(rows, context).rows


def register(name: str) -> Callable[[T], T]:
    """Register a transform as `transform=<name>`.

    Raises:
        TypeError: the name is invalid, or the class is not a transform: wrong base class, no `@dataclass`, no `apply`.
        ValueError: another class has the name, or a field has the name of an attribute of all transforms.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z][\w -]*", name):
        example = "a name of letters, digits, - and _, such as @register('fade')"
        raise TypeError(f"@register needs {example}, not {getattr(name, '__name__', name)!r}")

    def add(cls: T) -> T:
        _check_class(name, cls)
        registered = TRANSFORMS.setdefault(name, cls)
        if (registered.__module__, registered.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(
                f"the transform name {name!r} is taken by {registered.__module__}.{registered.__qualname__}"
            )
        field_names = {field.name for field in fields(cls)}
        if reserved := field_names & {"span", "control", *dir(Transform), *Transform.__annotations__}:
            raise ValueError(f"the transform {name!r} has fields with reserved names: {sorted(reserved)}. Rename them.")
        cls.name = name
        TRANSFORMS[name] = cls
        return cls

    return add


def _check_class(name: str, cls: Any) -> None:
    """Raise a `TypeError` that names what a class lacks to be a transform."""
    description = f"the transform {name!r} ({getattr(cls, '__qualname__', cls)})"
    if not isinstance(cls, type) or not issubclass(cls, Transform):
        raise TypeError(f"{description} must be a class that derives from sweep.transforms.Transform")
    if "__dataclass_fields__" not in vars(cls):  # an inherited value does not count
        raise TypeError(f"{description} needs @dataclass(frozen=True, slots=True) below @register")
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        raise TypeError(f"{description} does not define {', '.join(missing)}(self, rows, context)")
    for method in ("apply", "rearrange") if issubclass(cls, Rearrangement) else ("apply",):
        try:
            inspect.signature(getattr(cls, method)).bind("self", "rows", "context")
        except TypeError:
            raise TypeError(f"{description} must define {method}(self, rows, context)") from None
