"""vLLM's offline engine, fed with prompt embeddings.

What is peculiar here was measured on vLLM 0.32 and holds back to 0.26; check it again when the pin moves:

- A request carries embeddings, token ids and an all-False mask.  Ids without the mask make vLLM ignore the
  embeddings; embeddings alone lose prompt log-probabilities and let penalties read stale rows (vllm#57719).
- The offline path checks neither shape nor dtype nor finiteness of embeddings, and one NaN poisons cache blocks that
  later requests read.  So requests are checked here, and non-finite logits end the engine.
- After an exception, requests of which the engine still knows would make the next step spin for ever: all are aborted.
- A killed core process leaves the synchronous client waiting for ever: its death is put where the client waits.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sweep.checks import require
from sweep.engines.base import Completion, Engine, EngineConfig, Generation, ModelFiles, Request
from sweep.errors import EngineError

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams

SMALL_MODEL_BYTES = 256 << 20
CPU_KV_CACHE_GIB = 0.5


@dataclass(frozen=True, slots=True)
class VLLMConfig(EngineConfig):
    """vLLM's offline engine.  None means: what is fastest on the hardware at hand.

    Attributes:
        max_num_seqs: sequences in the continuous batch.
        window: requests handed to the engine ahead of their answers; None: twice `max_num_seqs`.
        kv_cache_gib: memory for the KV cache; None: 0.5 on a CPU, the rest of `gpu_memory_utilization` on a GPU.
        gpu_memory_utilization: share of the GPU's memory to use.
        tensor_parallel_size: GPUs that share the model.
        enforce_eager: no compilation, no CUDA graphs; None: eager on a CPU, compiled on a GPU.
        in_process: run the engine's core in this process; None: on a CPU only.
        threads: OpenMP threads of an in-process CPU engine; None: one for a small model, else one for each core.
        prefix_caching: reuse the KV cache of equal beginnings, as of untouched system prompts.
        batch_invariant: results that do not depend on the batch (NVIDIA GPUs; slower).
    """

    name: ClassVar[str] = "vllm"

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

    def __post_init__(self) -> None:
        for key in ("max_model_len", "max_num_seqs", "window", "tensor_parallel_size", "threads"):
            value = getattr(self, key)
            require(value is None or value >= 1, f"engine.{key}", "must be at least 1", value)
        gib = self.kv_cache_gib
        require(gib is None or gib > 0, "engine.kv_cache_gib", "must be above 0", gib)
        share = self.gpu_memory_utilization
        require(0 < share <= 1, "engine.gpu_memory_utilization", "must be in (0, 1]", share)

    def open(self, model: ModelFiles, max_model_len: int, cache_dir: Path) -> Engine:
        """Start vLLM; see `EngineConfig.open`."""
        return VLLMEngine(self, model, max_model_len, cache_dir)


class VLLMEngine(Engine):
    """A started `vllm.LLM`, driven request by request so that any number of points share its batch.

    Attributes:
        llm: the `vllm.LLM`; None once closed.
    """

    def __init__(self, config: VLLMConfig, model: ModelFiles, max_model_len: int, cache_dir: Path) -> None:
        import torch

        on_gpu = torch.cuda.is_available()
        in_process = config.in_process if config.in_process is not None else not on_gpu
        _set_environment(in_process, on_gpu, config.batch_invariant, cache_dir)
        if in_process and not on_gpu:
            torch.set_num_threads(config.threads or _threads_for(model.folder))
        self._window = config.window or 2 * config.max_num_seqs
        self.llm: Any = None
        try:
            import vllm

            if in_process:
                _import_model_class(model)
            self.llm = vllm.LLM(**_arguments(config, model, max_model_len, in_process, on_gpu))
        except Exception as error:
            raise EngineError(f"vLLM did not start: {_reason(error)}") from error
        self.version = f"vllm {vllm.__version__}"
        self._dtype: torch.dtype = self.llm.model_config.dtype
        self._hidden_size: int = self.llm.model_config.get_hidden_size()
        _watch_core(self.llm)

    def generate(self, requests: Iterable[Request]) -> Iterator[Generation]:
        """Answer requests from one continuous batch; see `Engine.generate`."""
        waiting = iter(requests)
        in_flight: dict[str, Request] = {}
        try:
            while True:
                for request in islice(waiting, self._window - len(in_flight)):
                    in_flight[self._submit(request)] = request
                if not in_flight:
                    return
                for output in self._step():
                    if output.finished:
                        yield _generation(in_flight.pop(output.request_id), output)
        finally:
            self._abort_all()

    def close(self) -> None:
        """Shut the core down, whether it runs here or in a process of its own."""
        if self.llm is None:
            return
        llm, self.llm = self.llm, None
        llm.llm_engine.engine_core.shutdown()

    def _submit(self, request: Request) -> str:
        """Hand a request to vLLM and return the id under which its output comes back."""
        prompt: dict[str, Any] = {"prompt_token_ids": list(request.token_ids)}
        if request.embeds is not None:
            self._check(request)
            prompt["prompt_embeds"] = request.embeds
            prompt["prompt_is_token_ids"] = [False] * len(request.token_ids)
        try:
            internal = self.llm.enqueue([prompt], _sampling_params(request), use_tqdm=False)[0]
        except Exception as error:
            raise EngineError(f"vLLM refused a request: {_reason(error)}") from error
        return str(internal).rsplit("-", 1)[0]

    def _check(self, request: Request) -> None:
        """Raise EngineError for embeddings that vLLM would accept and be broken by."""
        embeds = request.embeds
        assert embeds is not None
        expected = (len(request.token_ids), self._hidden_size)
        if tuple(embeds.shape) != expected or embeds.dtype != self._dtype:
            got = f"{tuple(embeds.shape)} {embeds.dtype}"
            raise EngineError(f"Request {request.key}: embeddings are {got}, not {expected} {self._dtype}.")
        if not embeds.isfinite().all():
            raise EngineError(f"Request {request.key}: embeddings are not finite in {self._dtype}.")

    def _step(self) -> list[RequestOutput]:
        try:
            outputs: list[RequestOutput] = self.llm.llm_engine.step()
        except Exception as error:
            raise EngineError(_death(error)) from error
        return outputs

    def _abort_all(self) -> None:
        if self.llm is None:
            return
        engine = self.llm.llm_engine
        unfinished = list(engine.output_processor.request_states)
        if unfinished and not getattr(getattr(engine.engine_core, "resources", None), "engine_dead", False):
            engine.abort_request(unfinished, internal=True)


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
    }
    if not on_gpu:
        settings |= {"TORCH_COMPILE_DISABLE": "1", "VLLM_HOST_IP": "127.0.0.1"}
    for key, value in settings.items():
        os.environ.setdefault(key, value)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0" if in_process else "1"
    if batch_invariant:
        os.environ["VLLM_BATCH_INVARIANT"] = "1"


def _threads_for(folder: Path) -> int:
    """Return one thread for a model of a few matrix rows, which two would only slow down by waiting for each other."""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return 1 if size < SMALL_MODEL_BYTES else len(os.sched_getaffinity(0))


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


def _watch_core(llm: Any) -> None:
    """Let a client that waits for a core process learn of its death; without this it waits for ever."""
    core = llm.llm_engine.engine_core
    queue = getattr(core, "outputs_queue", None)
    if queue is None:  # the core runs in this process
        return
    from vllm.v1.engine.exceptions import EngineDeadError

    weak = weakref.ref(core)

    def watch() -> None:
        while (alive := weak()) is not None:
            if alive.resources.engine_dead:
                queue.put_nowait(EngineDeadError())
                return
            del alive
            time.sleep(0.5)

    threading.Thread(target=watch, name="vllm-core-watch", daemon=True).start()


def _sampling_params(request: Request) -> SamplingParams:
    from vllm import SamplingParams

    sampling = request.sampling
    if request.scored:
        return SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    return SamplingParams(
        n=sampling.n,
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        repetition_penalty=sampling.repetition_penalty,
        seed=sampling.seed,
        stop=list(sampling.stop),
        ignore_eos=sampling.ignore_eos,
        logprobs=sampling.logprobs or None,
    )


def _generation(request: Request, output: RequestOutput) -> Generation:
    answers = sorted(output.outputs, key=lambda answer: answer.index)
    completions = tuple(
        Completion(
            answer.text,
            tuple(answer.token_ids),
            answer.finish_reason or "unknown",
            tuple({token: float(entry.logprob) for token, entry in step.items()} for step in answer.logprobs or ()),
        )
        for answer in answers
    )
    scored: tuple[float, ...] = ()
    if request.scored:
        steps = list(output.prompt_logprobs or ())[-request.scored :]
        tokens = request.token_ids[-request.scored :]
        scored = tuple(float(step[token].logprob) for step, token in zip(steps, tokens, strict=True))
    return Generation(request.key, completions, scored)


def _death(error: Exception) -> str:
    if "NaNs detected in logits" in str(error):
        return "The model computed non-finite logits (vLLM: NaNs detected in logits); the engine was stopped."
    if type(error).__name__ == "EngineDeadError":
        return "vLLM's core process died; sweep.log says more."
    return f"vLLM failed while generating: {_reason(error)}"


def _reason(error: Exception) -> str:
    """Return the error's type and its first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"
