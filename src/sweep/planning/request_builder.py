"""From a point and a prompt to what the engine is sent: rows in fp32, the transforms, one cast."""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sweep.config import SweepConfig
from sweep.engines.base import Request, Sampling
from sweep.errors import TransformError
from sweep.inputs.corpus import Corpus
from sweep.inputs.encoding import EncodedPrompt
from sweep.scoring.perturbation import Comparison, Neighbours, perturbation
from sweep.scoring.values import Scores
from sweep.seeds import derive_seed
from sweep.transforms.pipeline import Dose
from sweep.transforms.rows import Rows

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Measured:
    """The perturbation that a request's embeddings carry.

    Attributes:
        perturbation: what can be measured at once.
        neighbours: rows whose nearest tokens are looked up when the point is scored, all prompts' in one go.
    """

    perturbation: Scores
    neighbours: Neighbours


@dataclass(frozen=True, slots=True)
class BuiltRequest:
    """A request, and what its perturbation is measured of, for which the engine need not wait.

    Attributes:
        transform_seconds: how long the transforms took.
        rows: the untransformed rows, [n, hidden_size] in fp32.
        token_ids: theirs.
        origins: of the request's rows; as of `Rows.origins`.
        most: how many of its rows have their nearest tokens looked up.
    """

    request: Request
    transform_seconds: float
    rows: Tensor
    token_ids: tuple[int, ...]
    origins: Sequence[tuple[int, ...]] | None
    doses: list[Dose | None]
    most: int

    def measure(self) -> Measured:
        """Measure the perturbation."""
        assert self.request.embeds is not None
        compared = Comparison.of(self.request.embeds, self.rows, self.origins)
        neighbours = Neighbours.sample(compared, self.token_ids, self.most)
        return Measured(perturbation(compared) | _doses(self.doses), neighbours)


def build(
    key: Hashable, config: SweepConfig, encoded: EncodedPrompt, corpus: Corpus, max_length: int | None = None
) -> BuiltRequest:
    """Make the request of one prompt of one point.

    Args:
        max_length: the most rows that leave room for an answer.

    Raises:
        TransformError: a transform failed or broke its contract, or what it made is too long, or is not finite in the
            engine's dtype.
    """
    table, prompt_id = corpus.table, encoded.prompt.id
    rows = table.rows(encoded.token_ids)
    began = time.perf_counter()
    transformed, doses = config.transform.apply(rows, prompt_id, corpus, config.seed, table.dtype)
    seconds = time.perf_counter() - began
    length = len(transformed.tensor)
    if max_length is not None and length > max_length:
        raise TransformError(f"made {length} rows of {len(rows)}; engine.max_model_len has room for {max_length}")
    sent = transformed.tensor.to(table.dtype)
    # A finite sum has no NaN or infinity in it; one that is not may be but large.
    if not math.isfinite(sent.sum(dtype=rows.dtype)) and not sent.isfinite().all():
        raise TransformError(f"{config.transform.name} made NaN or infinity (in {str(table.dtype)[6:]})")
    token_ids = _spoken(transformed, encoded.token_ids)
    request = Request(key, token_ids, sent.contiguous(), sampling_of(config, prompt_id))
    most = -(-config.scoring.nearest_rows // len(corpus.prompts))
    return BuiltRequest(request, seconds, rows, encoded.token_ids, transformed.origins, doses, most)


def _spoken(rows: Rows, token_ids: tuple[int, ...]) -> tuple[int, ...]:
    """Return a token for each row, which repetition penalties read.

    A row from outside is given its neighbour's, so that no token counts as seen that the prompt has not.
    """
    if rows.token_ids is None:
        return token_ids
    last = next((token for token in rows.token_ids if token is not None), token_ids[0])
    spoken = []
    for token in rows.token_ids:
        last = last if token is None else token
        spoken.append(last)
    return tuple(spoken)


def _doses(doses: list[Dose | None]) -> Scores:
    scores: Scores = {}
    for place, dose in enumerate(doses):
        if dose is not None:
            prefix = "perturbation/" if len(doses) == 1 else f"perturbation/{place}/"
            scores |= {f"{prefix}dose_requested": dose.requested, f"{prefix}dose_achieved": dose.achieved}
    return {name: score for name, score in scores.items() if math.isfinite(score)}


def sampling_of(config: SweepConfig, prompt_id: str) -> Sampling:
    """Return how a prompt's answers are drawn.

    The seed depends on the sampling seed and the prompt, not on the point, so that points are compared under the same
    random numbers; engines count it up by one for each further sample.
    """
    own = config.sampling
    return Sampling(
        max_tokens=own.max_tokens,
        temperature=own.temperature,
        top_p=own.top_p,
        top_k=own.top_k,
        repetition_penalty=own.repetition_penalty,
        seed=derive_seed(own.seed, prompt_id) if own.temperature > 0 else None,
        n=own.n,
        stop=tuple(own.stop),
        ignore_eos=own.ignore_eos,
        logprobs=config.scoring.logprobs,
    )
