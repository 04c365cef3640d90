"""Further sampling parameters, `sampling.args`: named as in vLLM's `SamplingParams`, passed on to the engine.

The checks here need no engine. Which parameters an engine has is checked by `EngineConfig.check_args`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from sweep.errors import ConfigError
from sweep.util.validators import require

KEY = "sampling.args"

# Parameters that keys of this project set.
OWN_KEYS: Mapping[str, str] = {
    **{
        name: f"sampling.{name}"
        for name in (
            "n", "max_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed", "stop", "ignore_eos",
        )
    },
    "logprobs": "scoring.logprobs",
    "prompt_logprobs": "scoring.teacher_forced or scoring.reference_logprob",
}  # fmt: skip
# Parameters that must keep the value that this project gives them, and why.
FIXED: Mapping[str, str] = {
    "detokenize": "must be true, because answers are scored as text",
    "output_kind": "has no effect on complete answers",
    "stream_interval": "has no effect on complete answers",
    "output_text_buffer_length": "is internal to vLLM",
    "skip_clone": "is internal to vLLM",
    "flat_logprobs": "must be false, because log-probabilities are read by token",
    "logprob_token_ids": "has no place in the results; set scoring.logprobs",
    "prompt_logprob_token_ids": "has no place in the results",
    "prompt_logprob_start": "has no place in the results",
    "routed_experts_prompt_start": "has no place in the results",
    "trace_decode_token_ids": "has no place in the results",
}
RANGES: Mapping[str, tuple[float, float]] = {
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "min_tokens": (0, math.inf),
}
TOKENS = ("stop_token_ids", "allowed_token_ids")
BIAS = "logit_bias"


def check_values(args: Mapping[str, Any], max_tokens: int) -> None:
    """Check names and values, as far as they do not depend on engine or model. null stands for the default.

    Args:
        args: the parameters by name.
        max_tokens: longest answer in tokens.

    Raises:
        ConfigError: a key of this project sets the parameter, or the value is out of range.
    """
    for name, value in args.items():
        key = f"{KEY}.{name}"
        if name in OWN_KEYS:
            raise ConfigError(f"{key}: set {OWN_KEYS[name]} instead.")
        if name in FIXED:
            raise ConfigError(f"{key} {FIXED[name]}. Remove it.")
        if value is None:
            continue
        if name in RANGES:
            low, high = RANGES[name]
            rule = f"must be {f'in [{low}, {high}]' if high < math.inf else f'{low} or more'}"
            require(_is_number(value) and low <= value <= high, key, rule, value)
        if name in TOKENS:
            valid = isinstance(value, list) and all(_token(token) is not None for token in value)
            require(valid, key, "must be a list of token ids", value)
        if name == "allowed_token_ids":
            require(bool(value), key, "must not be empty", value)
        if name == "bad_words":
            valid = isinstance(value, list) and all(isinstance(word, str) and word for word in value)
            require(valid, key, "must be a list of texts, none of them empty", value)
        if name == BIAS:
            valid = isinstance(value, Mapping) and all(_token(token) is not None for token in value)
            valid = valid and all(_is_number(bias) and math.isfinite(bias) for bias in value.values())
            require(valid, key, "must be a mapping of token ids to finite numbers, such as {128: -100}", value)
    least = args.get("min_tokens") or 0
    require(least <= max_tokens, f"{KEY}.min_tokens", f"must be at most sampling.max_tokens={max_tokens}", least)


def check_tokens(args: Mapping[str, Any], vocabulary: int) -> None:
    """Check that token ids belong to the model.

    Raises:
        ConfigError: names the token and the size of the vocabulary.
    """
    for name in (*TOKENS, BIAS):
        for token in args.get(name) or ():
            rule = f"has the token {token}, but the model's tokens are 0 to {vocabulary - 1}"
            require(int(token) < vocabulary, f"{KEY}.{name}", rule, None)


def as_text(args: Mapping[str, Any]) -> str:
    """Return the parameters that are not null as JSON; empty if there are none.

    Names are sorted. Mappings below them are not, because a JSON schema orders the properties of an answer.
    """
    given = {name: _canonical(value) for name, value in sorted(args.items()) if value is not None}
    return json.dumps(given, ensure_ascii=True, allow_nan=False) if given else ""


def from_text(text: str) -> dict[str, Any]:
    """Return the parameters of `as_text`, with token ids of `logit_bias` as integers."""
    args: dict[str, Any] = json.loads(text) if text else {}
    if BIAS in args:
        args[BIAS] = {int(token): float(bias) for token, bias in args[BIAS].items()}
    return args


def _canonical(value: Any) -> Any:
    """Return a value with whole numbers as integers, so that `1` and `1.0` give the same text."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {str(name): _canonical(inner) for name, inner in value.items()}
    return [_canonical(inner) for inner in value] if isinstance(value, list) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _token(value: Any) -> int | None:
    """Return a token id; None if the value is not one. Keys of a mapping may be texts."""
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
