"""Sweep transforms of prompt embeddings through vLLM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweep.api import contrast as contrast
    from sweep.api import load as load

__all__ = ["contrast", "load"]


def __getattr__(name: str) -> Any:
    # Only when asked for: pandas takes a second, and every start of the program would pay it.
    if name in __all__:
        from sweep import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
