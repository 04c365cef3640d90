"""Validation of requests before they reach an engine, and classification of engine errors."""

from __future__ import annotations

import re
from itertools import takewhile
from typing import TYPE_CHECKING, TypeVar

from sweep.engines.base import Request, Sampling
from sweep.errors import EngineError, EngineOutOfMemory
from sweep.util.validators import require

if TYPE_CHECKING:
    import torch

OUT_OF_MEMORY = re.compile(
    r"OutOfMemory|out of memory|MemoryError|bad_alloc|(can't|cannot) allocate memory|Free memory on device", re.I
)

VALIDATION = re.compile(r"\b1 validation error for \w+$")

LEAST_TEMPERATURE = 0.01  # vLLM 0.32: `_MAX_TEMP` in sampling_params.py

E = TypeVar("E", bound=EngineError)


def request_error(request: Request, hidden_size: int, dtype: torch.dtype) -> str | None:
    """Return what is wrong with a request's embeddings or its scored tokens; None if it is valid.

    Engines accept embeddings with the wrong width, with the wrong dtype or with NaN. They then crash or return
    meaningless answers.
    """
    length, embeds = len(request.token_ids), request.embeds
    if request.scored and not request.scored < length:
        return f"{request.scored} of its {length} tokens are to be scored, but the first token cannot be scored"
    if embeds is None:
        return None
    expected = (length, hidden_size)
    if tuple(embeds.shape) != expected or embeds.dtype != dtype:
        return f"its embeddings are {tuple(embeds.shape)} {embeds.dtype}, expected {expected} {dtype}"
    return None if request.finite or embeds.isfinite().all() else f"its embeddings are not finite in {dtype}"


def require_temperature(sampling: Sampling, engine: str) -> None:
    """Reject temperatures that vLLM would raise to `LEAST_TEMPERATURE` with no more than a line in its log.

    Raises:
        ConfigError: the temperature is between 0 and `LEAST_TEMPERATURE`.
    """
    valid = sampling.temperature == 0 or sampling.temperature >= LEAST_TEMPERATURE
    rule = (
        f"must be 0 (greedy) or at least {LEAST_TEMPERATURE} with engine={engine}, because vLLM raises lower "
        f"temperatures to {LEAST_TEMPERATURE}. engine=transformers accepts them"
    )
    require(valid, "sampling.temperature", rule, sampling.temperature)


def error_type(text: str, default: type[E]) -> type[E] | type[EngineOutOfMemory]:
    """Return `EngineOutOfMemory` if an error message indicates a lack of memory, else `default`."""
    return EngineOutOfMemory if OUT_OF_MEMORY.search(text) else default


def describe(error: Exception) -> str:
    """Return the error's type and message."""
    return f"{type(error).__name__}: {error}"


def summary(error: Exception) -> str:
    """Return the error's type and the first line of its message."""
    return first_line(describe(error))


def first_line(text: str) -> str:
    """Return the first line that is not blank, at most 300 characters.

    Pydantic writes only the number of errors there, so the first error follows it.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines and VALIDATION.search(lines[0]):
        details = takewhile(lambda line: not line.startswith("For further information"), lines[1:])
        lines = [": ".join([lines[0], *(line.partition(" [type=")[0] for line in details)])]
    return lines[0][:300] if lines else ""
