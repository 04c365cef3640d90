"""vLLM's offline engine, fed with prompt embeddings.

What is peculiar here was measured on vLLM 0.32 and holds back to 0.26; check it again when the pin moves:

- A request carries embeddings, token ids and an all-False mask.  Ids without the mask make vLLM ignore the
  embeddings; embeddings alone lose prompt log-probabilities and let penalties read stale rows (vllm#57719).
- The offline path checks neither shape nor dtype nor finiteness of embeddings, and one NaN poisons cache blocks that
  later requests read.  So requests are checked here, and non-finite logits end the engine.
- After an exception, requests of which the engine still knows would make the next step spin for ever: they are aborted.
- A killed core process leaves the synchronous client waiting for ever: its death is put where the client waits.
- A request that fails within the core comes back finished, for the reason "error", and looks answered.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import uuid4

from sweep.checks import require
from sweep.engines import vllm_death, vllm_start
from sweep.engines.base import Completion, Engine, EngineConfig, Failure, Generation, ModelFiles, Request
from sweep.engines.faults import fault, summary
from sweep.errors import EngineDied

if TYPE_CHECKING:
    import torch
    from vllm import RequestOutput, SamplingParams

log = logging.getLogger(__name__)

FAILED = ("error", "abort")  # finish reasons of requests that vLLM gave up


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
        threads: OpenMP threads of a CPU engine that is not shared; None: one for a small model, else one for each core.
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

    def warm_up(self, cache_dir: Path) -> None:
        """Import vLLM."""
        try:
            vllm_start.import_vllm(self, cache_dir)
        except Exception:
            log.info("vLLM cannot be imported.", exc_info=True)

    def fresh(self) -> VLLMConfig:
        """Return the same with the core in a process of its own."""
        return replace(self, in_process=False)

    def smaller(self) -> VLLMConfig | None:
        """Return half as many sequences, and on a GPU a tenth more memory that the KV cache does not take.

        Fewer sequences alone would have vLLM give what they save to the cache.
        """
        if self.max_num_seqs == 1:
            return None
        return replace(
            self,
            max_num_seqs=self.max_num_seqs // 2,
            window=max(1, self.window // 2) if self.window else None,
            gpu_memory_utilization=0.9 * self.gpu_memory_utilization,
        )


class VLLMEngine(Engine):
    """A started `vllm.LLM`, driven request by request so that any number of points share its batch.

    Attributes:
        llm: the `vllm.LLM`; None once closed.
    """

    def __init__(self, config: VLLMConfig, model: ModelFiles, max_model_len: int, cache_dir: Path) -> None:
        self._window = config.window or 2 * config.max_num_seqs
        cache_dir.mkdir(parents=True, exist_ok=True)
        last_words = cache_dir / f"last-words-{uuid4().hex}.txt"
        self.llm: Any = None
        try:
            self.llm = vllm_start.start(config, model, max_model_len, cache_dir, last_words)
        except Exception as error:
            raise vllm_death.start_error(error, last_words) from error
        finally:
            last_words.unlink(missing_ok=True)
        import vllm

        self.version = f"vllm {vllm.__version__}"
        self._engine = self.llm.llm_engine
        self._dead = False
        self._dtype: torch.dtype = self.llm.model_config.dtype
        self._hidden_size: int = self.llm.model_config.get_hidden_size()
        self._remains = vllm_death.Remains(self._engine, last_words)

    def generate(self, requests: Iterable[Request]) -> Iterator[Generation | Failure]:
        """Answer requests from one continuous batch; see `Engine.generate`."""
        waiting = iter(requests)
        in_flight: dict[str, Request] = {}
        try:
            while True:
                while len(in_flight) < self._window and (request := next(waiting, None)) is not None:
                    if wrong := fault(request, self._hidden_size, self._dtype) or self._submit(request, in_flight):
                        yield Failure(request.key, wrong)
                if not in_flight:
                    return
                for output in self._step(in_flight):
                    if output.finished:
                        yield _answer(in_flight.pop(output.request_id), output)
        finally:
            if not self._dead:
                with suppress(Exception):  # one that died meanwhile says so when it is next asked something
                    self._abort(list(self._engine.output_processor.request_states))

    def memory_gib(self) -> float | None:
        """Return the GPU memory in use; see `Engine.memory_gib`."""
        import torch

        if not torch.cuda.is_available():
            return None
        try:
            return float(torch.cuda.device_memory_used() / 2**30)
        except Exception:  # NVIDIA's library for it is missing, or refuses
            return None

    def close(self) -> None:
        """End the core, whether it runs here or in a process of its own, and what belongs to it."""
        if self.llm is None:
            return
        engine, self.llm, self._engine, self._dead = self._engine, None, None, True
        try:
            engine.engine_core.shutdown(timeout=vllm_death.GRACE)
        except Exception:  # what is dead may not even be able to end
            log.info("vLLM did not shut down properly.", exc_info=True)
        del engine
        self._remains.clear()
        gc.collect()

    def _submit(self, request: Request, in_flight: dict[str, Request]) -> str | None:
        """Hand a request to vLLM and note the id under which its output comes back; say why, if vLLM refuses it."""
        prompt: dict[str, Any] = {"prompt_token_ids": list(request.token_ids)}
        if request.embeds is not None:
            prompt["prompt_embeds"] = request.embeds
            prompt["prompt_is_token_ids"] = [False] * len(request.token_ids)
        known = len(self._engine.output_processor.request_states)
        try:
            internal = self.llm.enqueue([prompt], _sampling_params(request), use_tqdm=False)[0]
        except Exception as error:
            if self._remains.is_death(error):
                raise self._died(error, in_flight) from error
            self._abort(list(self._engine.output_processor.request_states)[known:])
            return f"vLLM refused it: {summary(error)}"
        in_flight[str(internal).rsplit("-", 1)[0]] = request
        return None

    def _step(self, in_flight: dict[str, Request]) -> list[RequestOutput]:
        try:
            outputs: list[RequestOutput] = self._engine.step()
        except Exception as error:
            raise self._died(error, in_flight) from error
        return outputs

    def _died(self, error: Exception, in_flight: dict[str, Request]) -> EngineDied:
        self._dead = True
        keys = {number: request.key for number, request in in_flight.items()}
        return self._remains.death(error, keys)

    def _abort(self, unfinished: list[str]) -> None:
        if unfinished:
            self._engine.abort_request(unfinished, internal=True)


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


def _answer(request: Request, output: RequestOutput) -> Generation | Failure:
    if any(answer.finish_reason in FAILED for answer in output.outputs):
        return Failure(request.key, "vLLM failed on it; sweep.log says more")
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
    return Generation(request.key, completions, scored, output.num_cached_tokens or 0)
