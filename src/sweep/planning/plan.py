"""What a sweep is about to do: all inputs read and checked, nothing expensive started."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from sweep import request
from sweep.config import PromptsConfig, ScoringConfig
from sweep.disk.archive import Archived
from sweep.engines.gate import GATE_TOKENS
from sweep.errors import ConfigError, TransformError
from sweep.identity import Identity
from sweep.inputs import checkpoint as checkpoints
from sweep.inputs import prompts as prompt_files
from sweep.inputs.checkpoint import Checkpoint
from sweep.inputs.corpus import Corpus
from sweep.inputs.embedding import EmbeddingTable, open_table
from sweep.inputs.encoding import EncodedPrompt, check_lengths, encode
from sweep.inputs.prompts import Prompt
from sweep.point import EngineSpec, Point
from sweep.scoring.scorers import select
from sweep.scoring.text import check_pattern

# How many transforms are tried before the engine starts, and for how long; all points have at least one prompt tried.
# What lies beyond fails its own point when its turn comes.
TRIED_TRANSFORMS = 4096
TRIED_SECONDS = 0.3

SHOWN = 50  # points of an engine that a dry run lists


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A point that is to be planned.

    Attributes:
        index: its place in the sweep.
        archived: what an earlier run has left of it.
    """

    point: Point
    identity: Identity
    index: int
    archived: Archived | None = None

    @property
    def done(self) -> bool:
        """Whether it has been finished before; then it is planned only for others to be compared with."""
        return self.archived is not None and self.archived.done


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPoint(Task):
    """A point with the corpus that its prompts are in."""

    corpus: Corpus

    @property
    def runs(self) -> int:
        """How often its prompts are answered: a control twice, for the noise floor."""
        if self.done:
            return 0
        return 2 if self.point.is_control and self.point.config.scoring.noise_floor else 1

    @property
    def prompts(self) -> list[EncodedPrompt]:
        """The point's encoded prompts."""
        return self.corpus.prompts


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
    def max_prompt_len(self) -> int:
        """The most rows of a prompt that leave room for an answer."""
        return self.max_model_len - 1

    @property
    def requests(self) -> int:
        """The number of requests, the controls' second runs among them, and not those of teacher forcing."""
        return sum(len(planned.prompts) * planned.runs for planned in self.points)

    @property
    def prompt_tokens(self) -> int:
        """The number of prompt tokens over all requests."""
        return sum(planned.corpus.prompt_tokens * planned.runs for planned in self.points)

    @property
    def max_output_tokens(self) -> int:
        """The most tokens that can be generated."""
        samplings = ((len(planned.prompts) * planned.runs, planned.point.config.sampling) for planned in self.points)
        return sum(count * sampling.n * sampling.max_tokens for count, sampling in samplings)


def make_plan(tasks: Sequence[Task], *, on_paper: bool = False) -> list[EngineGroup]:
    """Read models' files, prompts and embedding tables, and check that every point can be run.

    Args:
        on_paper: do without what needs embeddings: tables are found and not read, transforms checked and not tried.

    Raises:
        ConfigError: what is wrong, with the key, file or point that it is about.
    """
    for scoring in _scorings(tasks):
        select(scoring.quality)
    groups: dict[EngineSpec, list[Task]] = {}
    for task in tasks:
        groups.setdefault(task.point.engine_spec, []).append(task)
    planned = [_plan_group(spec, members) for spec, members in groups.items()]
    for group in planned if not on_paper else ():
        _try_transforms(group)
    return planned


def _plan_group(spec: EngineSpec, tasks: Sequence[Task]) -> EngineGroup:
    checkpoint = checkpoints.find(spec.model)
    checkpoint.check_supported()
    limit = spec.engine.max_model_len or checkpoint.context
    if limit > checkpoint.context:
        raise ConfigError(f"engine.max_model_len: {limit} is more than the model's context of {checkpoint.context}.")
    table = open_table(checkpoint)
    read: list[tuple[PromptsConfig, Corpus]] = []
    patterns = any("regex_match" in name for scoring in _scorings(tasks) for name in scoring.quality)

    def corpus_of(config: PromptsConfig) -> Corpus:
        for known, corpus in read:
            if known == config:
                return corpus
        prompts = prompt_files.load(config)
        if patterns:
            check_patterns(prompts)
        encoded = encode(prompts, checkpoint)
        check_lengths(encoded, limit)
        read.append((config, Corpus(encoded, table, checkpoint)))
        return read[-1][1]

    planned = []
    for task in tasks:
        corpus = corpus_of(task.point.config.prompts)
        task.point.config.transform.check(corpus)
        spec.engine.check(request.sampling_of(task.point.config, ""))
        planned.append(
            PlannedPoint(
                point=task.point, identity=task.identity, index=task.index, archived=task.archived, corpus=corpus
            )
        )
    max_model_len = spec.engine.max_model_len or min(limit, max(_needed(p) for p in planned))
    return EngineGroup(spec, checkpoint, table, planned, max_model_len)


def _scorings(tasks: Sequence[Task]) -> list[ScoringConfig]:
    """Return how points are scored, which mostly is one object that all of them share."""
    return list({id(task.point.config.scoring): task.point.config.scoring for task in tasks}.values())


def check_patterns(prompts: Sequence[Prompt]) -> None:
    """Refuse references that are no regular expressions; for sweeps that take them for such.

    Raises:
        ConfigError: with the prompt and the pattern.
    """
    for prompt in prompts:
        for reference in prompt.references:
            try:
                check_pattern(reference)
            except ConfigError as error:
                raise ConfigError(f"Prompt {prompt.id!r}: {error}") from error


def _needed(planned: PlannedPoint) -> int:
    """Return the most tokens of prompt and answer that a point can have."""
    config = planned.point.config
    # A forced answer stands in the prompt, and one more token is generated after it.
    answer = max(config.sampling.max_tokens, GATE_TOKENS) + config.scoring.teacher_forced
    return config.transform.max_rows(planned.corpus.longest) + answer


def _try_transforms(group: EngineGroup) -> None:
    """Apply each point's transforms to its first prompts, all points' first prompts first."""
    began = time.monotonic()
    for number, (planned, encoded) in enumerate(islice(_prompts_first(group.points), TRIED_TRANSFORMS)):
        if number >= len(group.points) and time.monotonic() - began > TRIED_SECONDS:
            break
        try:
            request.build(None, planned.point.config, encoded, planned.corpus, group.max_prompt_len)
        except TransformError as error:
            raise ConfigError(f"Point {planned.point.name}, prompt {encoded.prompt.id!r}: {error}.") from error


def _prompts_first(points: Sequence[PlannedPoint]) -> Iterator[tuple[PlannedPoint, EncodedPrompt]]:
    for i in range(max(len(planned.prompts) for planned in points)):
        for planned in points:
            if i < len(planned.prompts):
                yield planned, planned.prompts[i]


def describe(groups: Sequence[EngineGroup], asked: int, shards: int | None = None) -> Iterator[str]:
    """Yield the lines of a dry run of so many points, controls among them; of each engine's points the first ones.

    Args:
        shards: how many the points would be cut into; None: they would not.
    """
    for number, group in enumerate(groups, 1):
        engine, model = group.spec.engine.name, group.spec.model
        yield (
            f"engine {number}: {engine}, {model.id} ({group.checkpoint.files.dtype}), {len(group.points)} points, "
            f"{group.requests} requests, {group.prompt_tokens} prompt tokens, "
            f"up to {group.max_output_tokens} output tokens"
        )
        for planned in group.points[:SHOWN]:
            name, print_ = planned.point.name, planned.identity.fingerprint[:12]
            tokens = planned.corpus.prompt_tokens
            yield f"  {name}: {len(planned.prompts)} requests, {tokens} prompt tokens, fingerprint {print_}"
        if len(group.points) > SHOWN:
            yield f"  … and {len(group.points) - SHOWN} more"
    todo = [planned for group in groups for planned in group.points if not planned.done]
    done = f" ({asked - len(todo)} of them done before)" if len(todo) < asked else ""
    requests = sum(group.requests for group in groups)
    yield f"{asked} points{done}, {shards or len(groups)} engine starts, {requests} requests"
