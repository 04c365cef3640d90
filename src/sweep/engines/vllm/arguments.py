"""Further arguments of vLLM: `engine.args` and `sampling.args`, checked against the installed vLLM's signatures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sweep.engines import sampling_args
from sweep.engines.vllm.argument_files import contents, secret_of
from sweep.engines.vllm.signatures import parameters
from sweep.errors import ConfigError
from sweep.util.validators import closest, require, require_choice

STRUCTURED = "structured_outputs"
CONSTRAINTS = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")
SIGNATURES = {"engine": ("engine.arg_utils", "EngineArgs"), "sampling": ("sampling_params", "SamplingParams")}
STRUCTURED_SIGNATURE = ("sampling_params", "StructuredOutputsParams")

# Arguments that keys of this project set.
OWN_KEYS: Mapping[str, str] = {
    "model": "model.id",
    "revision": "model.revision",
    "code_revision": "model.revision",
    "dtype": "model.dtype",
    "trust_remote_code": "model.trust_remote_code",
    "max_model_len": "engine.max_model_len",
    "max_num_seqs": "engine.max_num_seqs",
    "gpu_memory_utilization": "engine.gpu_memory_utilization",
    "tensor_parallel_size": "engine.tensor_parallel_size",
    "enforce_eager": "engine.enforce_eager",
    "enable_prefix_caching": "engine.prefix_caching",
    "kv_cache_memory_bytes": "engine.kv_cache_gib",
    "seed": "sampling.seed",
    "enable_lora": "model.lora",
    "max_lora_rank": "model.lora",
    "default_mm_loras": "model.lora",
    "max_loras": "model.lora",
}
# Arguments that must keep the value that this project gives them, and why.
FIXED: Mapping[str, str] = {
    "enable_prompt_embeds": "is always true here",
    "tokenizer": "must be the model's own, because prompts are tokenized with it",
    "tokenizer_revision": "must be the model's own, because prompts are tokenized with it",
    "tokenizer_mode": "must be the default, because prompts are tokenized with Transformers' tokenizer",
    "skip_tokenizer_init": "must be false, because answers are decoded to text",
    "runner": "must be the default, because answers are generated",
    "convert": "must be the default, because answers are generated",
    "model_weights": "is set by model.id",
    "served_model_name": "has no effect without a server",
    "data_parallel_size": "must be 1; for several engines, set hydra.launcher.workers",
    "tokens_only": "must be false, because answers are decoded to text",
    "override_generation_config": "has no effect, because every request sets its own sampling",
    "stream_interval": "has no effect on complete answers",
    "hf_token": "is a secret, and arguments are recorded. Set $HF_TOKEN instead",
}

# Arguments that do not change generations, and are therefore not part of the fingerprint.
NO_CHANGE = frozenset(
    {
        "aggregate_engine_logging", "collect_detailed_traces", "cpu_distributed_timeout_seconds", "cudagraph_metrics",
        "custom_histogram_buckets", "disable_log_stats", "distributed_timeout_seconds", "download_dir",
        "enable_layerwise_nvtx_tracing", "enable_logging_iteration_details", "enable_mfu_metrics",
        "enable_mm_processor_stats", "fail_on_environ_validation", "jit_monitor_mode",
        "jit_monitor_verbose", "kv_cache_metrics", "kv_cache_metrics_sample", "log_config_file", "log_level",
        "logging_config", "master_addr", "master_port", "max_cpu_loras", "max_parallel_loading_workers",
        "numa_bind", "numa_bind_cpus", "numa_bind_nodes", "num_gpu_blocks_override", "otlp_traces_endpoint",
        "per_request_spec_decode_metrics", "profiler_config", "pt_load_map_location", "ray_workers_use_nsight",
        "renderer_num_workers", "safetensors_load_strategy", "safetensors_prefetch_block_size",
        "safetensors_prefetch_num_threads", "show_hidden_metrics_for_version", "shutdown_timeout",
        "use_tqdm_on_load", "watermark",
    }
)  # fmt: skip


def check_engine_args(args: Mapping[str, Any]) -> None:
    """Check the names and types of `engine.args`; only the names of own keys where vLLM is not installed.

    Raises:
        ConfigError: an argument is unknown, belongs to a key of this project, or has a value that vLLM cannot take.
    """
    _check("engine.args", args, OWN_KEYS, FIXED, SIGNATURES["engine"])
    overrides = args.get("hf_overrides") or {}
    is_mapping = isinstance(overrides, dict) and all(isinstance(name, str) for name in overrides)
    require(is_mapping, "engine.args.hf_overrides", "must be a mapping with names as keys", overrides)
    if (secret := secret_of(args)) is not None:
        raise ConfigError(
            f"engine.args.{secret} is a secret, and arguments are recorded. Remove it, and set the environment "
            "variable that its library reads, such as $AWS_SECRET_ACCESS_KEY."
        )
    stages = args.get("pipeline_parallel_size")
    require(stages is None or stages >= 1, "engine.args.pipeline_parallel_size", "must be at least 1", stages)
    rule = "must not be dummy: the embedding rows are the checkpoint's, not those of random weights"
    require(args.get("load_format") != "dummy", "engine.args.load_format", rule, None)


def check_sampling_args(args: Mapping[str, Any]) -> None:
    """Check the names and types of `sampling.args`. See `check_engine_args`."""
    _check("sampling.args", args, {}, {}, SIGNATURES["sampling"])
    structured = args.get(STRUCTURED) or {}
    _check(f"sampling.args.{STRUCTURED}", structured, {}, {}, STRUCTURED_SIGNATURE)
    _check_structured(structured)


def argument_key(key: str) -> str | None:
    """Return the key that sets an argument of vLLM, for a key such as `sampling.min_p` that does not exist."""
    section, _, name = key.partition(".")
    own = {"engine": OWN_KEYS, "sampling": sampling_args.OWN_KEYS}.get(section)
    if own is None:
        return None
    if name in own:
        return own[name]
    return f"{section}.args.{name}" if name in parameters(*SIGNATURES[section]) else None


def set_args(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that are not null; null stands for vLLM's default."""
    return {name: value for name, value in args.items() if value is not None}


def fingerprint_args(args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of `engine.args` that can change generations, and the digests of files that they name."""
    changing = {name: value for name, value in set_args(args).items() if name not in NO_CHANGE}
    digests = contents(changing)
    return changing | ({"contents": digests} if digests else {})


def _check_structured(value: Mapping[str, Any]) -> None:
    """Refuse none or several constraints, as vLLM does when the first request is made.

    Raises:
        ConfigError: names them.
    """
    chosen = [kind for kind in CONSTRAINTS if value.get(kind) is not None]
    if value and len(chosen) != 1:
        found = f"not {' and '.join(chosen)} together" if chosen else "not none of them"
        raise ConfigError(f"sampling.args.{STRUCTURED}: needs one of {', '.join(CONSTRAINTS)}, {found}.")


def _check(
    key: str, args: Mapping[str, Any], own: Mapping[str, str], fixed: Mapping[str, str], signature: tuple[str, str]
) -> None:
    if not args:
        return
    known = parameters(*signature)
    available = sorted(known.keys() - own.keys() - fixed.keys())
    for name, value in args.items():
        if name in own:
            raise ConfigError(f"{key}.{name}: set {own[name]} instead.")
        if name in fixed:
            raise ConfigError(f"{key}.{name} {fixed[name]}. Remove it.")
        if not known:
            continue
        if name not in known:
            hint = closest(name, available)
            missing = f"{key}.{name}: {signature[1]} of the installed vLLM has no such argument."
            raise ConfigError(f"{missing} {hint}".rstrip())
        parameter = known[name]
        if not parameter.accepts(value):
            if parameter.choices and not parameter.kinds:
                require_choice(f"{key}.{name}", str(value), [str(choice) for choice in parameter.choices])
            require(False, f"{key}.{name}", f"must be {parameter}", value)
