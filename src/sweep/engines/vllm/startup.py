"""Start vLLM: environment variables, arguments, and the process in which its core runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sweep.engines.base import ModelFiles
from sweep.engines.threads import threads_for
from sweep.engines.vllm import invariance
from sweep.engines.vllm.arguments import SIGNATURES, set_args
from sweep.engines.vllm.config import VLLMConfig
from sweep.engines.vllm.signatures import parameters
from sweep.errors import ConfigError
from sweep.inputs.model_files import AdapterFiles
from sweep.processes import parent_death

CPU_KV_CACHE_GIB = 0.5
MAX_LORAS = 8  # adapters in a batch; their matrices take memory next to the model's


def start(config: VLLMConfig, model: ModelFiles, max_model_len: int, cache_dir: Path, error_file: Path) -> Any:
    """Return a `vllm.LLM` whose processes end when this process ends.

    Args:
        config: configuration of the engine.
        model: the model's files.
        max_model_len: longest sequence of prompt and answer, in tokens.
        cache_dir: folder for vLLM's caches.
        error_file: path that does not exist yet. A process of vLLM that fails writes its exception there.

    Raises:
        ConfigError: the machine cannot run this configuration.
        Exception: any exception of vLLM.
    """
    import torch

    on_gpu, in_process = placement(config)
    if not on_gpu and worker_count(config) > config.tensor_parallel_size:  # 0.32: its workers need a warm-up run
        raise ConfigError(
            "engine.args.pipeline_parallel_size must be 1 on a CPU, where vLLM's pipelines fail without compilation. "
            "Set engine.tensor_parallel_size instead."
        )
    threads = 1 if on_gpu else config.threads or threads_for(model.folder)
    # If the core runs in another process or on a GPU, little work is left here. With a thread per core, OpenMP keeps
    # all cores busy for 20 ms after each tensor.
    torch.set_num_threads(threads if in_process else 1)
    import_vllm(config, cache_dir)
    import vllm

    # An earlier engine in this process left its environment variables in a cache, including the one that decides
    # where the core runs.
    vllm.envs.disable_envs_cache()
    if in_process:
        _import_model_class(model)
    with parent_death.tied_children(error_file), _tied_inspection(error_file), _core_threads(threads):
        return vllm.LLM(**_arguments(config, model, max_model_len, in_process, on_gpu))


def placement(config: VLLMConfig) -> tuple[bool, bool]:
    """Return whether the engine runs on a GPU, and whether its core runs in this process."""
    import torch

    on_gpu = torch.cuda.is_available()
    return on_gpu, config.in_process if config.in_process is not None else not on_gpu


def import_vllm(config: VLLMConfig, cache_dir: Path) -> None:
    """Import vLLM after setting the environment variables that it reads at import."""
    on_gpu, in_process = placement(config)
    _set_environment(config, in_process, on_gpu, cache_dir)
    import vllm

    _ = vllm.LLM  # imported lazily on first access


def _arguments(
    config: VLLMConfig, model: ModelFiles, max_model_len: int, in_process: bool, on_gpu: bool
) -> dict[str, Any]:
    """Return the arguments of `vllm.LLM`.

    On a CPU, eager execution with a fixed KV cache size skips compilation and warm-up. Selecting the single-process
    executor saves the intermediate process.
    """
    arguments: dict[str, Any] = {
        "model": str(model.folder),
        "dtype": model.dtype,
        "trust_remote_code": model.trust_remote_code,
        "enable_prompt_embeds": True,
        "max_model_len": max_model_len,
        "max_num_seqs": config.max_num_seqs,
        "enable_prefix_caching": config.prefix_caching,
        "enforce_eager": config.enforce_eager if config.enforce_eager is not None else not on_gpu,
        "gpu_memory_utilization": config.gpu_memory_utilization,
        "tensor_parallel_size": config.tensor_parallel_size,
        "seed": 0,
    }
    gib = config.kv_cache_gib or (None if on_gpu else CPU_KV_CACHE_GIB)
    if gib is not None:
        arguments["kv_cache_memory_bytes"] = int(gib * 2**30)
    if not on_gpu and not in_process and worker_count(config) == 1:
        arguments["distributed_executor_backend"] = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
    chosen = config.args.keys() & {"enable_chunked_prefill", "max_num_batched_tokens"}
    if not on_gpu and not config.prefix_caching and not chosen:
        # 0.32: on a CPU, a request with a seed fails if its prompt is split over two batches. For prefix caching,
        # models with a recurrent state need such splits.
        arguments["enable_chunked_prefill"] = False
    return arguments | _lora_arguments(model.adapters, on_gpu) | set_args(config.args)


def _lora_arguments(adapters: Sequence[AdapterFiles], on_gpu: bool) -> dict[str, Any]:
    """Return the arguments for adapters; on a GPU, up to `MAX_LORAS` of them share a batch.

    On a CPU, vLLM 0.32 applies the last slot to requests without an adapter that share a batch with others: their slot
    is -1, which its PyTorch operations take as an index (`lora/ops/torch_ops`). So one slot more stays empty.
    """
    if not adapters:
        return {}
    rank = max(adapter.rank for adapter in adapters)
    allowed = [choice for choice in parameters(*SIGNATURES["engine"])["max_lora_rank"].choices if choice >= rank]
    count = min(len(adapters), MAX_LORAS) if on_gpu else len(adapters) + 1
    return {"enable_lora": True, "max_lora_rank": min(allowed, default=rank), "max_loras": count}


def worker_count(config: VLLMConfig) -> int:
    """Return the number of processes that share the model."""
    return config.tensor_parallel_size * int(config.args.get("pipeline_parallel_size") or 1)


def _set_environment(config: VLLMConfig, in_process: bool, on_gpu: bool, cache_dir: Path) -> None:
    """Set the variables that vLLM reads at import; keep those that the user has set."""
    settings = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_COMPUTE_NANS_IN_LOGITS": "1",
        "VLLM_RAISE_ON_LOGIT_NANS": "1",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_CACHE_ROOT": str(cache_dir / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache_dir / "torchinductor"),
        "TRITON_CACHE_DIR": str(cache_dir / "triton"),
        # A forked process would inherit locks of threads, and CUDA, which the search for GPUs has initialised.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    if not on_gpu:
        settings |= {"TORCH_COMPILE_DISABLE": "1", "VLLM_HOST_IP": "127.0.0.1"}
        if worker_count(config) > 1:  # otherwise each process needs a NUMA node of its own
            settings["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    for key, value in settings.items():
        os.environ.setdefault(key, value)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0" if in_process else "1"
    if config.batch_invariant:
        os.environ[invariance.INVARIANT] = "1"
    elif invariance.USER_INVARIANT is None:  # an earlier engine may have set it
        os.environ.pop(invariance.INVARIANT, None)
    else:
        os.environ[invariance.INVARIANT] = invariance.USER_INVARIANT


@contextmanager
def _core_threads(threads: int) -> Iterator[None]:
    """Set the threads of a core in another process; last bits on a CPU depend on their number."""
    variable = "OMP_NUM_THREADS"
    if variable in os.environ:
        yield
        return
    os.environ[variable] = str(threads)
    try:
        yield
    finally:
        del os.environ[variable]


@contextmanager
def _tied_inspection(error_file: Path) -> Iterator[None]:
    """Also tie the process in which vLLM inspects the class of a model that it does not know yet."""
    from vllm.model_executor.models import registry

    original = registry._SUBPROCESS_COMMAND
    run = f"import runpy; runpy.run_module({registry.__name__!r}, run_name='__main__', alter_sys=True)"
    registry._SUBPROCESS_COMMAND = parent_death.tied_command(run, error_file)
    try:
        yield
    finally:
        registry._SUBPROCESS_COMMAND = original


def _import_model_class(model: ModelFiles) -> None:
    """Import the model's class in this process; otherwise vLLM starts a process (10 s) only to inspect it.

    Classes that an import does not find, such as those in a model's repository, are left to vLLM.
    """
    import json

    from vllm.model_executor.models import ModelRegistry

    architectures = json.loads((model.folder / "config.json").read_text()).get("architectures") or []
    for architecture in architectures:
        registered = ModelRegistry.models.get(architecture)
        if registered is not None:
            ModelRegistry.register_model(architecture, registered.load_model_cls())
