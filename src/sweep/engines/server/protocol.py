"""Requests for vLLM's `/v1/completions`; `answers` reads the replies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from sweep.engines import sampling_args
from sweep.engines.base import Completion, Request

# Limits for the size of an answer, several times what vLLM sends: a fixed part, and bytes per prompt token, per
# generated token and per log-probability.
FIXED_BYTES, PROMPT_BYTES, TOKEN_BYTES, LOGPROB_BYTES = 1 << 20, 64, 1024, 128

NAN_IN_JSON = "Out of range float values"


@dataclass(frozen=True, slots=True)
class ServerRequest:
    """Content of one HTTP request.

    Attributes:
        fields: fields of the JSON object.
        embeds: (tokens, hidden_size); None if the prompt is one of the fields.
        prompt_tokens: number of tokens in the prompt.
    """

    fields: dict[str, Any]
    embeds: Tensor | None
    prompt_tokens: int

    @property
    def count(self) -> int:
        """Number of requested choices."""
        return int(self.fields.get("n", 1))

    @property
    def max_bytes(self) -> int:
        """Maximum size of the answer."""
        token = TOKEN_BYTES + LOGPROB_BYTES * (1 + (self.fields.get("logprobs") or 0))
        return FIXED_BYTES + PROMPT_BYTES * self.prompt_tokens + token * self.count * int(self.fields["max_tokens"])


def completion_request(model: str, request: Request, max_tokens: int) -> ServerRequest:
    """Return the HTTP request for a request's completions, of at most `max_tokens` tokens.

    It contains every parameter for which a server may have its own default.
    """
    sampling = request.sampling
    fields: dict[str, Any] = _defaults(model, min(sampling.max_tokens, max_tokens))
    fields |= {
        "n": sampling.n,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "seed": sampling.seed,
        "stop": list(sampling.stop),
        "ignore_eos": sampling.ignore_eos,
        "logprobs": sampling.logprobs or None,
    }
    fields |= sampling_args.from_text(sampling.args)
    return _with_prompt(fields, request.token_ids, request.embeds)


def forced_token_request(model: str, token_ids: Sequence[int], embeds: Tensor | None, token: int) -> ServerRequest:
    """Return the HTTP request for the log-probability of a token after a prompt; no other token is allowed.

    The reported log-probability is from before the mask, unless the server is configured otherwise.
    """
    fields = _defaults(model, 1) | {"ignore_eos": True, "logprobs": 0, "allowed_token_ids": [token]}
    return _with_prompt(fields, token_ids, embeds)


def top_token_request(model: str, token_ids: Sequence[int]) -> ServerRequest:
    """Return the HTTP request for the log-probability of the most probable token after a prompt."""
    fields = _defaults(model, 1) | {"ignore_eos": True, "logprobs": 0}
    return _with_prompt(fields, token_ids, None)


def with_logprobs(request: ServerRequest) -> ServerRequest:
    """Return the request with log-probabilities of the sampled tokens."""
    return replace(request, fields=request.fields | {"logprobs": 0})


def suggests_nan(completions: Sequence[Completion]) -> bool:
    """Return whether completions may come from NaN logits, which sample token 0: only zeros, or a zero at the end."""
    return any(
        answer.token_ids
        and (not any(answer.token_ids) or (answer.finish_reason == "length" and not answer.token_ids[-1]))
        for answer in completions
    )


def _defaults(model: str, max_tokens: int) -> dict[str, Any]:
    return {
        "model": model,
        "max_tokens": max_tokens,
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }


def _with_prompt(fields: dict[str, Any], token_ids: Sequence[int], embeds: Tensor | None) -> ServerRequest:
    # Token ids in addition to embeddings would be a second prompt.
    return ServerRequest(fields | ({"prompt": list(token_ids)} if embeds is None else {}), embeds, len(token_ids))
