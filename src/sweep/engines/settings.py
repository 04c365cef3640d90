"""Engine settings in a point's fingerprint: which settings are part of it, and why.

Included are settings that change tokens or the arithmetic behind them. Excluded are the engine's address, time limits,
memory and batch size. The batch size can change last bits too, but an engine that runs out of memory halves its batch
within a sweep. `scoring.noise_floor` measures that effect. A setting that is null selects the default for the
hardware, which is recorded as a tag.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Effect:
    """The effect of one setting on generations.

    Attributes:
        changes_generations: whether the setting is part of the fingerprint.
        reason: why it is or is not part of it; a sentence for the documentation.
    """

    changes_generations: bool
    reason: str


def changes(reason: str) -> Effect:
    """Declare a setting that is part of the fingerprint."""
    return Effect(True, reason)


def no_change(reason: str) -> Effect:
    """Declare a setting that is not part of the fingerprint."""
    return Effect(False, reason)


MAX_MODEL_LEN: Mapping[str, Effect] = {
    "max_model_len": changes("It cuts answers that reach it, and selects the long factors of LongRoPE.")
}

TF32_VARIABLES: Mapping[str, Effect] = {
    name: changes("It turns TF32 on or off for float32 matrix products on a GPU.")
    for name in ("NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE")
}
