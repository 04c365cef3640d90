"""What is checked of embeddings before any engine sees them, for none of them checks all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sweep.engines.base import Request

if TYPE_CHECKING:
    import torch


def fault(request: Request, hidden_size: int, dtype: torch.dtype) -> str | None:
    """Say what is wrong with a request's embeddings; None: nothing, or it has none.

    One NaN or infinity would poison cache blocks that later requests read, and rows of width 1 would be broadcast.
    """
    embeds = request.embeds
    if embeds is None:
        return None
    expected = (len(request.token_ids), hidden_size)
    if tuple(embeds.shape) != expected or embeds.dtype != dtype:
        return f"its embeddings are {tuple(embeds.shape)} {embeds.dtype}, not {expected} {dtype}"
    return None if embeds.isfinite().all() else f"its embeddings are not finite in {dtype}"
