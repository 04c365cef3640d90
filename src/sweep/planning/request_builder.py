"""Request builder: embeds a prompt in float32, applies the point's transforms and casts to the engine's dtype."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from sweep.config.schema import SweepConfig
from sweep.core.seeds import derive_seed
from sweep.core.values import Scores
from sweep.engines.base import Request, Sampling
from sweep.engines.sampling_args import as_text
from sweep.errors import TransformError
from sweep.inputs.prompt_set import PromptSet
from sweep.inputs.tokenization import EncodedPrompt
from sweep.scoring.perturbation import Comparison, Neighbours, perturbation
from sweep.scoring.recovery import Exposed, evenly_spaced
from sweep.transforms.inversion import span_rows, undo_rotations
from sweep.transforms.pipeline import Dose
from sweep.transforms.rows import Rows
from sweep.util.compact import compact
from sweep.util.counts import counted

if TYPE_CHECKING:
    from torch import Tensor


@compact
@dataclass(frozen=True, slots=True)
class Measured:
    """The perturbation of a request's embeddings.

    Attributes:
        perturbation: the measures that need no lookup.
        neighbours: rows whose nearest tokens are looked up when the point is scored, for all prompts together.
        exposed: rows from which `scoring.recovery` recovers tokens then; None: it is off.
    """

    perturbation: Scores
    neighbours: Neighbours
    exposed: Exposed | None = None


@dataclass(frozen=True, slots=True)
class BuiltRequest:
    """A request, and the inputs for measuring its perturbation. The engine need not wait for the measurement.

    Attributes:
        request: the request, with embeddings: (tokens, hidden) in the engine's dtype.
        transform_seconds: time spent in the transforms.
        rows: the untransformed rows: (tokens, hidden), float32.
        token_ids: token ids of `rows`.
        origins: origins of the request's rows, see `Rows.origins`.
        doses: requested and achieved dose of each transform, None where it has none.
        facts: see `Pipeline.facts`.
        max_neighbours: how many rows have their nearest tokens looked up.
        expose: returns the rows for `scoring.recovery`; None: it is off.
    """

    request: Request
    transform_seconds: float
    rows: Tensor
    token_ids: tuple[int, ...]
    origins: Sequence[tuple[int, ...]] | None
    doses: list[Dose | None]
    facts: Mapping[str, float]
    max_neighbours: int
    expose: Callable[[], Exposed] | None = None

    def measure(self) -> Measured:
        """Measure the perturbation."""
        assert self.request.embeds is not None
        comparison = Comparison.of(self.request.embeds, self.rows, self.origins)
        neighbours = Neighbours.sample(comparison, self.token_ids, self.max_neighbours)
        exposed = None if self.expose is None else self.expose()
        facts = {f"perturbation/{name}": value for name, value in self.facts.items()}
        return Measured(perturbation(comparison) | _dose_scores(self.doses) | facts, neighbours, exposed)


def build(
    key: Hashable, config: SweepConfig, encoded: EncodedPrompt, corpus: PromptSet, max_length: int | None = None
) -> BuiltRequest:
    """Build the request for one prompt of one point.

    Args:
        key: identifies the request in its answer.
        config: configuration of the point.
        encoded: the prompt.
        corpus: the point's prompts and embedding table.
        max_length: the most rows that leave room for an answer. None: not checked.

    Raises:
        TransformError: a transform failed or broke its contract, or its result is too long, or not finite in the
            engine's dtype.
    """
    table, prompt_id = corpus.table, encoded.prompt.id
    rows = table.rows(encoded.token_ids)
    started = time.perf_counter()
    transformed, doses = config.transform.apply(rows, prompt_id, corpus, config.seed, table.dtype)
    seconds = time.perf_counter() - started
    length = len(transformed.tensor)
    if max_length is not None and length > max_length:
        raise TransformError(
            f"made {counted(length, 'row')} of {len(rows)}, but engine.max_model_len has room for {max_length}"
        )
    embeds = transformed.tensor.to(table.dtype)
    # A finite sum proves that all entries are finite. An infinite sum may also be an overflow.
    if not math.isfinite(embeds.sum(dtype=rows.dtype)) and not embeds.isfinite().all():
        raise TransformError(f"{config.transform.name} made NaN or infinity (in {str(table.dtype)[6:]})")
    token_ids = _row_tokens(transformed, encoded.token_ids)
    sampling = sampling_of(config, prompt_id)
    request = Request(key, token_ids, embeds.contiguous(), sampling, finite=True, adapter=table.adapter_folder)
    max_neighbours = -(-config.scoring.nearest_rows // len(corpus.prompts))
    expose = partial(_expose, config, encoded, corpus, transformed, embeds, max_neighbours)
    return BuiltRequest(
        request,
        seconds,
        rows,
        encoded.token_ids,
        transformed.origins,
        doses,
        config.transform.facts(corpus),
        max_neighbours,
        expose if config.scoring.recovery else None,
    )


def _expose(
    config: SweepConfig, encoded: EncodedPrompt, corpus: PromptSet, transformed: Rows, embeds: Tensor, max_rows: int
) -> Exposed:
    """Sample the rows of the transforms' spans, as they are sent."""
    prompt_id = encoded.prompt.id
    by_position = len(embeds) == len(encoded.token_ids)
    inside = span_rows(config.transform, transformed, prompt_id, corpus) if by_position else []
    selected = evenly_spaced(inside, max_rows)
    sent = embeds[selected].float()
    unrotated = None
    if "rotation" in config.scoring.recovery and by_position:
        unrotated = undo_rotations(config.transform, sent, selected, transformed, prompt_id, corpus, config.seed)
    token_ids = [encoded.token_ids[row] for row in selected]
    return Exposed(sent.numpy(), token_ids, None if unrotated is None else unrotated.numpy(), by_position)


def _row_tokens(rows: Rows, token_ids: tuple[int, ...]) -> tuple[int, ...]:
    """Return a token id per row, for repetition penalties.

    A row without a token gets its neighbour's, so that repetition penalties apply to the prompt's tokens only.
    """
    if rows.token_ids is None:
        return token_ids
    last = next((token for token in rows.token_ids if token is not None), token_ids[0])
    row_tokens = []
    for token in rows.token_ids:
        last = last if token is None else token
        row_tokens.append(last)
    return tuple(row_tokens)


def _dose_scores(doses: list[Dose | None]) -> Scores:
    scores: Scores = {}
    for stage, dose in enumerate(doses):
        if dose is not None:
            prefix = "perturbation/" if len(doses) == 1 else f"perturbation/{stage}/"
            scores |= {f"{prefix}dose_requested": dose.requested, f"{prefix}dose_achieved": dose.achieved}
    return {name: score for name, score in scores.items() if math.isfinite(score)}


def sampling_of(config: SweepConfig, prompt_id: str) -> Sampling:
    """Return the sampling parameters for a prompt.

    The seed depends on the sampling seed and the prompt, but not on the point, so that points are compared under the
    same random numbers. Engines increment it by one for each further sample.
    """
    sampling = config.sampling
    return Sampling(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        repetition_penalty=sampling.repetition_penalty,
        seed=derive_seed(sampling.seed, prompt_id) if sampling.temperature > 0 else None,
        n=sampling.n,
        stop=tuple(sampling.stop),
        ignore_eos=sampling.ignore_eos,
        logprobs=config.scoring.logprobs,
        args=as_text(sampling.args),
    )
