"""Configuration of the vLLM engine: `engine=vllm`."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from sweep.core.provenance import PACKAGES
from sweep.engines.base import Engine, EngineConfig, ModelFiles, Sampling
from sweep.engines.request_errors import require_temperature
from sweep.engines.settings import MAX_MODEL_LEN, TF32_VARIABLES, Effect, changes, no_change
from sweep.engines.vllm import companions, invariance
from sweep.engines.vllm.arguments import check_engine_args, check_sampling_args, fingerprint_args
from sweep.util.validators import require

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class VLLMConfig(EngineConfig):
    """vLLM's offline engine. None selects the fastest setting for the hardware.

    Attributes:
        max_num_seqs: Sequences in the continuous batch; 1 or more.
        window: Requests submitted ahead of their answers; 1 or more, null means twice max_num_seqs.
        kv_cache_gib: Memory for the KV cache in GiB; above 0, null means 0.5 on a CPU, and on a GPU what
            gpu_memory_utilization leaves.
        gpu_memory_utilization: Fraction of the GPU's memory to use; in (0, 1].
        tensor_parallel_size: GPUs that share the model; 1 or more.
        enforce_eager: Disable compilation and CUDA graphs; null means on a CPU only.
        in_process: Run the engine's core in this process; null means on a CPU only.
        threads: OpenMP threads of a CPU engine; 1 or more, null means 1 for small models, else one for each core.
        prefix_caching: Reuse the KV cache of equal beginnings, such as system prompts that no transform changes.
        batch_invariant: Make results independent of the batch, at half the speed; only on GPUs that vLLM supports.
        args: Further arguments of vLLM's EngineArgs by name, as in engine.args.quantization=fp8; null means vLLM's
            default.
    """

    name: ClassVar[str] = "vllm"
    packages: ClassVar[tuple[str, ...]] = PACKAGES["vllm"]
    effects: ClassVar[Mapping[str, Effect]] = {
        **MAX_MODEL_LEN,
        "max_num_seqs": no_change("It only sets the size of the batch, which is halved when memory runs out."),
        "window": no_change("It only changes how early the engine receives requests."),
        "kv_cache_gib": no_change("It is memory: requests that do not fit wait or are recomputed."),
        "gpu_memory_utilization": no_change("It is memory, and is lowered when memory runs out."),
        "tensor_parallel_size": changes("Sums are split between GPUs, which changes their last bits."),
        "enforce_eager": changes("Compiled kernels fuse operations and round differently."),
        "in_process": no_change("The same code runs in another process, as it always does after a crash."),
        "threads": changes("Sums are split between threads, which changes their last bits."),
        "prefix_caching": changes("Rows of a prompt are computed in other chunks, which changes their last bits."),
        "batch_invariant": changes("It selects other kernels, whose results do not depend on the batch."),
        "args": changes(
            "Except those that concern only memory, loading or logs (`vllm/arguments.py`). Files and modules that they "
            "name count by content."
        ),
    }
    has_adapters: ClassVar[bool] = True
    variables: ClassVar[Mapping[str, Effect]] = {
        **TF32_VARIABLES,
        "VLLM_FLOAT32_MATMUL_PRECISION": changes("It allows TF32 for float32 matrix products."),
        "VLLM_MLA_DISABLE": changes("It selects another attention implementation for models with latent attention."),
        "VLLM_USE_FLASHINFER_SAMPLER": changes("It selects another sampler, which samples other tokens."),
        "VLLM_USE_V2_MODEL_RUNNER": changes("It selects another sampler, which samples other tokens."),
    }

    max_num_seqs: int = 256
    window: int | None = None
    kv_cache_gib: float | None = None
    gpu_memory_utilization: float = 0.9
    tensor_parallel_size: int = 1
    enforce_eager: bool | None = None
    in_process: bool | None = None
    threads: int | None = None
    prefix_caching: bool = False
    batch_invariant: bool = False
    args: dict[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for key in ("max_model_len", "max_num_seqs", "window", "tensor_parallel_size", "threads"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"engine.{key}", "must be at least 1", value)
        gib = self.kv_cache_gib
        require(gib is None or 0 < gib < math.inf, "engine.kv_cache_gib", "must be above 0, and finite", gib)
        fraction = self.gpu_memory_utilization
        require(0 < fraction <= 1, "engine.gpu_memory_utilization", "must be in (0, 1]", fraction)
        check_engine_args(self.args)

    def open(self, model: ModelFiles, max_model_len: int, cache_dir: Path) -> Engine:
        """Start vLLM; see `EngineConfig.open`."""
        from sweep.engines.vllm.engine import VLLMEngine

        return VLLMEngine(self, model, max_model_len, cache_dir)

    def check(self, sampling: Sampling) -> None:
        """Reject temperatures that vLLM would raise; see `EngineConfig.check`."""
        require_temperature(sampling, self.name)

    def context(self, trained: int) -> int:
        """Return the longest sequence of the model with `hf_overrides`; see `EngineConfig.context`."""
        overrides = self.args.get("hf_overrides") or {}
        if isinstance(overrides.get("max_position_embeddings"), int):
            return int(overrides["max_position_embeddings"])
        is_scaled = any("rope" in name for name in overrides)  # vLLM computes and checks the length
        return max(trained, self.max_model_len or 0) if is_scaled else trained

    def check_args(self, args: Mapping[str, Any]) -> None:
        """Check `sampling.args` against the installed vLLM; see `EngineConfig.check_args`."""
        check_sampling_args(args)

    def check_model(self, model: ModelFiles, cache_dir: Path) -> None:
        """Reject vision models whose packages are missing; see `EngineConfig.check_model`."""
        companions.require_companions(model, cache_dir)

    def warm_up(self, cache_dir: Path) -> None:
        """Import vLLM."""
        try:
            from sweep.engines.vllm.startup import import_vllm

            import_vllm(self, cache_dir)
        except Exception:
            log.info("Failed to import vLLM.", exc_info=True)

    def generation_settings(self) -> dict[str, Any]:
        """Return the settings that change generations; $VLLM_BATCH_INVARIANT counts as `batch_invariant`."""
        # Not `super()`: a dataclass with slots is created twice, and `super()` would refer to the first class.
        settings = EngineConfig.generation_settings(self)
        args = fingerprint_args(settings.pop("args"))
        settings |= {"args": args} if args else {}
        return settings | {"batch_invariant": self.batch_invariant or invariance.USER_INVARIANT == "1"}

    def for_restart(self) -> VLLMConfig:
        """Return the configuration with the engine's core in a separate process."""
        return replace(self, in_process=False)

    def smaller(self) -> VLLMConfig | None:
        """Return the configuration with half as many sequences and 90 % of the GPU memory utilization.

        With fewer sequences alone, vLLM would give the saved memory to the KV cache.
        """
        if self.max_num_seqs == 1:
            return None
        return replace(
            self,
            max_num_seqs=self.max_num_seqs // 2,
            window=max(1, self.window // 2) if self.window else None,
            gpu_memory_utilization=0.9 * self.gpu_memory_utilization,
        )
