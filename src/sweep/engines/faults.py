"""What is wrong with a request before an engine is asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sweep.engines.base import Request

if TYPE_CHECKING:
    import torch


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
