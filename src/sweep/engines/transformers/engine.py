"""The Transformers engine: a decoding loop over a model's forward pass.

Answers are generated in *flights*: left-padded batches that begin together and share a KV cache.  An answer that is
complete leaves its flight at once, and as soon as half of the engine is free another flight begins beside the others,
so that no cache ever has to be merged with another and any kind of cache will do.
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
from sweep.engines.faults import describe, fault, first_line, kind
from sweep.engines.threads import threads_for
from sweep.engines.transformers import TransformersConfig
from sweep.engines.transformers_answers import Answer, Sample
from sweep.errors import ConfigError, EngineDied, EngineError

log = logging.getLogger(__name__)

T = TypeVar("T")

CACHES = ("past_key_values", "cache_params")  # how forward passes call what they keep; the latter those of Mamba

# What is multiplied by in vLLM's forward pass, but in that of Transformers only where it is given token ids.
MULTIPLIERS: dict[str, Callable[[Any], float]] = {"falcon_h1": lambda config: config.embedding_multiplier}

NOT_FINITE = "the model computed non-finite logits"


@dataclass(slots=True)
class Flight:
    """Samples that were begun together.

    Attributes:
        samples: those that are not complete, n of them.
        mask: [n, tokens so far], 0 where a shorter prompt was padded.
        positions: [n, 1], of the last token of each.
        cache: the model's, of n rows.
    """

    samples: list[Sample]
    mask: Tensor
    positions: Tensor
    cache: Any

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, or with one of them several times."""
        chosen = torch.tensor(rows, device=self.mask.device)
        self.mask, self.positions = self.mask[chosen], self.positions[chosen]
        self.cache.reorder_cache(chosen)


class TransformersEngine(Engine):
    """A loaded model.

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
            model = transformers.AutoModelForCausalLM.from_pretrained(
                files.folder, dtype=self._dtype, trust_remote_code=trust, weights_only=True
            )
            self.model: Any = model.to(self._device).eval()
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(files.folder, trust_remote_code=trust)
        except Exception as error:
            text = describe(error)
            raise kind(text, EngineError)(f"Transformers did not start: {first_line(text)}") from error
        self._takes = inspect.signature(model.forward).parameters.keys()
        self._cache_name = next((name for name in CACHES if name in self._takes), None)
        if self._cache_name is None or "inputs_embeds" not in self._takes:
            raise EngineError(f"Transformers did not start: {type(model).__name__} takes no embeddings or has no cache")
        self._vocabulary, self._hidden_size = model.get_input_embeddings().weight.shape
        family = MULTIPLIERS.get(model.config.model_type)
        self._multiplier = family(model.config) if family else 1.0
        self._stop_ids = _stop_ids(model.generation_config.eos_token_id, self._tokenizer.eos_token_id)

    def generate(self, requests: Iterable[Request]) -> Iterator[Generation | Failure]:
        """Answer requests, a flight or several at a time; see `Engine.generate`."""
        stream, waiting, flights = iter(requests), deque[Sample](), list[Flight]()
        while True:
            free = self._max_batch_size - sum(len(flight.samples) for flight in flights)
            if 2 * free >= self._max_batch_size:
                waiting = deque(sample for sample in waiting if not sample.done)  # but for another one of its request
                while len(waiting) < free and (request := next(stream, None)) is not None:
                    if wrong := self._fault(request):
                        yield Failure(request.key, wrong)
                    else:
                        answer = Answer(request, self._tokenizer, self._stop_ids, self._max_model_len)
                        waiting.extend(answer.samples)
                if samples := _next_flight(waiting, free):
                    flights.append(self._guarded(self._begin, samples))
                    yield from _results(samples)
            if not flights:
                return
            for flight in flights:
                if self._land(flight):
                    stepped = flight.samples.copy()
                    self._guarded(self._step, flight)
                    yield from _results(stepped)
            flights = [flight for flight in flights if self._land(flight)]

    def memory_gib(self) -> float | None:
        """Return the GPU memory that PyTorch holds; see `Engine.memory_gib`."""
        return torch.cuda.memory_reserved() / 2**30 if self._device.type == "cuda" else None

    def close(self) -> None:
        """Let go of the model."""
        self.model = None
        gc.collect()
        if self._device.type != "cpu":
            torch.get_device_module(self._device).empty_cache()

    def _fault(self, request: Request) -> str | None:
        """Say what is wrong with a request."""
        length = len(request.token_ids)
        if not length:
            return "it has no tokens"
        if length >= self._max_model_len:
            return f"its {length} tokens leave no room for an answer: engine.max_model_len is {self._max_model_len}"
        if not 0 <= min(request.token_ids) <= max(request.token_ids) < self._vocabulary:
            return f"it has tokens that are not in the vocabulary of {self._vocabulary}"
        return fault(request, self._hidden_size, self._dtype)

    def _guarded(self, work: Callable[[Any], T], argument: Any) -> T:
        try:
            with torch.inference_mode():
                return work(argument)
        except Exception as error:
            log.info("Transformers failed.", exc_info=True)
            text = describe(error)
            raise kind(text, EngineDied)(f"Transformers failed: {first_line(text)}") from error

    def _begin(self, samples: list[Sample]) -> Flight:
        """Read the prompts of samples, each answer's once, and draw their first tokens."""
        answers = list(dict.fromkeys(sample.answer for sample in samples))
        requests = [answer.request for answer in answers]
        longest = max(len(request.token_ids) for request in requests)
        mask = torch.zeros(len(requests), longest, dtype=torch.long, device=self._device)
        by_rows = _by_rows(samples[0])
        shape, dtype = ((*mask.shape, self._hidden_size), self._dtype) if by_rows else (mask.shape, torch.long)
        prompts = torch.zeros(shape, dtype=dtype, device=self._device)
        for i, request in enumerate(requests):
            begin = longest - len(request.token_ids)
            mask[i, begin:] = 1
            embeds = request.embeds
            prompts[i, begin:] = torch.tensor(request.token_ids) if embeds is None else embeds * self._multiplier
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        scored = max(request.scored for request in requests)
        given = {"inputs_embeds" if by_rows else "input_ids": prompts}
        logits, cache = self._forward(given, mask, positions, None, scored + 1)
        for answer, own in zip(answers, logits, strict=True):
            if answer.request.scored:
                _score(answer, own[-answer.request.scored - 1 : -1])
        flight = Flight(samples, mask, positions[:, -1:], cache)
        rows = [answers.index(sample.answer) for sample in samples]
        if len(rows) > len(answers):
            flight.keep(rows)
        _draw(samples, logits[rows, -1])
        return flight

    def _step(self, flight: Flight) -> None:
        """Draw the next token of each sample of a flight."""
        last = torch.tensor([sample.token_ids[-1:] for sample in flight.samples], device=self._device)
        flight.mask = torch.cat([flight.mask, torch.ones_like(last)], 1)
        flight.positions = flight.positions + 1
        logits, flight.cache = self._forward({"input_ids": last}, flight.mask, flight.positions, flight.cache, 1)
        _draw(flight.samples, logits[:, -1])

    def _forward(
        self, given: dict[str, Tensor], mask: Tensor, positions: Tensor, cache: Any, kept: int
    ) -> tuple[Tensor, Any]:
        """Return the logits of the last `kept` tokens, [rows, kept, vocabulary], and the cache."""
        assert self._cache_name is not None
        given = given | {"attention_mask": mask, "position_ids": positions, self._cache_name: cache}
        options = {"use_cache": True, "logits_to_keep": kept, "return_dict": True}
        output = self.model(**{name: value for name, value in (given | options).items() if name in self._takes})
        return output.logits[:, -kept:], getattr(output, self._cache_name)

    def _land(self, flight: Flight) -> bool:
        """Let complete samples leave; return whether there are others."""
        rows = [i for i, sample in enumerate(flight.samples) if not sample.done]
        if rows and len(rows) < len(flight.samples):
            with torch.inference_mode():
                flight.keep(rows)
        flight.samples = [flight.samples[i] for i in rows]
        return bool(rows)


def _device(asked: str | None) -> torch.device:
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if asked is not None and not available[asked]:
        raise ConfigError(f"engine.device: PyTorch sees no {asked!r} here.")
    return torch.device(asked or next(name for name, there in available.items() if there))


def _stop_ids(*sources: int | Iterable[int] | None) -> frozenset[int]:
    """Return the tokens that end answers, of which the model may have several beside the tokenizer's."""
    return frozenset(token for own in sources if own is not None for token in ([own] if isinstance(own, int) else own))


def _next_flight(waiting: deque[Sample], most: int) -> list[Sample]:
    """Take the next samples, all with embeddings or all with token ids: a forward pass takes but one of them."""
    samples: list[Sample] = []
    while waiting and len(samples) < most and _by_rows(waiting[0]) == _by_rows((*samples, waiting[0])[0]):
        samples.append(waiting.popleft())
    return samples


def _by_rows(sample: Sample) -> bool:
    return sample.answer.request.embeds is not None


def _draw(samples: Sequence[Sample], logits: Tensor) -> None:
    """Draw each sample's next token from its row of logits, [samples, vocabulary]."""
    logits = logits.float()
    for sample, row, sane in zip(samples, logits, _finite(logits), strict=True):
        if sane:
            sample.draw(row)
        else:
            sample.answer.failure = NOT_FINITE


def _score(answer: Answer, logits: Tensor) -> None:
    """Take the log-probabilities of a request's last tokens, from what stands before each: [scored, vocabulary]."""
    logits, tokens = logits.float(), torch.tensor(answer.request.token_ids[-len(logits) :], device=logits.device)
    if all(_finite(logits)):
        answer.scored = tuple(logits.log_softmax(-1).gather(1, tokens[:, None]).flatten().tolist())
    else:
        answer.failure = NOT_FINITE


def _finite(logits: Tensor) -> list[bool]:
    """Return whether a distribution can be made of each row; a token may well be impossible."""
    finite: list[bool] = logits.amax(-1).isfinite().tolist()
    return finite


def _results(samples: Iterable[Sample]) -> Iterator[Generation | Failure]:
    """Yield what has become of the answers that these samples have completed or failed."""
    for answer in dict.fromkeys(sample.answer for sample in samples if sample.done):
        if (result := answer.result()) is not None:
            yield result
