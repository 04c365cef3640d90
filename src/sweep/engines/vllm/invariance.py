"""The environment variable of vLLM's batch invariance, as set by the user.

It is read at import, before an engine in this process changes it.
"""

from __future__ import annotations

import os

INVARIANT = "VLLM_BATCH_INVARIANT"
USER_INVARIANT = os.environ.get(INVARIANT)
