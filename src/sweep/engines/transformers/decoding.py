"""Answers in the making: how the next token is drawn from logits, and when an answer ends; all of it as in vLLM."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor

from sweep.engines.base import Completion, Failure, Generation, Request, Sampling

LEAST_TEMPERATURE = 0.01  # below it vLLM draws as at it, lest logits overflow


class Answer:
    """What becomes of a request: its samples, until all are complete or one has failed.

    Attributes:
        request: what is answered.
        scored: the log-probabilities of its `scored` tokens, once they are known.
        failure: why it cannot be answered.
        samples: one for each completion.
    """

    def __init__(self, request: Request, tokenizer: Any, stop_ids: Collection[int], max_length: int) -> None:
        """Begin an answer.

        Args:
            stop_ids: tokens that end it, unless they are to be ignored.
            max_length: of prompt and answer together, in tokens.
        """
        # The answer to a prompt whose own end is scored means nothing.
        sampling = Sampling(max_tokens=1) if request.scored else request.sampling
        self.request, self.scored, self.failure = request, tuple[float, ...](), ""
        most = min(sampling.max_tokens, max_length - len(request.token_ids))
        self.samples = [
            Sample(self, sampling, number, Text(tokenizer, request.token_ids), stop_ids, most)
            for number in range(sampling.n)
        ]

    def result(self) -> Generation | Failure | None:
        """Return what there is to say of it, once; None: it is not complete, or was said before."""
        if self.failure:
            self.samples, unsaid = [], bool(self.samples)
            return Failure(self.request.key, self.failure) if unsaid else None
        if not all(sample.finish_reason for sample in self.samples):
            return None
        completions = tuple(sample.completion() for sample in self.samples)
        return Generation(self.request.key, completions, self.scored)


class Sample:
    """One completion of a request, token by token.

    Attributes:
        answer: whose it is.
        sampling: how its tokens are drawn; sample number i counts the seed up by i.
        token_ids: those drawn so far.
        finish_reason: empty until it is complete.
    """

    def __init__(
        self, answer: Answer, sampling: Sampling, number: int, text: Text, stop_ids: Collection[int], most: int
    ) -> None:
        self.answer, self.sampling, self.finish_reason = answer, sampling, ""
        self.token_ids: list[int] = []
        self._text, self._most = text, most
        self._stop_ids = () if sampling.ignore_eos else stop_ids
        self._logprobs: list[dict[int, float]] = []
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed + number)

    @property
    def done(self) -> bool:
        """Whether it needs no further token."""
        return bool(self.finish_reason or self.answer.failure)

    def draw(self, logits: Tensor) -> None:
        """Add the next token.

        Args:
            logits: [vocabulary] in fp32; they are left as they are.
        """
        weights = self._penalised(logits)
        if self.sampling.temperature == 0:
            token = int(weights.argmax())
        else:
            weights = weights / max(self.sampling.temperature, LEAST_TEMPERATURE)
            weights = restricted(weights, self.sampling.top_k, self.sampling.top_p)
            # The largest p / q, q ~ Exp(1), is a token's with probability p.  The CPU's noise is so on all devices.
            noise = torch.empty(len(weights)).exponential_(generator=self._generator)
            token = int((weights.softmax(0) / noise.to(weights.device)).argmax())
        if self.sampling.logprobs:
            logprobs = logits.log_softmax(0)
            best = logprobs.topk(self.sampling.logprobs)
            reported = dict(zip(best.indices.tolist(), best.values.tolist(), strict=True))
            self._logprobs.append({token: float(logprobs[token]), **reported})
        self._add(token)

    def completion(self) -> Completion:
        """Return the complete answer."""
        return Completion(self._text.text, tuple(self.token_ids), self.finish_reason, tuple(self._logprobs))

    def _penalised(self, logits: Tensor) -> Tensor:
        """Return logits in which what has been said, in the prompt too, is less likely (arXiv:1909.05858)."""
        penalty = self.sampling.repetition_penalty
        if penalty == 1:
            return logits
        seen = torch.tensor(sorted({*self.answer.request.token_ids, *self.token_ids}), device=logits.device)
        said = logits[seen]
        return logits.index_put((seen,), torch.where(said > 0, said / penalty, said * penalty))

    def _add(self, token: int) -> None:
        self.token_ids.append(token)
        if token in self._stop_ids:  # which is no part of the text
            self.finish_reason = "stop"
            return
        self._text.add(token)
        if self._text.cut(self.sampling.stop):
            self.finish_reason = "stop"
        elif len(self.token_ids) >= self._most:
            self.finish_reason = "length"


class Text:
    """The text of tokens that come one after the other: what stands for one depends on those before it.

    Attributes:
        text: of the tokens so far, without bytes that do not make a character yet.
    """

    def __init__(self, tokenizer: Any, prompt: Sequence[int]) -> None:
        self.text = ""
        self._tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None)  # None: one written in Python
        self._stream = DecodeStream(ids=list(prompt), skip_special_tokens=True)
        self._token_ids: list[int] = []

    def add(self, token: int) -> None:
        """Add a token's text."""
        if self._backend is None:
            self._token_ids.append(token)
            self.text = self._tokenizer.decode(self._token_ids, skip_special_tokens=True).rstrip("\ufffd")
            return
        try:
            self.text += self._stream.step(self._backend, token) or ""
        except Exception as error:
            if not str(error).startswith("Invalid prefix"):
                raise
            # Bytes that are no UTF-8 confuse the stream; vLLM begins a new one, too.
            self._stream = DecodeStream(skip_special_tokens=True)
            self.text += self._stream.step(self._backend, token) or ""

    def cut(self, stops: Sequence[str]) -> bool:
        """Cut the text off before the stop string that ends first; return whether there is one."""
        ends = [(start + len(stop), start) for stop in stops if (start := self.text.find(stop)) >= 0]
        if ends:
            self.text = self.text[: min(ends)[1]]
        return bool(ends)


def restricted(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Return logits, [vocabulary], with all but the likeliest set to -inf.

    Kept are the `top_k` likeliest tokens (0: all), and of those as few of the likeliest as have `top_p` of the
    probability together, but one at least (arXiv:1904.09751).
    """
    if 0 < top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -math.inf)
    if top_p < 1:
        ascending, order = logits.sort()
        rest = ascending.softmax(0).cumsum(0) <= 1 - top_p
        rest[-1] = False
        logits = logits.masked_fill(torch.zeros_like(rest).scatter(0, order, rest), -math.inf)
    return logits
