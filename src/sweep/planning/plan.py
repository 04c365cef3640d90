"""Plan: groups points by engine, with all inputs read and checked before an engine starts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from sweep.config.scoring_config import ScoringConfig
from sweep.engines.identity_check import IDENTITY_CHECK_TOKENS
from sweep.errors import ConfigError, TransformError
from sweep.inputs.checkpoint import Checkpoint
from sweep.inputs.config import ModelConfig, PromptsConfig
from sweep.inputs.given_answers import GivenAnswers
from sweep.inputs.input_store import InputStore
from sweep.inputs.lora import LoraAdapter
from sweep.inputs.model_files import ModelFiles
from sweep.inputs.prompt_set import PromptSet
from sweep.inputs.prompts import Prompt, summarise
from sweep.inputs.tokenization import EncodedPrompt, check_lengths
from sweep.planning import request_builder
from sweep.planning.engine_checks import adapters_of, check_sampling
from sweep.planning.given import GivenPlanner
from sweep.points.fingerprint import PointFingerprint
from sweep.points.point import EngineSpec, Point
from sweep.scoring.batch import check_measures
from sweep.scoring.scorers import select
from sweep.scoring.text import check_pattern
from sweep.storage.archive import Archived
from sweep.util.counts import counted

# Limits of the trial of transforms before the engine starts. Every point has at least one prompt tried. An error in any
# later prompt fails its point when the prompt's turn comes.
TRIED_TRANSFORMS = 4096
TRIED_SECONDS = 0.3

MAX_LISTED_POINTS = 50  # points per engine that a dry run lists


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A point to be planned.

    Attributes:
        point: the point.
        point_fingerprint: its fingerprint.
        index: position in the sweep.
        archived: result of an earlier run, if there is one.
    """

    point: Point
    point_fingerprint: PointFingerprint
    index: int
    archived: Archived | None = None

    @property
    def done(self) -> bool:
        """Whether an earlier run finished the point. It is then planned only as the control of others."""
        return self.archived is not None and self.archived.done


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPoint(Task):
    """A task with its encoded prompts.

    Attributes:
        corpus: the prompts with the model's embedding table.
        given: the answers that are scored after each prompt; empty if there are none.
    """

    corpus: PromptSet
    given: Sequence[GivenAnswers] = ()

    @property
    def runs(self) -> int:
        """How often each prompt is answered. A control is answered twice, for the noise floor."""
        if self.done:
            return 0
        return 2 if self.point.is_control and self.point.config.scoring.noise_floor else 1

    @property
    def forces_control(self) -> bool:
        """Whether the control's answers are scored after the point's transformed prompts."""
        return self.point.config.scoring.teacher_forced and not self.point.is_control and not self.done

    @property
    def prompts(self) -> list[EncodedPrompt]:
        """The point's encoded prompts."""
        return self.corpus.prompts


@dataclass(frozen=True, slots=True)
class EngineGroup:
    """The points that share an engine.

    Attributes:
        spec: the model and the engine's configuration.
        checkpoint: files of the model.
        points: the points, each control before its points.
        max_model_len: largest number of tokens in prompt and answer together.
        adapters: LoRA adapters of the points.
    """

    spec: EngineSpec
    checkpoint: Checkpoint
    points: list[PlannedPoint]
    max_model_len: int
    adapters: tuple[LoraAdapter, ...] = ()

    @property
    def files(self) -> ModelFiles:
        """The model's files, with those of the adapters."""
        return replace(self.checkpoint.files, adapters=tuple(adapter.files for adapter in self.adapters))

    def expect_unchanged(self) -> None:
        """Raise `ConfigError` if a file of the model or of an adapter has changed since it was first read."""
        self.checkpoint.expect_unchanged()
        for adapter in self.adapters:
            adapter.expect_unchanged()

    @property
    def max_prompt_len(self) -> int:
        """The most rows of a prompt that leave room for one generated token."""
        return self.max_model_len - 1

    @property
    def requests(self) -> int:
        """Number of requests, including the controls' second runs and excluding teacher forcing and given answers."""
        return sum(len(planned.prompts) * planned.runs for planned in self.points)

    @property
    def given_answers(self) -> int:
        """Number of requests that score given answers, which generate nothing."""
        return sum(len(given.sequences) for planned in self.points if not planned.done for given in planned.given)

    @property
    def prompt_tokens(self) -> int:
        """Number of prompt tokens over all requests."""
        return sum(planned.corpus.prompt_tokens * planned.runs for planned in self.points)

    @property
    def max_output_tokens(self) -> int:
        """Largest number of tokens that can be generated."""
        samplings = ((len(planned.prompts) * planned.runs, planned.point.config.sampling) for planned in self.points)
        return sum(count * sampling.n * sampling.max_tokens for count, sampling in samplings)


def make_plan(tasks: Sequence[Task], inputs: InputStore, *, dry_run: bool = False) -> list[EngineGroup]:
    """Read checkpoints, prompts and embedding tables, and check that every point can run.

    Args:
        tasks: the points.
        inputs: the store from which the tasks' fingerprints were made.
        dry_run: do not read the embedding tables, and check transforms without trying them.

    Raises:
        ConfigError: an input is wrong. The message names the key, file or point.
    """
    contact = not dry_run and not all(task.done for task in tasks)  # a finished sweep needs no judge
    for scoring in _scorings(tasks):
        select(scoring.quality)
        check_measures(scoring, contact=contact)
    groups: dict[EngineSpec, list[Task]] = {}
    for task in tasks:
        groups.setdefault(task.point.engine_spec, []).append(task)
    planned = [_plan_group(spec, members, inputs) for spec, members in groups.items()]
    for group in planned if not dry_run else ():
        _try_transforms(group)
    for group in planned:
        group.expect_unchanged()
    return planned


def _plan_group(spec: EngineSpec, tasks: Sequence[Task], inputs: InputStore) -> EngineGroup:
    checkpoint = inputs.checkpoint(spec.model)
    checkpoint.check_supported()
    adapters = adapters_of(spec.engine, [task.point.config.model for task in tasks], inputs)
    spec.engine.check_model(checkpoint.files, tasks[0].point.config.sweep.root / ".cache")
    context = spec.engine.context(checkpoint.context)
    limit = spec.engine.max_model_len or context
    if limit > context:
        raise ConfigError(
            f"engine.max_model_len: {limit} is more than the model's context of {context}. Set a smaller value or null."
        )
    uses_patterns = any("regex_match" in name for scoring in _scorings(tasks) for name in scoring.quality)
    checked: set[PromptSet] = set()

    def corpus_of(model: ModelConfig, config: PromptsConfig) -> PromptSet:
        corpus = inputs.corpus(model, config)
        if corpus not in checked:
            checked.add(corpus)
            if uses_patterns:
                check_patterns([encoded.prompt for encoded in corpus.prompts])
            check_lengths(corpus.prompts, limit)
            if len(corpus.prompts) < 2 and any("linear" in scoring.recovery for scoring in _scorings(tasks)):
                raise ConfigError(
                    "scoring.recovery: linear needs at least 2 prompts, to fit the attack on other prompts than it "
                    "attacks. Add prompts, or remove linear."
                )
        return corpus

    planned, given = [], GivenPlanner()
    for task in tasks:
        point, corpus = task.point, corpus_of(task.point.config.model, task.point.config.prompts)
        transform = point.config.transform.pinned(inputs.digest)
        if transform is not point.config.transform:
            point = replace(point, config=replace(point.config, transform=transform))
        try:
            transform.check(corpus)
        except TransformError as error:
            raise ConfigError(f"Point {point.name}: {error}.") from error
        check_sampling(point.config, spec.engine, checkpoint)
        planned.append(
            PlannedPoint(
                point=point,
                point_fingerprint=task.point_fingerprint,
                index=task.index,
                archived=task.archived,
                corpus=corpus,
                given=given.of(corpus, point.config, limit),
            )
        )
    max_model_len = spec.engine.max_model_len or min(limit, max(_max_tokens(p) for p in planned))
    return EngineGroup(spec, checkpoint, planned, max_model_len, adapters)


def _scorings(tasks: Sequence[Task]) -> list[ScoringConfig]:
    """Return the distinct scoring sections."""
    return list({task.point.config.scoring.content_digest: task.point.config.scoring for task in tasks}.values())


def check_patterns(prompts: Sequence[Prompt]) -> None:
    """Check that all references are regular expressions.

    Raises:
        ConfigError: names the prompt and the invalid pattern.
    """
    for prompt in prompts:
        for reference in prompt.references:
            try:
                check_pattern(reference)
            except ConfigError as error:
                raise ConfigError(f"Prompt {prompt.id!r}: {error}") from error


def _max_tokens(planned: PlannedPoint) -> int:
    """Return the largest number of tokens that a point's prompt and answer can have together."""
    config = planned.point.config
    # A forced answer is part of the prompt, and one more token is generated after it.
    answer = max(config.sampling.max_tokens, IDENTITY_CHECK_TOKENS) + config.scoring.teacher_forced
    given = max((answers.longest + 1 for answers in planned.given), default=0)
    return config.transform.max_rows(planned.corpus.longest) + max(answer, given)


def _try_transforms(group: EngineGroup) -> None:
    """Apply transforms to prompts on trial: all points' first prompts, then the second ones, and so on.

    Results are discarded. Keeping them would save one transform per prompt, but need up to 10 GB: with 100 tokens and
    a hidden size of 4096, 2.4 MB each with its untransformed rows.
    """
    started = time.monotonic()
    for number, (planned, encoded) in enumerate(islice(_round_robin(group.points), TRIED_TRANSFORMS)):
        if number >= len(group.points) and time.monotonic() - started > TRIED_SECONDS:
            break
        try:
            request_builder.build(None, planned.point.config, encoded, planned.corpus, group.max_prompt_len)
        except TransformError as error:
            raise ConfigError(f"Point {planned.point.name}, prompt {encoded.prompt.id!r}: {error}.") from error


def _round_robin(points: Sequence[PlannedPoint]) -> Iterator[tuple[PlannedPoint, EncodedPrompt]]:
    for i in range(max(len(planned.prompts) for planned in points)):
        for planned in points:
            if i < len(planned.prompts):
                yield planned, planned.prompts[i]


def describe_prompts(groups: Sequence[EngineGroup]) -> list[str]:
    """Return one line per prompts configuration that summarises what was read. Equal lines appear once."""
    lines = dict[str, None]()
    for corpus, config in {p.corpus: p.point.config.prompts for group in groups for p in group.points}.items():
        prompts = [encoded.prompt for encoded in corpus.prompts]
        lines[str(summarise(prompts, config))] = None
    return list(lines)


def describe(groups: Sequence[EngineGroup], count: int, shards: int | None = None) -> Iterator[str]:
    """Yield the lines of a dry run: engines, their first `MAX_LISTED_POINTS` points, and totals.

    Args:
        groups: the plan.
        count: number of points of the sweep, controls and finished points included.
        shards: number of shards that the points would be split into, or None for a run in one process.
    """
    for number, group in enumerate(groups, 1):
        engine, model = group.spec.engine.name, group.spec.model
        yield (
            f"engine {number}: {engine}, {model.id} ({group.checkpoint.resolved_dtype}), "
            f"{counted(len(group.points), 'point')}, {counted(group.requests, 'request')}, "
            f"{counted(group.prompt_tokens, 'prompt token')}, up to {counted(group.max_output_tokens, 'output token')}"
            + (f", {counted(group.given_answers, 'given answer')}" if group.given_answers else "")
            + (f", {counted(len(group.adapters), 'LoRA adapter')}" if group.adapters else "")
        )
        for planned in group.points[:MAX_LISTED_POINTS]:
            name, fingerprint = planned.point.name, planned.point_fingerprint.fingerprint[:12]
            requests = counted(len(planned.prompts), "request")
            tokens = counted(planned.corpus.prompt_tokens, "prompt token")
            yield f"  {name}: {requests}, {tokens}, fingerprint {fingerprint}"
        if len(group.points) > MAX_LISTED_POINTS:
            yield f"  … and {len(group.points) - MAX_LISTED_POINTS} more"
    todo = [planned for group in groups for planned in group.points if not planned.done]
    done = f" ({count - len(todo)} of them already done)" if len(todo) < count else ""
    starts = counted(shards or len(groups), "engine start")
    yield f"{counted(count, 'point')}{done}, {starts}, {counted(sum(group.requests for group in groups), 'request')}"
