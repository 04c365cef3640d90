"""The configuration of the Transformers engine, which `transformers_engine` is: the reference where vLLM cannot run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from sweep.checks import require, require_choice
from sweep.engines.base import Engine, EngineConfig, ModelFiles

DEVICES = ("cpu", "cuda", "mps")


@dataclass(frozen=True, slots=True)
class TransformersConfig(EngineConfig):
    """Transformers in this process, on any platform.  None means: what is fastest on the hardware at hand.

    Attributes:
        max_batch_size: answers that are generated at a time.
        device: `cpu`, `cuda` or `mps`; None: the GPU if there is one.
        threads: on a CPU; None: one for a small model, else one for each core.
    """

    name: ClassVar[str] = "transformers"

    max_batch_size: int = 32
    device: str | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        for key in ("max_model_len", "max_batch_size", "threads"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"engine.{key}", "must be at least 1", value)
        if self.device is not None:
            require_choice("engine.device", self.device, DEVICES)

    def open(self, model: ModelFiles, max_model_len: int, cache_dir: Path) -> Engine:
        """Load the model; see `EngineConfig.open`.

        Raises:
            ConfigError: PyTorch sees no such device.
        """
        from sweep.engines.transformers_engine import TransformersEngine

        return TransformersEngine(self, model, max_model_len)

    def smaller(self) -> TransformersConfig | None:
        """Return half as many answers at a time."""
        return replace(self, max_batch_size=self.max_batch_size // 2) if self.max_batch_size > 1 else None
