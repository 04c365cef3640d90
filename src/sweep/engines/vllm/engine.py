"""vLLM's offline engine with prompt embeddings as input.

The workarounds were measured on vLLM 0.32 and are needed from 0.26 on. Check them again when the pinned version
changes:

- A request carries embeddings, token ids and an all-False mask. Without the mask, vLLM ignores the embeddings. With
  embeddings alone, prompt log-probabilities are lost and penalties read stale rows (vllm#57719).
- The offline path does not check the shape, dtype or finiteness of embeddings. One NaN corrupts cache blocks that later
  requests read. So requests are checked here, and non-finite logits end the engine.
- After an exception, requests left in the engine would make the next step loop forever, so they are aborted.
- If the core process is killed, the synchronous client waits forever. So an error is put into the client's queue.
- A request that fails within the core is returned as finished, with finish reason "error".
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from sweep.engines import sampling_args
from sweep.engines.base import Completion, Engine, Failure, Generation, ModelFiles, Request, Sampling
from sweep.engines.request_errors import request_error, summary
from sweep.engines.vllm import failures, startup
from sweep.engines.vllm.arguments import STRUCTURED
from sweep.engines.vllm.config import VLLMConfig
from sweep.errors import ConfigError, EngineDied, EngineError

if TYPE_CHECKING:
    import torch
    from vllm import RequestOutput, SamplingParams
    from vllm.lora.request import LoRARequest

log = logging.getLogger(__name__)

FAILED = ("error", "abort")  # finish reasons of requests that vLLM did not finish


class VLLMEngine(Engine):
    """A started `vllm.LLM`, driven request by request so that many points share its batch.

    Owned by the thread that opened it: its processes end with that thread.

    Attributes:
        llm: the `vllm.LLM`; None once closed.
    """

    def __init__(self, config: VLLMConfig, model: ModelFiles, max_model_len: int, cache_dir: Path) -> None:
        self._window = config.window or 2 * config.max_num_seqs
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:  # sweep.dir was removed or replaced during the sweep
            raise EngineError(
                f"{cache_dir}: the folder for the engine's caches cannot be created: {error.strerror}."
            ) from error
        error_file = cache_dir / f"fatal-error-{uuid4().hex}.txt"
        self.llm: Any = None
        try:
            self.llm = startup.start(config, model, max_model_len, cache_dir, error_file)
        except ConfigError:
            raise
        except Exception as error:
            raise failures.start_error(error, error_file) from error
        finally:
            with suppress(OSError):
                error_file.unlink()
        import vllm

        self.version = f"vllm {vllm.__version__}"
        self._engine = self.llm.llm_engine
        self._dead = False
        self._dtype: torch.dtype = self.llm.model_config.dtype
        self._hidden_size: int = self.llm.model_config.get_hidden_size()
        self._processes = failures.EngineProcesses(self._engine, error_file)
        self._adapters = {str(adapter.folder): number for number, adapter in enumerate(model.adapters, 1)}
        try:
            self._load_adapters()
        except BaseException:
            self.close()
            raise

    def generate(self, requests: Iterable[Request]) -> Iterator[Generation | Failure]:
        """Answer requests from one continuous batch; see `Engine.generate`."""
        waiting = iter(requests)
        in_flight: dict[str, Request] = {}
        try:
            while True:
                while len(in_flight) < self._window and (request := next(waiting, None)) is not None:
                    reason = request_error(request, self._hidden_size, self._dtype) or self._submit(request, in_flight)
                    if reason:
                        yield Failure(request.key, reason)
                if not in_flight:
                    return
                for output in self._step(in_flight):
                    if output.finished:
                        yield _answer(in_flight.pop(output.request_id), output)
        finally:
            if not self._dead:
                with suppress(Exception):  # a crash is reported by the next call
                    self._abort(list(self._engine.output_processor.request_states))

    def memory_gib(self) -> float | None:
        """Return the used memory of the GPU; see `Engine.memory_gib`."""
        import torch

        if not torch.cuda.is_available():
            return None
        try:
            return float(torch.cuda.device_memory_used() / 2**30)
        except Exception:  # NVIDIA's management library is missing or fails
            return None

    def close(self) -> None:
        """End the engine's core and its processes; see `Engine.close`."""
        if self.llm is None:
            return
        engine, self.llm, self._engine, self._dead = self._engine, None, None, True
        try:
            engine.engine_core.shutdown(timeout=failures.GRACE)
        except Exception:  # a crashed engine may fail to shut down
            log.info("vLLM did not shut down properly.", exc_info=True)
        del engine
        self._processes.clear()
        gc.collect()

    def _submit(self, request: Request, in_flight: dict[str, Request]) -> str | None:
        """Add a request to vLLM and to `in_flight`; return the reason if vLLM rejects it."""
        prompt: dict[str, Any] = {"prompt_token_ids": list(request.token_ids)}
        if request.embeds is not None:
            prompt["prompt_embeds"] = request.embeds
            prompt["prompt_is_token_ids"] = [False] * len(request.token_ids)
        before = len(self._engine.output_processor.request_states)
        try:
            internal_id = self.llm.enqueue(
                [prompt],
                _sampling_params(request.sampling, bool(request.scored)),
                lora_request=self._lora_request(request.adapter),
                use_tqdm=False,
            )[0]
        except Exception as error:
            if self._processes.is_crash(error):
                raise self._crash(error, in_flight) from error
            self._abort(list(self._engine.output_processor.request_states)[before:])
            return f"vLLM rejected it: {summary(error)}"
        in_flight[str(internal_id).rsplit("-", 1)[0]] = request
        return None

    def _load_adapters(self) -> None:
        """Load the adapters once, so that vLLM refuses them before the first request.

        Raises:
            ConfigError: vLLM cannot use an adapter with this model.
        """
        for folder in self._adapters:
            try:
                self._engine.add_lora(self._lora_request(folder))
            except Exception as error:
                raise ConfigError(f"model.lora: vLLM cannot use {folder} with this model: {summary(error)}") from error

    def _lora_request(self, folder: str | None) -> LoRARequest | None:
        if folder is None:
            return None
        from vllm.lora.request import LoRARequest

        return LoRARequest(folder, self._adapters[folder], folder)

    def _step(self, in_flight: dict[str, Request]) -> list[RequestOutput]:
        try:
            outputs: list[RequestOutput] = self._engine.step()
        except Exception as error:
            raise self._crash(error, in_flight) from error
        return outputs

    def _crash(self, error: Exception, in_flight: dict[str, Request]) -> EngineDied:
        self._dead = True
        keys = {number: request.key for number, request in in_flight.items()}
        return self._processes.crash_error(error, keys)

    def _abort(self, unfinished: list[str]) -> None:
        if unfinished:
            self._engine.abort_request(unfinished, internal=True)


@lru_cache(maxsize=256)  # most requests of a sweep have the same parameters, and vLLM copies them
def _sampling_params(sampling: Sampling, scored: bool) -> SamplingParams:
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    if scored:
        return SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
    args = sampling_args.from_text(sampling.args)
    if structured := args.get(STRUCTURED):
        args[STRUCTURED] = StructuredOutputsParams(**structured)
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
        **args,
    )


def _answer(request: Request, output: RequestOutput) -> Generation | Failure:
    if any(answer.finish_reason in FAILED for answer in output.outputs):
        return Failure(request.key, "vLLM failed to answer it; see sweep.log")
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
