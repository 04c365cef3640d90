"""Decoding: sample tokens from logits and end completions, with the semantics of vLLM."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor

from sweep.engines import sampling_args
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
        self._args = sampling_args.from_text(sampling.args)
        self._stop_ids = {*(() if sampling.ignore_eos else stop_ids), *self._args.get("stop_token_ids", ())}
        self._min_tokens = int(self._args.get("min_tokens", 0))
        self._unstopped = 0  # characters before `min_tokens`, in which stop strings do not count
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
        adjusted = self._apply_penalties(self._apply_args(logits))
        if self.sampling.temperature == 0:
            token = int(adjusted.argmax())
        else:
            adjusted = apply_temperature(adjusted, self.sampling.temperature)
            adjusted = apply_min_p(adjusted, float(self._args.get("min_p", 0)))
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

    def _apply_args(self, logits: Tensor) -> Tensor:
        """Return logits with `allowed_token_ids` and `logit_bias`, and without ends before `min_tokens`."""
        if allowed := self._args.get("allowed_token_ids"):
            kept = torch.tensor(allowed, device=logits.device)
            logits = torch.full_like(logits, -math.inf).index_copy(0, kept, logits[kept])
        for token, bias in self._args.get("logit_bias", {}).items():
            logits = logits.index_add(0, torch.tensor([token], device=logits.device), logits.new_tensor([bias]))
        if len(self.token_ids) < self._min_tokens and self._stop_ids:
            logits = logits.index_fill(0, torch.tensor(sorted(self._stop_ids), device=logits.device), -math.inf)
        return logits

    def _apply_penalties(self, logits: Tensor) -> Tensor:
        """Return logits with the penalties on repeated tokens.

        The repetition penalty counts tokens of prompt and completion (arXiv:1909.05858). Frequency and presence penalty
        count those of the completion, as in OpenAI's API.
        """
        penalty = self.sampling.repetition_penalty
        if penalty != 1:
            seen = torch.tensor(sorted({*self.answer.request.token_ids, *self.token_ids}), device=logits.device)
            values = logits[seen]
            logits = logits.index_put((seen,), torch.where(values > 0, values / penalty, values * penalty))
        frequency, presence = (float(self._args.get(f"{name}_penalty", 0)) for name in ("frequency", "presence"))
        if (frequency or presence) and self.token_ids:
            counts = torch.bincount(torch.tensor(self.token_ids), minlength=len(logits)).to(logits.device)
            logits = logits - frequency * counts - presence * (counts > 0)
        return logits

    def _add(self, token: int) -> None:
        self.token_ids.append(token)
        if token in self._stop_ids:  # not part of the text
            self.finish_reason = "stop"
            return
        self._text.add(token)
        if len(self.token_ids) <= self._min_tokens:
            self._unstopped = len(self._text.text)
        elif self._text.cut(self.sampling.stop, self._unstopped):
            self.finish_reason = "stop"
            return
        if len(self.token_ids) >= self._max_tokens:
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

    def cut(self, stops: Sequence[str], ignored: int = 0) -> bool:
        """Cut the text before the stop string that ends first; return whether there is one.

        Args:
            stops: the stop strings.
            ignored: number of characters at the beginning; strings that end in them do not count.
        """
        found = ((stop, self.text.find(stop, max(0, ignored + 1 - len(stop)))) for stop in stops)
        ends = [(start + len(stop), start) for stop, start in found if start >= 0]
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


def apply_min_p(logits: Tensor, min_p: float) -> Tensor:
    """Return logits with -inf for tokens less probable than `min_p` times the most probable (arXiv:2407.01082).

    Args:
        logits: (vocabulary,), float32, after temperature.
        min_p: in [0, 1]; 0: all tokens are kept.
    """
    if min_p == 0:
        return logits
    probabilities = logits.softmax(0)
    return logits.masked_fill(probabilities < min_p * probabilities.max(), -math.inf)


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
