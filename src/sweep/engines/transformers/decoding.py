"""Decoding: sample tokens from logits and end completions, with the semantics of vLLM."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor

from sweep.engines.base import Completion, Failure, Generation, Request, Sampling

LEAST_TEMPERATURE = torch.finfo(torch.float32).tiny  # the smallest normal number of float32


class Answer:
    """State of a request during decoding: its samples, until all are complete or one has failed.

    Attributes:
        request: the request.
        scored: log-probabilities of its `scored` tokens, once they are known.
        failure: why the request failed; empty if it did not.
        samples: one sample per completion.
    """

    def __init__(self, request: Request, tokenizer: Any, stop_ids: Collection[int], max_length: int) -> None:
        """Create the samples of a request.

        Args:
            request: the request.
            tokenizer: tokenizer of the model.
            stop_ids: tokens that end a completion, unless `ignore_eos` is set.
            max_length: maximum number of tokens of prompt and completion together.
        """
        # The completion of a request with scored tokens is meaningless.
        sampling = Sampling(max_tokens=1) if request.scored else request.sampling
        self.request, self.scored, self.failure = request, tuple[float, ...](), ""
        max_tokens = min(sampling.max_tokens, max_length - len(request.token_ids))
        self.samples = [
            Sample(self, sampling, number, Text(tokenizer, request.token_ids), stop_ids, max_tokens)
            for number in range(sampling.n)
        ]

    def result(self) -> Generation | Failure | None:
        """Return the result when it is complete; None before, and None again after a failure was returned."""
        if self.failure:
            self.samples, unreported = [], bool(self.samples)
            return Failure(self.request.key, self.failure) if unreported else None
        if not all(sample.finish_reason for sample in self.samples):
            return None
        completions = tuple(sample.completion() for sample in self.samples)
        return Generation(self.request.key, completions, self.scored)


class Sample:
    """State of one completion during decoding.

    Attributes:
        answer: the answer that the sample belongs to.
        sampling: sampling parameters; sample number i uses the seed plus i.
        token_ids: tokens sampled so far.
        finish_reason: empty until the completion is finished.
    """

    def __init__(
        self, answer: Answer, sampling: Sampling, number: int, text: Text, stop_ids: Collection[int], max_tokens: int
    ) -> None:
        self.answer, self.sampling, self.finish_reason = answer, sampling, ""
        self.token_ids: list[int] = []
        self._text, self._max_tokens = text, max_tokens
        self._stop_ids = () if sampling.ignore_eos else stop_ids
        self._logprobs: list[dict[int, float]] = []
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed + number)

    @property
    def done(self) -> bool:
        """Whether no further token is needed."""
        return bool(self.finish_reason or self.answer.failure)

    def draw(self, logits: Tensor) -> None:
        """Sample the next token.

        Args:
            logits: (vocabulary,), float32; not modified.
        """
        adjusted = self._apply_penalty(logits)
        if self.sampling.temperature == 0:
            token = int(adjusted.argmax())
        else:
            adjusted = apply_temperature(adjusted, self.sampling.temperature)
            adjusted = apply_top_k_top_p(adjusted, self.sampling.top_k, self.sampling.top_p)
            # argmax(p / q) with q ~ Exp(1) samples from p. The noise comes from the CPU, so it is equal on all devices.
            noise = torch.empty(len(adjusted)).exponential_(generator=self._generator)
            token = int((adjusted.softmax(0) / noise.to(adjusted.device)).argmax())
        if self.sampling.logprobs:
            logprobs = logits.log_softmax(0)
            best = logprobs.topk(self.sampling.logprobs)
            reported = dict(zip(best.indices.tolist(), best.values.tolist(), strict=True))
            self._logprobs.append({token: float(logprobs[token]), **reported})
        self._add(token)

    def completion(self) -> Completion:
        """Return the finished completion."""
        return Completion(self._text.text, tuple(self.token_ids), self.finish_reason, tuple(self._logprobs))

    def _apply_penalty(self, logits: Tensor) -> Tensor:
        """Return logits with the repetition penalty for tokens of prompt and completion (arXiv:1909.05858)."""
        penalty = self.sampling.repetition_penalty
        if penalty == 1:
            return logits
        seen = torch.tensor(sorted({*self.answer.request.token_ids, *self.token_ids}), device=logits.device)
        values = logits[seen]
        return logits.index_put((seen,), torch.where(values > 0, values / penalty, values * penalty))

    def _add(self, token: int) -> None:
        self.token_ids.append(token)
        if token in self._stop_ids:  # not part of the text
            self.finish_reason = "stop"
            return
        self._text.add(token)
        if self._text.cut(self.sampling.stop):
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self._max_tokens:
            self.finish_reason = "length"


class Text:
    """Incremental detokenizer: the text of a token depends on the tokens before it.

    Attributes:
        text: text of the tokens so far, without bytes of an incomplete character.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int]) -> None:
        self.text = ""
        self._tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None)  # None: a tokenizer written in Python
        self._stream = DecodeStream(ids=list(prompt), skip_special_tokens=True)
        self._token_ids: list[int] = []

    def add(self, token: int) -> None:
        """Append the text of a token."""
        if self._backend is None:
            self._token_ids.append(token)
            self.text = self._tokenizer.decode(self._token_ids, skip_special_tokens=True).rstrip("\ufffd")
            return
        try:
            self.text += self._stream.step(self._backend, token) or ""
        except Exception as error:
            if not str(error).startswith("Invalid prefix"):
                raise
            # Invalid UTF-8 breaks the stream; like vLLM, start a new one.
            self._stream = DecodeStream(skip_special_tokens=True)
            self.text += self._stream.step(self._backend, token) or ""

    def cut(self, stops: Sequence[str]) -> bool:
        """Cut the text before the stop string that ends first; return whether there is one."""
        ends = [(start + len(stop), start) for stop in stops if (start := self.text.find(stop)) >= 0]
        if ends:
            self.text = self.text[: min(ends)[1]]
        return bool(ends)


def apply_temperature(logits: Tensor, temperature: float) -> Tensor:
    """Return logits divided by a temperature above 0, without overflow at low temperatures.

    Args:
        logits: (vocabulary,), float32.
        temperature: sampling temperature, above 0.
    """
    if temperature < 0.01:  # shift the maximum to 0, so that the division cannot overflow
        logits = logits - logits.max()
    return logits / max(temperature, LEAST_TEMPERATURE)


def apply_top_k_top_p(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Return logits with all but the most probable tokens set to -inf.

    Of the `top_k` most probable tokens, the smallest set with a total probability of `top_p` is kept, but at least one
    token (arXiv:1904.09751).

    Args:
        logits: (vocabulary,), float32.
        top_k: number of tokens; 0: all.
        top_p: total probability, in (0, 1].
    """
    if 0 < top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -math.inf)
    if top_p < 1:
        ascending, order = logits.sort()
        removed = ascending.softmax(0).cumsum(0) <= 1 - top_p
        removed[-1] = False
        logits = logits.masked_fill(torch.zeros_like(removed).scatter(0, order, removed), -math.inf)
    return logits
