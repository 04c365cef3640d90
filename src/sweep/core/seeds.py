"""Seeds derived from names, so that results do not depend on order, batching or worker."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: int | str) -> int:
    """Return a seed in [0, 2**62) that depends on all parts and nothing else.

    Two bits stay free, because engines count up from a request's seed for its samples in a signed 64-bit integer.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 2
