"""Transformers engine: a decoding loop around a model's forward pass.

Completions are generated in left-padded batches that start together and share a KV cache. A finished completion leaves
its batch at once. When half of the engine is free, another batch starts. Caches are never merged, so the engine works
with every kind of cache.
"""

from __future__ import annotations

import gc
import inspect
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import transformers
from torch import Tensor

from sweep.engines.base import Engine, Failure, Generation, ModelFiles, Request
from sweep.engines.request_errors import describe, error_type, first_line, request_error
from sweep.engines.threads import threads_for
from sweep.engines.transformers.config import TransformersConfig
from sweep.engines.transformers.decoding import Answer, Sample
from sweep.errors import ConfigError, EngineDied, EngineError
from sweep.inputs.model_class import auto_class
from sweep.util.install_check import advice

log = logging.getLogger(__name__)

T = TypeVar("T")

# Names of the cache as argument and output of forward passes. Transformers 5.24 uses `cache`. Older ones use
# `past_key_values`, or `cache_params` for Mamba, and 5.23 silently ignores `cache`. So the signature decides.
CACHES = ("past_key_values", "cache_params", "cache")

# Factors that vLLM's forward pass applies to all embeddings, but that of Transformers only to those of token ids.
MULTIPLIERS: dict[str, Callable[[Any], float]] = {"falcon_h1": lambda config: config.embedding_multiplier}

NOT_FINITE = "the model computed non-finite logits"


@dataclass(slots=True)
class Batch:
    """Samples that started together.

    Attributes:
        samples: the n unfinished samples.
        mask: (n, tokens so far), int64; 0 for padding.
        positions: (n, 1), int64; position of each sample's last token.
        cache: the model's KV cache with n rows.
    """

    samples: list[Sample]
    mask: Tensor
    positions: Tensor
    cache: Any

    def keep(self, rows: Sequence[int]) -> None:
        """Select rows by index; an index may occur several times."""
        indices = torch.tensor(rows, device=self.mask.device)
        self.mask, self.positions = self.mask[indices], self.positions[indices]
        self.cache.reorder_cache(indices)


class TransformersEngine(Engine):
    """A loaded model in this process. Owned by the thread that opened it.

    Attributes:
        model: the `transformers` model; None once closed.
    """

    def __init__(self, config: TransformersConfig, files: ModelFiles, max_model_len: int) -> None:
        self.version = f"transformers {transformers.__version__}"
        self._max_batch_size, self._max_model_len = config.max_batch_size, max_model_len
        self._device = _device(config.device)
        if self._device.type == "cpu":
            torch.set_num_threads(config.threads or threads_for(files.folder))
        self._dtype: torch.dtype = getattr(torch, files.dtype)
        trust = files.trust_remote_code
        try:
            model = auto_class(files.folder, trust).from_pretrained(
                files.folder, dtype=self._dtype, trust_remote_code=trust, weights_only=True
            )
            self.model: Any = model.to(self._device).eval()
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(files.folder, trust_remote_code=trust)
        except Exception as error:
            text = describe(error)
            reason = advice(error) or first_line(text)
            raise error_type(text, EngineError)(f"Transformers did not start: {reason}") from error
        self._parameters = inspect.signature(model.forward).parameters.keys()
        self._cache_name = next((name for name in CACHES if name in self._parameters), None)
        if self._cache_name is None or "inputs_embeds" not in self._parameters:
            raise EngineError(
                f"Transformers did not start: {type(model).__name__} does not accept embeddings or has no cache"
            )
        self._vocabulary, self._hidden_size = model.get_input_embeddings().weight.shape
        multiplier = MULTIPLIERS.get(model.config.model_type)
        self._multiplier = multiplier(model.config) if multiplier else 1.0
        self._stop_ids = _stop_ids(model.generation_config.eos_token_id, self._tokenizer.eos_token_id)

    def generate(self, requests: Iterable[Request]) -> Iterator[Generation | Failure]:
        """Answer requests in one or several batches at a time; see `Engine.generate`."""
        stream, waiting, batches = iter(requests), deque[Sample](), list[Batch]()
        while True:
            free = self._max_batch_size - sum(len(batch.samples) for batch in batches)
            if 2 * free >= self._max_batch_size:
                waiting = deque(sample for sample in waiting if not sample.done)  # if another sample has failed
                while len(waiting) < free and (request := next(stream, None)) is not None:
                    if reason := self._request_error(request):
                        yield Failure(request.key, reason)
                    else:
                        answer = Answer(request, self._tokenizer, self._stop_ids, self._max_model_len)
                        waiting.extend(answer.samples)
                if samples := _next_samples(waiting, free):
                    batches.append(self._guarded(self._prefill, samples))
                    yield from _results(samples)
            if not batches:
                return
            for batch in batches:
                if self._remove_finished(batch):
                    stepped = batch.samples.copy()
                    self._guarded(self._step, batch)
                    yield from _results(stepped)
            batches = [batch for batch in batches if self._remove_finished(batch)]

    def memory_gib(self) -> float | None:
        """Return the GPU memory reserved by PyTorch; see `Engine.memory_gib`."""
        return torch.cuda.memory_reserved() / 2**30 if self._device.type == "cuda" else None

    def close(self) -> None:
        """Free the model's memory."""
        self.model = None
        gc.collect()
        if self._device.type != "cpu":
            torch.get_device_module(self._device).empty_cache()

    def _request_error(self, request: Request) -> str | None:
        """Return what is wrong with a request; None if it is valid."""
        length = len(request.token_ids)
        if not length:
            return "it has no tokens"
        if length >= self._max_model_len:
            return f"its {length} tokens leave no room for an answer: engine.max_model_len is {self._max_model_len}"
        if not 0 <= min(request.token_ids) <= max(request.token_ids) < self._vocabulary:
            return f"it has tokens outside the vocabulary of {self._vocabulary} tokens"
        return request_error(request, self._hidden_size, self._dtype)

    def _guarded(self, work: Callable[[Any], T], argument: Any) -> T:
        try:
            with torch.inference_mode():
                return work(argument)
        except Exception as error:
            log.info("Transformers failed.", exc_info=True)
            text = describe(error)
            raise error_type(text, EngineDied)(f"Transformers failed: {first_line(text)}") from error

    def _prefill(self, samples: list[Sample]) -> Batch:
        """Process the prompts of samples, once per request, and sample the first tokens."""
        answers = list(dict.fromkeys(sample.answer for sample in samples))
        requests = [answer.request for answer in answers]
        longest = max(len(request.token_ids) for request in requests)
        mask = torch.zeros(len(requests), longest, dtype=torch.long, device=self._device)
        use_embeds = _has_embeds(samples[0])
        shape, dtype = ((*mask.shape, self._hidden_size), self._dtype) if use_embeds else (mask.shape, torch.long)
        prompts = torch.zeros(shape, dtype=dtype, device=self._device)
        for i, request in enumerate(requests):
            begin = longest - len(request.token_ids)
            mask[i, begin:] = 1
            embeds = request.embeds
            prompts[i, begin:] = torch.tensor(request.token_ids) if embeds is None else embeds * self._multiplier
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        scored = max(request.scored for request in requests)
        inputs = {"inputs_embeds" if use_embeds else "input_ids": prompts}
        logits, cache = self._forward(inputs, mask, positions, None, scored + 1)
        for answer, answer_logits in zip(answers, logits, strict=True):
            if answer.request.scored:
                _score(answer, answer_logits[-answer.request.scored - 1 : -1])
        batch = Batch(samples, mask, positions[:, -1:], cache)
        rows = [answers.index(sample.answer) for sample in samples]
        if len(rows) > len(answers):
            batch.keep(rows)
        _draw(samples, logits[rows, -1])
        return batch

    def _step(self, batch: Batch) -> None:
        """Sample the next token of each sample in a batch."""
        last = torch.tensor([sample.token_ids[-1:] for sample in batch.samples], device=self._device)
        batch.mask = torch.cat([batch.mask, torch.ones_like(last)], 1)
        batch.positions = batch.positions + 1
        logits, batch.cache = self._forward({"input_ids": last}, batch.mask, batch.positions, batch.cache, 1)
        _draw(batch.samples, logits[:, -1])

    def _forward(
        self, inputs: dict[str, Tensor], mask: Tensor, positions: Tensor, cache: Any, kept: int
    ) -> tuple[Tensor, Any]:
        """Return the logits of the last `kept` tokens, (rows, kept, vocabulary), and the cache."""
        assert self._cache_name is not None
        inputs = inputs | {"attention_mask": mask, "position_ids": positions, self._cache_name: cache}
        options = {"use_cache": True, "logits_to_keep": kept, "return_dict": True}
        output = self.model(**{name: value for name, value in (inputs | options).items() if name in self._parameters})
        return output.logits[:, -kept:], getattr(output, self._cache_name)

    def _remove_finished(self, batch: Batch) -> bool:
        """Remove finished samples from a batch; return whether others are left."""
        rows = [i for i, sample in enumerate(batch.samples) if not sample.done]
        if rows and len(rows) < len(batch.samples):
            with torch.inference_mode():
                batch.keep(rows)
        batch.samples = [batch.samples[i] for i in rows]
        return bool(rows)


def _device(name: str | None) -> torch.device:
    devices = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name is not None and not devices[name]:
        available = ", ".join(device for device, is_available in devices.items() if is_available)
        raise ConfigError(f"engine.device: PyTorch does not find the device {name!r}. Available: {available}.")
    return torch.device(name or next(device for device, is_available in devices.items() if is_available))


def _stop_ids(*sources: int | Iterable[int] | None) -> frozenset[int]:
    """Return the tokens that end completions; the model may have several in addition to the tokenizer's."""
    return frozenset(token for ids in sources if ids is not None for token in ([ids] if isinstance(ids, int) else ids))


def _next_samples(waiting: deque[Sample], limit: int) -> list[Sample]:
    """Take samples for a batch, all with embeddings or all with token ids, because a forward pass cannot mix them."""
    samples: list[Sample] = []
    while waiting and len(samples) < limit and _has_embeds(waiting[0]) == _has_embeds((*samples, waiting[0])[0]):
        samples.append(waiting.popleft())
    return samples


def _has_embeds(sample: Sample) -> bool:
    return sample.answer.request.embeds is not None


def _draw(samples: Sequence[Sample], logits: Tensor) -> None:
    """Sample the next token of each sample from its row of logits, (samples, vocabulary)."""
    logits = logits.float()
    for sample, row, finite in zip(samples, logits, _finite(logits), strict=True):
        if finite:
            sample.draw(row)
        else:
            sample.answer.failure = NOT_FINITE


def _score(answer: Answer, logits: Tensor) -> None:
    """Set the log-probabilities of a request's scored tokens, from the logits (scored, vocabulary) before each."""
    logits, tokens = logits.float(), torch.tensor(answer.request.token_ids[-len(logits) :], device=logits.device)
    if all(_finite(logits)):
        answer.scored = tuple(logits.log_softmax(-1).gather(1, tokens[:, None]).flatten().tolist())
    else:
        answer.failure = NOT_FINITE


def _finite(logits: Tensor) -> list[bool]:
    """Return for each row whether it defines a distribution. Entries of -inf are valid: those tokens are impossible."""
    finite: list[bool] = logits.amax(-1).isfinite().tolist()
    return finite


def _results(samples: Iterable[Sample]) -> Iterator[Generation | Failure]:
    """Yield the results of answers that these samples have completed or failed."""
    for answer in dict.fromkeys(sample.answer for sample in samples if sample.done):
        if (result := answer.result()) is not None:
            yield result
