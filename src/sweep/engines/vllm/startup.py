"""How vLLM is started: its environment, its arguments, and where its core runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.engines import lifeline
from sweep.engines.base import ModelFiles
from sweep.engines.threads import threads_for

if TYPE_CHECKING:
    from sweep.engines.vllm import VLLMConfig

CPU_KV_CACHE_GIB = 0.5
INVARIANT = "VLLM_BATCH_INVARIANT"
USERS_INVARIANT = os.environ.get(INVARIANT)


def start(config: VLLMConfig, model: ModelFiles, max_model_len: int, cache_dir: Path, last_words: Path) -> Any:
    """Return a `vllm.LLM` whose processes end when this one does.

    Args:
        last_words: a file that does not exist yet, for the exception of which one of its processes dies.

    Raises:
        Exception: whatever vLLM raised.
    """
    import torch

    on_gpu, in_process = place(config)
    threads = 1 if on_gpu else config.threads or threads_for(model.folder)
    # Where the core is elsewhere, what is left here is small, as is what a core on a GPU does on the CPU: with a thread
    # for each core, OpenMP keeps all of them busy waiting for 20 ms after each tensor.
    torch.set_num_threads(threads if in_process else 1)
    import_vllm(config, cache_dir)
    import vllm

    # An engine that has run in this process has left the environment of its time in a cache, where also
    # whether this one is to run here would be looked up.
    vllm.envs.disable_envs_cache()
    if in_process:
        _import_model_class(model)
    with lifeline.tied(last_words), _tied_inspection(last_words), _core_threads(threads):
        return vllm.LLM(**_arguments(config, model, max_model_len, in_process, on_gpu))


def place(config: VLLMConfig) -> tuple[bool, bool]:
    """Return whether the engine is to run on a GPU, and whether in this process."""
    import torch

    on_gpu = torch.cuda.is_available()
    return on_gpu, config.in_process if config.in_process is not None else not on_gpu


def import_vllm(config: VLLMConfig, cache_dir: Path) -> None:
    """Import all of vLLM that is needed here, in the environment that it is to read."""
    on_gpu, in_process = place(config)
    _set_environment(in_process, on_gpu, config.batch_invariant, cache_dir)
    import vllm

    _ = vllm.LLM  # which it imports when it is first asked for it


def _arguments(
    config: VLLMConfig, model: ModelFiles, max_model_len: int, in_process: bool, on_gpu: bool
) -> dict[str, Any]:
    """Return the arguments of `vllm.LLM`.

    On a CPU, eager execution with a KV cache of stated size skips compilation and warm-up, and naming the
    one-process executor saves the process in between.
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
    if not on_gpu and not in_process and config.tensor_parallel_size == 1:
        arguments["distributed_executor_backend"] = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
    return arguments


def _set_environment(in_process: bool, on_gpu: bool, batch_invariant: bool, cache_dir: Path) -> None:
    """Set what vLLM reads at import; what the user has set stays."""
    settings = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_COMPUTE_NANS_IN_LOGITS": "1",
        "VLLM_RAISE_ON_LOGIT_NANS": "1",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_CACHE_ROOT": str(cache_dir / "vllm"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache_dir / "torchinductor"),
        "TRITON_CACHE_DIR": str(cache_dir / "triton"),
        # A fork would inherit threads' locks, and a CUDA that asking for GPUs has already woken.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    if not on_gpu:
        settings |= {"TORCH_COMPILE_DISABLE": "1", "VLLM_HOST_IP": "127.0.0.1"}
    for key, value in settings.items():
        os.environ.setdefault(key, value)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0" if in_process else "1"
    if batch_invariant:
        os.environ[INVARIANT] = "1"
    elif USERS_INVARIANT is None:  # an engine before may have been
        os.environ.pop(INVARIANT, None)
    else:
        os.environ[INVARIANT] = USERS_INVARIANT


@contextmanager
def _core_threads(threads: int) -> Iterator[None]:
    """Let a core in another process have so many: on a CPU as many as one in this, as last bits depend on them."""
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
def _tied_inspection(last_words: Path) -> Iterator[None]:
    """Tie also the process in which vLLM looks at a model's class when it sees it for the first time."""
    from vllm.model_executor.models import registry

    original = registry._SUBPROCESS_COMMAND
    run = f"import runpy; runpy.run_module({registry.__name__!r}, run_name='__main__', alter_sys=True)"
    registry._SUBPROCESS_COMMAND = lifeline.command(run, last_words)
    try:
        yield
    finally:
        registry._SUBPROCESS_COMMAND = original


def _import_model_class(model: ModelFiles) -> None:
    """Import the model's class here, lest vLLM start a process (10 s) only to look at it.

    Classes that need more than an import to be found, such as a repository's own, are left to vLLM.
    """
    import json

    from vllm.model_executor.models import ModelRegistry

    architectures = json.loads((model.folder / "config.json").read_text()).get("architectures") or []
    for architecture in architectures:
        registered = ModelRegistry.models.get(architecture)
        if registered is not None:
            ModelRegistry.register_model(architecture, registered.load_model_cls())
