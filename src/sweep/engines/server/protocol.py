"""What vLLM's `/v1/completions` is asked, and what it answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from sweep.engines.base import Completion, Generation, Request, Sampling

GIVEN_UP = ("error", "abort")  # finish reasons of requests that a server did not finish, as when it ends
NOTHING = -9999.0  # what a server says for a log-probability of minus infinity
NAN_IN_JSON = "Out of range float values"


@dataclass(frozen=True, slots=True)
class Question:
    """One HTTP request's content.

    Attributes:
        fields: of its JSON object.
        embeds: [tokens, hidden_size], unless the prompt is among the fields.
    """

    fields: dict[str, Any]
    embeds: Tensor | None


def question(model: str, request: Request, room: int) -> Question:
    """Return what asks for a request's completions, of `room` tokens at most.

    Every parameter is said for which a server may have a default of its own.
    """
    own = request.sampling
    fields: dict[str, Any] = _neutral(model, min(own.max_tokens, room))
    fields |= {
        "n": own.n,
        "temperature": own.temperature,
        "top_p": own.top_p,
        "top_k": own.top_k,
        "seed": own.seed,
        "stop": list(own.stop),
        "ignore_eos": own.ignore_eos,
        "logprobs": own.logprobs or None,
    }
    return _with_prompt(fields, request.token_ids, request.embeds)


def forcing(model: str, token_ids: Sequence[int], embeds: Tensor | None, token: int) -> Question:
    """Return what asks for the log-probability of a token after some others: it is the only one allowed.

    What is reported is the model's own, of before such masks, unless the server was told otherwise.
    """
    fields = _neutral(model, 1) | {"ignore_eos": True, "logprobs": 0, "allowed_token_ids": [token]}
    return _with_prompt(fields, token_ids, embeds)


def unforced(model: str, token_ids: Sequence[int]) -> Question:
    """Return what asks for the log-probability of the most probable token after some others."""
    fields = _neutral(model, 1) | {"ignore_eos": True, "logprobs": 0}
    return _with_prompt(fields, token_ids, None)


def with_logprobs(asked: Question) -> Question:
    """Return the same, to be answered with log-probabilities of what was drawn."""
    return Question(asked.fields | {"logprobs": 0}, asked.embeds)


def looks_broken(completions: Sequence[Completion]) -> bool:
    """Whether answers are such as NaN makes, which draws token 0: nothing but that, or nothing else at the end."""
    return any(
        answer.token_ids
        and (not any(answer.token_ids) or (answer.finish_reason == "length" and not answer.token_ids[-1]))
        for answer in completions
    )


def given_up(content: dict[str, Any]) -> bool:
    """Whether the server says that it did not finish."""
    return any(choice.get("finish_reason") in GIVEN_UP for choice in content["choices"])


def generation(request: Request, content: dict[str, Any]) -> Generation:
    """Return the answer to a request.

    Raises:
        KeyError, TypeError, ValueError: it is not what vLLM says.
    """
    choices = sorted(content["choices"], key=lambda choice: int(choice["index"]))
    if len(choices) != request.sampling.n:
        raise ValueError(f"{len(choices)} answers for {request.sampling.n}")
    completions = tuple(_completion(choice, request.sampling) for choice in choices)
    details = content.get("usage", {}).get("prompt_tokens_details") or {}
    return Generation(request.key, completions, cached_tokens=int(details.get("cached_tokens") or 0))


def logprob(content: dict[str, Any], token: int | None = None) -> float:
    """Return the log-probability of the only token of an answer, which is to be that one, if one is given.

    Raises:
        KeyError, TypeError, ValueError: it is not what vLLM says.
    """
    [step] = _steps(content["choices"][0])
    return step[token] if token is not None else max(step.values())


def _neutral(model: str, max_tokens: int) -> dict[str, Any]:
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


def _with_prompt(fields: dict[str, Any], token_ids: Sequence[int], embeds: Tensor | None) -> Question:
    # Ids beside embeddings would be a second prompt.
    return Question(fields | ({"prompt": list(token_ids)} if embeds is None else {}), embeds)


def _completion(choice: dict[str, Any], sampling: Sampling) -> Completion:
    ids = tuple(int(token) for token in choice["token_ids"])
    steps = tuple(_steps(choice)) if sampling.logprobs else ()
    return Completion(str(choice["text"]), ids, str(choice["finish_reason"] or "unknown"), steps)


def _steps(choice: dict[str, Any]) -> list[dict[int, float]]:
    return [
        {int(name.removeprefix("token_id:")): -math.inf if value <= NOTHING else value for name, value in step.items()}
        for step in choice["logprobs"]["top_logprobs"]
    ]
