"""What a sweep is about to do: all inputs read and checked, nothing expensive started."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from sweep import checkpoint as checkpoints
from sweep import prompts as prompt_files
from sweep import request
from sweep.checkpoint import Checkpoint
from sweep.config import PromptsConfig
from sweep.embedding import EmbeddingTable, open_table
from sweep.engines.gate import GATE_TOKENS
from sweep.errors import ConfigError
from sweep.point import EngineSpec, Point, by_engine
from sweep.prompts import EncodedPrompt

# How many transforms are tried before the engine starts; what lies beyond fails its own point when its turn comes.
TRIED_TRANSFORMS = 4096


@dataclass(frozen=True, slots=True)
class PlannedPoint:
    """A point with its encoded prompts and its fingerprint."""

    point: Point
    prompts: list[EncodedPrompt]
    fingerprint: str


@dataclass(frozen=True, slots=True)
class EngineGroup:
    """The points that share an engine.

    Attributes:
        max_model_len: tokens of prompt and answer that the engine must have room for.
    """

    spec: EngineSpec
    checkpoint: Checkpoint
    table: EmbeddingTable
    points: list[PlannedPoint]
    max_model_len: int

    @property
    def requests(self) -> int:
        """The number of requests."""
        return sum(len(planned.prompts) for planned in self.points)

    @property
    def prompt_tokens(self) -> int:
        """The number of prompt tokens over all requests."""
        return sum(len(e.token_ids) for planned in self.points for e in planned.prompts)

    @property
    def max_output_tokens(self) -> int:
        """The most tokens that can be generated."""
        samplings = ((len(planned.prompts), planned.point.config.sampling) for planned in self.points)
        return sum(count * sampling.n * sampling.max_tokens for count, sampling in samplings)


def make_plan(points: Sequence[Point]) -> list[EngineGroup]:
    """Read models' files, prompts and embedding tables, and check that every point can be run.

    Raises:
        ConfigError: what is wrong, with the key, file or point that it is about.
    """
    groups = [_plan_group(spec, members) for spec, members in by_engine(points).items()]
    for group in groups:
        _try_transforms(group)
    return groups


def _plan_group(spec: EngineSpec, points: Sequence[Point]) -> EngineGroup:
    checkpoint = checkpoints.find(spec.model)
    checkpoint.check_supported()
    limit = spec.engine.max_model_len or checkpoint.context
    if limit > checkpoint.context:
        raise ConfigError(f"engine.max_model_len: {limit} is more than the model's context of {checkpoint.context}.")
    read: list[tuple[PromptsConfig, list[EncodedPrompt], str]] = []

    def encoded(config: PromptsConfig) -> tuple[list[EncodedPrompt], str]:
        for known, encoded_prompts, digest in read:
            if known == config:
                return encoded_prompts, digest
        loaded = prompt_files.load(config)
        encoded_prompts, digest = prompt_files.encode(loaded, checkpoint), prompt_files.digest(loaded)
        prompt_files.check_lengths(encoded_prompts, limit)
        read.append((config, encoded_prompts, digest))
        return encoded_prompts, digest

    planned = []
    for point in points:
        prompts, digest = encoded(point.config.prompts)
        planned.append(PlannedPoint(point, prompts, point.fingerprint(digest)))
    needed = max(
        max(len(e.token_ids) for e in p.prompts) + max(p.point.config.sampling.max_tokens, GATE_TOKENS) for p in planned
    )
    max_model_len = spec.engine.max_model_len or min(limit, needed)
    return EngineGroup(spec, checkpoint, open_table(checkpoint), planned, max_model_len)


def _try_transforms(group: EngineGroup) -> None:
    """Apply each point's transform to its first prompts, all points' first prompts first."""
    for planned, encoded in islice(_prompts_first(group.points), TRIED_TRANSFORMS):
        try:
            request.build(None, planned.point.config, encoded, group.table)
        except request.TransformError as error:
            raise ConfigError(f"Point {planned.point.name}, prompt {encoded.prompt.id!r}: {error}.") from error


def _prompts_first(points: Sequence[PlannedPoint]) -> Iterator[tuple[PlannedPoint, EncodedPrompt]]:
    for i in range(max(len(planned.prompts) for planned in points)):
        for planned in points:
            if i < len(planned.prompts):
                yield planned, planned.prompts[i]


def describe(groups: Sequence[EngineGroup]) -> Iterator[str]:
    """Yield the lines of a dry run."""
    for number, group in enumerate(groups, 1):
        engine, model = group.spec.engine.name, group.spec.model
        yield (
            f"engine {number}: {engine}, {model.id} ({group.checkpoint.files.dtype}), {len(group.points)} points, "
            f"{group.requests} requests, {group.prompt_tokens} prompt tokens, "
            f"up to {group.max_output_tokens} output tokens"
        )
        for planned in group.points:
            tokens = sum(len(e.token_ids) for e in planned.prompts)
            name, print_ = planned.point.name, planned.fingerprint[:12]
            yield f"  {name}: {len(planned.prompts)} requests, {tokens} prompt tokens, fingerprint {print_}"
    yield (
        f"{sum(len(group.points) for group in groups)} points, {len(groups)} engine starts, "
        f"{sum(group.requests for group in groups)} requests"
    )
