"""Identity check: start-up test that untransformed prompt embeddings and token ids decode alike.

It detects embeddings that are read from the wrong place or scaled wrongly for a model. Otherwise a sweep would report
the mistake as an effect of the transform.
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

IDENTITY_CHECK_TOKENS = 8


@dataclass(frozen=True, slots=True)
class IdentityPrompt:
    """A prompt to decode.

    Attributes:
        id: the prompt's id, for messages.
        embeds: (len(token_ids), hidden_size), untransformed rows of the tokens in the engine's dtype.
        adapter: folder of the LoRA adapter with which the prompt is decoded, and whose change the rows contain.
    """

    id: str
    token_ids: tuple[int, ...]
    embeds: Tensor
    adapter: str | None = None


def check_identity(engine: Engine, prompts: Sequence[IdentityPrompt], max_tokens: int) -> None:
    """Decode prompts greedily as token ids and as embeddings, one prompt at a time.

    On a GPU, rounding depends on the shape of the batch, and near ties in bfloat16 can go either way. Decoded in a
    batch, an 8B shape with random weights failed the check in one start of two.

    Args:
        engine: an open engine.
        prompts: prompts with their untransformed embeddings.
        max_tokens: tokens to decode per prompt.

    Raises:
        ConfigError: the answers differ. The message names the prompt and shows both answers.
    """
    sampling = Sampling(max_tokens=max_tokens, ignore_eos=True)
    by_ids = _answers(engine, [Request(p.id, p.token_ids, None, sampling, adapter=p.adapter) for p in prompts])
    by_rows = _answers(engine, [Request(p.id, p.token_ids, p.embeds, sampling, adapter=p.adapter) for p in prompts])
    for prompt, from_ids, from_rows in zip(prompts, by_ids, by_rows, strict=True):
        if from_ids != from_rows:
            adapter = f" with the adapter {prompt.adapter}" if prompt.adapter else ""
            raise ConfigError(
                f"The model fails the identity check{adapter}: the prompt {prompt.id!r} decodes to "
                f"{list(from_ids)} from token ids, but to {list(from_rows)} from their embeddings. "
                "The rows of the embedding table are not the inputs that the engine feeds to the model."
            )


def _answers(engine: Engine, requests: Sequence[Request]) -> list[tuple[int, ...]]:
    answers: list[tuple[int, ...]] = []
    for answer in chain.from_iterable(engine.generate([request]) for request in requests):
        if isinstance(answer, Failure):
            raise ConfigError(f"The model fails the identity check: the prompt {answer.key!r} failed: {answer.reason}")
        answers.append(answer.completions[0].token_ids)
    return answers
