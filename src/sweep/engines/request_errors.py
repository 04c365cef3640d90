"""What is wrong with a request before an engine is asked, and what an engine's error says."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

from sweep.engines.base import Request
from sweep.errors import EngineError, EngineOutOfMemory

if TYPE_CHECKING:
    import torch

OUT_OF_MEMORY = re.compile(
    r"OutOfMemory|out of memory|MemoryError|bad_alloc|(can't|cannot) allocate memory|Free memory on device", re.I
)

E = TypeVar("E", bound=EngineError)


def fault(request: Request, hidden_size: int, dtype: torch.dtype) -> str | None:
    """Say what is wrong with a request's embeddings or with what is to be scored of it; None: nothing.

    Engines take embeddings of wrong width, dtype or with NaN in them, and answer anything or break.
    """
    length, embeds = len(request.token_ids), request.embeds
    if request.scored and not request.scored < length:
        return f"{request.scored} of its {length} tokens are to be scored, and the first has nothing before it"
    if embeds is None:
        return None
    expected = (length, hidden_size)
    if tuple(embeds.shape) != expected or embeds.dtype != dtype:
        return f"its embeddings are {tuple(embeds.shape)} {embeds.dtype}, not {expected} {dtype}"
    return None if embeds.isfinite().all() else f"its embeddings are not finite in {dtype}"


def kind(text: str, otherwise: type[E]) -> type[E] | type[EngineOutOfMemory]:
    """Return the type of an error that says this."""
    return EngineOutOfMemory if OUT_OF_MEMORY.search(text) else otherwise


def describe(error: Exception) -> str:
    """Return the error's type and message."""
    return f"{type(error).__name__}: {error}"


def summary(error: Exception) -> str:
    """Return the error's type and the first line of its message."""
    return first_line(describe(error))


def first_line(text: str) -> str:
    """Return the first line that says something."""
    return next((line.strip()[:300] for line in text.splitlines() if line.strip()), "")
