"""Configuration of the Transformers engine: `engine=transformers`. It runs where vLLM cannot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from sweep.core.provenance import PACKAGES
from sweep.engines.base import Engine, EngineConfig, ModelFiles
from sweep.engines.settings import MAX_MODEL_LEN, TF32_VARIABLES, Effect, changes, no_change
from sweep.util.validators import require, require_choice

DEVICES = ("cpu", "cuda", "mps")
SAMPLING_ARGS = (
    *("allowed_token_ids", "frequency_penalty", "logit_bias", "min_p", "min_tokens", "presence_penalty"),
    "stop_token_ids",
)


@dataclass(frozen=True, slots=True)
class TransformersConfig(EngineConfig):
    """Transformers in this process, on any platform. None selects the fastest setting for the hardware.

    Attributes:
        max_batch_size: Answers generated at a time; 1 or more.
        device: cpu, cuda or mps; null means the GPU if there is one.
        threads: Threads on a CPU; 1 or more, null means 1 for small models, else one for each core.
    """

    name: ClassVar[str] = "transformers"
    packages: ClassVar[tuple[str, ...]] = PACKAGES["transformers"]
    effects: ClassVar[Mapping[str, Effect]] = {
        **MAX_MODEL_LEN,
        "max_batch_size": no_change("It only sets the size of the batch, which is halved when memory runs out."),
        "device": changes("Devices use different kernels, which round differently."),
        "threads": changes("Sums are split between threads, which changes their last bits."),
    }
    variables: ClassVar[Mapping[str, Effect]] = TF32_VARIABLES

    max_batch_size: int = 32
    device: str | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        for key in ("max_model_len", "max_batch_size", "threads"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"engine.{key}", "must be at least 1", value)
        if self.device is not None:
            require_choice("engine.device", self.device, DEVICES)

    def check_args(self, args: Mapping[str, Any]) -> None:
        """Reject parameters that this engine does not have; see `EngineConfig.check_args`."""
        for name in args:
            require_choice("sampling.args", name, SAMPLING_ARGS, what="parameter that engine=transformers has")

    def open(self, model: ModelFiles, max_model_len: int, cache_dir: Path) -> Engine:
        """Load the model; see `EngineConfig.open`.

        Raises:
            ConfigError: PyTorch does not find the device.
        """
        from sweep.engines.transformers.engine import TransformersEngine

        return TransformersEngine(self, model, max_model_len)

    def smaller(self) -> TransformersConfig | None:
        """Return the configuration with half the batch size."""
        return replace(self, max_batch_size=self.max_batch_size // 2) if self.max_batch_size > 1 else None
