"""From a point and a prompt to what the engine is sent: rows in fp32, the transform, one cast."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from sweep.config import SamplingConfig, SweepConfig
from sweep.embedding import EmbeddingTable
from sweep.engines.base import Request, Sampling
from sweep.errors import SweepError
from sweep.prompts import EncodedPrompt
from sweep.scoring.perturbation import perturbation
from sweep.seeds import derive_seed
from sweep.transforms import Context


class TransformError(SweepError):
    """A transform gave rows that cannot be sent."""


@dataclass(frozen=True, slots=True)
class BuiltRequest:
    """A request and the perturbation that its embeddings carry."""

    request: Request
    perturbation: dict[str, float]


def build(key: Hashable, config: SweepConfig, encoded: EncodedPrompt, table: EmbeddingTable) -> BuiltRequest:
    """Make the request of one prompt of one point.

    Raises:
        TransformError: the transform raised, gave another shape, or an entry that is not finite in the engine's dtype.
    """
    rows = table.rows(encoded.token_ids)
    context = Context(derive_seed(config.seed, encoded.prompt.id, 0), table)
    try:
        transformed = config.transform.apply(rows, context)
    except Exception as error:  # a user's transform may raise anything
        raise TransformError(f"{config.transform.name} raised {type(error).__name__}: {error}") from error
    if transformed.shape != rows.shape:
        raise TransformError(
            f"{config.transform.name} made rows of shape {list(transformed.shape)} of {list(rows.shape)}"
        )
    sent = transformed.to(table.dtype)
    if not sent.isfinite().all():
        raise TransformError(f"{config.transform.name} made NaN or infinity (in {str(table.dtype)[6:]})")
    request = Request(key, encoded.token_ids, sent.contiguous(), sampling_of(config.sampling, encoded.prompt.id))
    return BuiltRequest(request, perturbation(rows, sent))


def sampling_of(config: SamplingConfig, prompt_id: str) -> Sampling:
    """Return how a prompt's answers are drawn.

    The seed depends on the sampling seed and the prompt, not on the point, so that points are compared under the same
    random numbers; engines count it up by one for each further sample.
    """
    return Sampling(
        max_tokens=config.max_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        repetition_penalty=config.repetition_penalty,
        seed=derive_seed(config.seed, prompt_id) if config.temperature > 0 else None,
        n=config.n,
        stop=tuple(config.stop),
        ignore_eos=config.ignore_eos,
    )
