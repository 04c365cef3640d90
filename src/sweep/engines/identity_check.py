"""The identity gate: what an engine answers to token ids, it must answer to the same tokens' untransformed embeddings.

It catches every way in which embeddings can be taken from the wrong place or scaled wrongly for a model, before a sweep
would report the mistake as the transform's effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from sweep.engines.base import Engine, Failure, Request, Sampling
from sweep.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

GATE_TOKENS = 8


@dataclass(frozen=True, slots=True)
class GatePrompt:
    """A prompt to try: its id, its tokens, and their untransformed rows in the engine's dtype."""

    id: str
    token_ids: tuple[int, ...]
    embeds: Tensor


def identity_gate(engine: Engine, prompts: Sequence[GatePrompt], max_tokens: int) -> None:
    """Decode prompts greedily as token ids and as embeddings, one at a time.

    In a batch, sums are rounded by its shape on a GPU, and bfloat16 then decides near ties one way or the other: an 8B
    shape with random weights failed the gate in one start of two.

    Raises:
        ConfigError: the answers differ; it names the prompt and both beginnings.
    """
    sampling = Sampling(max_tokens=max_tokens, ignore_eos=True)
    by_ids = _answers(engine, [Request(p.id, p.token_ids, None, sampling) for p in prompts])
    by_rows = _answers(engine, [Request(p.id, p.token_ids, p.embeds, sampling) for p in prompts])
    for prompt in prompts:
        if by_ids[prompt.id] != by_rows[prompt.id]:
            raise ConfigError(
                f"The model fails the identity gate: the prompt {prompt.id!r} decodes to "
                f"{list(by_ids[prompt.id])} as token ids and to {list(by_rows[prompt.id])} as their embeddings, "
                "so its embedding rows are not what it is fed inside the engine."
            )


def _answers(engine: Engine, requests: Sequence[Request]) -> dict[object, tuple[int, ...]]:
    answers: dict[object, tuple[int, ...]] = {}
    for answer in chain.from_iterable(engine.generate([request]) for request in requests):
        if isinstance(answer, Failure):
            raise ConfigError(f"The model fails the identity gate: the prompt {answer.key!r}: {answer.reason}")
        answers[answer.key] = answer.completions[0].token_ids
    return answers
