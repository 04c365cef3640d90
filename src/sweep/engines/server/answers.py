"""Validation of a server's answer to one request, before any part of it is used.

A proxy, a cache or a broken server may send the answer to another request. vLLM repeats the request id, the number of
prompt tokens and the server's fingerprint, so such answers can be detected.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar
from uuid import uuid4

from sweep.engines.base import Completion, Generation, Request

MINUS_INFINITY = -9999.0  # vLLM's JSON value for a log-probability of minus infinity
ROUNDING = 1e-3  # amount by which a log-probability may exceed 0
UNFINISHED = ("error", "abort")  # finish reasons of requests that a server did not finish, for example at shutdown
FINISHED = ("stop", "length", "repetition")
MAX_TOKEN_ID = 2**31

_REQUEST = re.compile(r"sweep[0-9a-f]{32}-[0-9]+")
_TOKEN = re.compile(r"token_id:([0-9]{1,10})")

T = TypeVar("T")


class RequestFailed(Exception):
    """The server does not answer this request correctly; other requests are not affected."""


class Misattributed(ValueError):
    """The answer belongs to another request."""


def request_ids() -> Iterator[str]:
    """Return an iterator of globally unique request ids."""
    prefix = f"sweep{uuid4().hex}"
    return (f"{prefix}-{number}" for number in itertools.count(1))


def validate(read: Callable[..., T], *arguments: object) -> T:
    """Return `read(*arguments)`, which reads a part of an answer.

    Raises:
        RequestFailed: the part is invalid.
    """
    try:
        return read(*arguments)
    except Misattributed as error:
        raise RequestFailed(f"the server's answer belongs to another request: {error}") from error
    except ValueError as error:
        raise RequestFailed(f"the server's answer is invalid: {error}") from error


def choices_of(content: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Return an answer's choices, ordered by index.

    Raises:
        ValueError: there are not exactly `count` choices with the indices from 0.
    """
    choices = [_typed(choice, dict, "a choice") for choice in _typed(content.get("choices"), list, "choices")]
    if len(choices) != count:
        raise ValueError(f"it has {len(choices)} choices, expected {count}")
    by_index = {_natural(choice.get("index"), "a choice's index"): choice for choice in choices}
    if by_index.keys() != set(range(count)):
        raise ValueError(f"its choices have the indices {sorted(by_index)[:8]}, expected 0 to {count - 1}")
    return [by_index[index] for index in range(count)]


def is_unfinished(choices: Sequence[dict[str, Any]]) -> bool:
    """Return whether the server reports that it did not finish the request."""
    return any(choice.get("finish_reason") in UNFINISHED for choice in choices)


def check_request_id(content: dict[str, Any], request_id: str, names: Sequence[str]) -> bool:
    """Return whether the answer repeats the id of its request. A proxy may have replaced the id.

    Args:
        content: the answer.
        request_id: the id that was sent, see `request_ids`.
        names: names of the models that the server lists.

    Raises:
        Misattributed: the answer has the id of another request or comes from another model.
    """
    answer_id = content.get("id")
    match = _REQUEST.search(answer_id) if isinstance(answer_id, str) else None
    if match is not None and match[0] != request_id:
        raise Misattributed("it has another request id")
    model = content.get("model")
    if isinstance(model, str) and model not in names:
        raise Misattributed(f"it comes from another model, {model[:100]!r}")
    return match is not None


def check_usage(content: dict[str, Any], prompt_tokens: int, tokens: int) -> int:
    """Return the number of prompt tokens that were cached.

    Args:
        content: the answer.
        prompt_tokens: number of prompt tokens that were sent.
        tokens: number of generated tokens in the answer.

    Raises:
        Misattributed: the answer is for a prompt of another length.
        ValueError: the counts contradict the answer.
    """
    usage = content.get("usage")
    if usage is None:
        return 0
    counts = _typed(usage, dict, "usage")
    if (reported := counts.get("prompt_tokens")) is not None and _natural(reported, "prompt_tokens") != prompt_tokens:
        raise Misattributed(f"its prompt has {reported} tokens, but {prompt_tokens} were sent")
    if (reported := counts.get("completion_tokens")) is not None and _natural(reported, "completion_tokens") != tokens:
        raise ValueError(f"it has {tokens} tokens, but its usage counts {reported}")
    details = _typed(counts.get("prompt_tokens_details") or {}, dict, "prompt_tokens_details")
    cached = _natural(details.get("cached_tokens") or 0, "cached_tokens")
    if cached > prompt_tokens:
        raise ValueError(f"its usage counts {cached} cached tokens of {prompt_tokens} prompt tokens")
    return cached


def generation_of(
    request: Request,
    content: dict[str, Any],
    choices: Sequence[dict[str, Any]],
    max_tokens: int,
    vocabulary: int | None,
) -> Generation:
    """Return the generation for a request.

    Args:
        request: the request.
        content: the whole answer.
        choices: the choices of the answer, ordered by index.
        max_tokens: largest number of tokens that was requested.
        vocabulary: size of the vocabulary; None if unknown.

    Raises:
        ValueError: the answer is not valid for the request.
    """
    completions = tuple(_completion(choice, request, max_tokens, vocabulary or MAX_TOKEN_ID) for choice in choices)
    tokens = sum(len(completion.token_ids) for completion in completions)
    return Generation(request.key, completions, cached_tokens=check_usage(content, len(request.token_ids), tokens))


def steps_of(choice: dict[str, Any], count: int) -> list[dict[int, float]]:
    """Return the log-probabilities by token id at each of the `count` steps of a choice.

    Raises:
        ValueError: they are missing or invalid.
    """
    logprobs = _typed(choice.get("logprobs"), dict, "logprobs")
    steps = _typed(logprobs.get("top_logprobs"), list, "top_logprobs")
    if len(steps) != count:
        raise ValueError(f"it has {count} tokens, but log-probabilities of {len(steps)} tokens")
    return [
        {_token(name): _logprob(value) for name, value in _typed(step, dict, "top_logprobs").items()} for step in steps
    ]


def logprob_of(
    content: dict[str, Any], choices: list[dict[str, Any]], prompt_tokens: int, token: int | None = None
) -> float:
    """Return the log-probability of `token` in an answer of one token; None: that of the most probable token.

    Raises:
        ValueError: the log-probability is missing, or the token counts contradict the answer.
    """
    [step] = steps_of(choices[0], 1)
    if not step or (token is not None and token not in step):
        raise ValueError("it lacks the requested log-probability")
    check_usage(content, prompt_tokens, 1)
    return step[token] if token is not None else max(step.values())


def _completion(choice: dict[str, Any], request: Request, max_tokens: int, vocabulary: int) -> Completion:
    sampling = request.sampling
    ids = tuple(_natural(token, "a token id") for token in _typed(choice.get("token_ids"), list, "token_ids"))
    if len(ids) > max_tokens:
        raise ValueError(f"it has {len(ids)} tokens, but at most {max_tokens} were requested")
    if ids and max(ids) >= vocabulary:
        raise ValueError(f"it has the token id {max(ids)}, but the vocabulary has {vocabulary} tokens")
    reason = choice.get("finish_reason")
    if reason not in FINISHED:
        raise ValueError(f"it has the finish reason {str(reason)[:40]!r}, expected one of {', '.join(FINISHED)}")
    prompt = choice.get("prompt_token_ids")
    if request.embeds is None and prompt is not None and prompt != list(request.token_ids):
        raise Misattributed("its prompt has other tokens")
    steps = tuple(steps_of(choice, len(ids))) if sampling.logprobs else ()
    if any(token not in step for token, step in zip(ids, steps, strict=False)):
        raise ValueError("it lacks the log-probability of one of its tokens")
    text = _typed(choice.get("text"), str, "text")
    return Completion(_without_surrogates(text), ids, str(reason), steps)


def _typed(value: Any, kind: type[T], what: str) -> T:
    if not isinstance(value, kind):
        raise ValueError(f"{what} should be of type {kind.__name__}, not {type(value).__name__}")
    return value


def _natural(value: Any, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{what} should be an integer of at least 0, not {str(value)[:40]!r}")
    return value


def _token(name: str) -> int:
    match = _TOKEN.fullmatch(name)
    if match is None:
        raise ValueError(f"top_logprobs should name tokens like token_id:5, not {name[:40]!r}")
    return int(match[1])


def _logprob(value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not value <= ROUNDING:
        raise ValueError(f"a log-probability should be a number of at most 0, not {str(value)[:40]!r}")
    return -math.inf if value <= MINUS_INFINITY else float(value)


def _without_surrogates(text: str) -> str:
    """Replace lone surrogates, which JSON can contain but UTF-8 cannot encode."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
