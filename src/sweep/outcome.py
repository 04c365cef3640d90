"""What became of a point: from its answers to what is published of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import yaml
from omegaconf import OmegaConf

from sweep.costs import Costs
from sweep.engines.base import Completion
from sweep.parsing import parse
from sweep.plan import PlannedPoint
from sweep.point import Point
from sweep.redaction import redact
from sweep.request import Measured
from sweep.scoring.measures import by_measure, mean_scores, score, summarise_scores
from sweep.scoring.perturbation import nearest_token_flips
from sweep.scoring.scorers import select
from sweep.scoring.values import Floats, Scores, Summary
from sweep.tracking.records import PointRecord

# In C where it was built with LibYAML: a point's configuration is written for each point.
DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

OWN, CONTROL = "own answer", "control's answer"  # whose answer is forced

Forced = dict[tuple[int, str, int], float]  # mean log-probability per token, by prompt, whose answer and which sample
Answers = list[tuple[Completion, ...]]  # one entry for each prompt, one completion for each sample


@dataclass(frozen=True, slots=True)
class PointResult:
    """A finished point, as the user is shown it.

    Attributes:
        index: its place in the sweep.
        values: each measure's value per prompt, [prompts], NaN where it does not apply.
    """

    index: int
    point: Point
    summaries: Mapping[str, Summary] = field(default_factory=dict)
    values: Mapping[str, Floats] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a point: what is shown of it, what is published of it, and a row for each of its generations."""

    result: PointResult
    record: PointRecord
    rows: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Against:
    """What a point is compared with.

    Attributes:
        control: its control's answers.
        floor: those of the control's second run.
        forced: the log-probabilities of the control's answers under the control's prompts.
    """

    control: Answers | None = None
    floor: Answers | None = None
    forced: Forced = field(default_factory=dict)


@dataclass(slots=True)
class Progress:
    """A point in the making: what has come back so far.

    Attributes:
        measuring: each prompt's perturbation, measured meanwhile.
        shared: what the batch cost that the point shared.
        is_floor: whether it is a control's second run, whose answers are only compared with the first's.
        forced: the mean log-probability per token of an answer, by prompt, whose answer it is and which sample.
        awaited: how many of those have been asked for and not come back.
    """

    planned: PlannedPoint
    started: float
    ended: float = 0.0
    answers: dict[int, tuple[Completion, ...]] = field(default_factory=dict)
    measuring: dict[int, Future[Measured]] = field(default_factory=dict)
    is_floor: bool = False
    forced: Forced = field(default_factory=dict)
    awaited: int = 0
    costs: Costs = field(default_factory=Costs)
    shared: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    traceback: str | None = None

    @property
    def answered(self) -> bool:
        """Whether all prompts have been answered."""
        return len(self.answers) == len(self.planned.prompts)

    def in_order(self) -> Answers:
        """Return the answers in the order of the prompts."""
        return [self.answers[i] for i in range(len(self.planned.prompts))]


def conclude(progress: Progress, against: Against, tags: Mapping[str, str]) -> Outcome:
    """Score a complete or failed point.

    Args:
        progress: the point; if it failed, whatever answers are there are neither scored nor published.
        against: the control's answers to the same prompts; the control itself is compared with its second run.
        tags: what is to be known of it besides, such as versions.

    Raises:
        ScorerError: a scorer of the user's failed.
    """
    began = time.monotonic()
    planned = progress.planned
    point, prompts = planned.point, planned.prompts
    control = against.floor if point.is_control else against.control
    scoring = point.config.scoring
    scored: list[list[Scores]] = []
    if progress.error is None:
        scorers = select(scoring.quality)
        scored = [
            [
                score(answer, encoded.prompt.references, control[i][k] if control else None, scorers, scoring.logprobs)
                | _own_probability(progress, i, k)
                for k, answer in enumerate(answers)
            ]
            for i, (encoded, answers) in enumerate(zip(prompts, progress.in_order(), strict=True))
        ]
    of_prompts = _of_prompts(progress, against) if scored else []
    values = by_measure([mean_scores(samples) | own for samples, own in zip(scored, of_prompts, strict=True)])
    summaries = summarise_scores(values, scoring.confidence)
    own_costs = progress.costs.metrics() | {"cost/score_seconds": time.monotonic() - began}
    reused = {"sweep.reused": str(progress.costs.reused)} if progress.costs.reused else {}
    record = PointRecord(
        index=planned.index,
        name=point.name,
        role=point.role,
        fingerprint=planned.identity.fingerprint,
        started=progress.started,
        ended=progress.ended,
        parameters=point.parameters() | {"prompts.count": len(prompts)},
        axes=point.axes,
        summaries=summaries,
        metrics=own_costs | {f"cost/shared/{name}": value for name, value in progress.shared.items()},
        tags={**tags, **reused, "sweep.result": planned.identity.result_key},
        config=as_yaml(point),
        error=progress.error and redact(progress.error),
        traceback=progress.traceback and redact(progress.traceback),
    )
    result = PointResult(planned.index, point, summaries, values, progress.error)
    return Outcome(result, record, _rows(progress, scored, of_prompts) if scored else [])


def restore(record: PointRecord, rows: Any, point: Point | None = None) -> PointResult:
    """Return an archived point as it was when it was concluded.

    Args:
        record: what is published of it.
        rows: its generations, a pandas DataFrame.
        point: what it is of; None: as its record says.
    """
    if point is None:
        config: Any = OmegaConf.create(yaml.safe_load(record.config))
        point = Point(parse(config), tuple(record.axes), record.role == "control")
    values: dict[str, Floats] = {}
    if len(rows):
        means = rows.groupby("prompt_id", sort=False)[list(record.summaries)].mean()
        values = {name: means[name].to_numpy(float) for name in record.summaries}
    return PointResult(record.index, point, record.summaries, values, record.error)


def _own_probability(progress: Progress, prompt: int, sample: int) -> Scores:
    given = progress.forced.get((prompt, OWN, sample))
    return {} if given is None else {"divergence/answer_logprob": given}


def _of_prompts(progress: Progress, against: Against) -> list[Scores]:
    """Return what is measured once for a prompt: the perturbation, and the control's answers, over their samples."""
    scores = _perturbations(progress)
    point = progress.planned.point
    # The control's own answers are the control's answers under the control's prompt.
    kind, before = (OWN, progress.forced) if point.is_control else (CONTROL, against.forced)
    for j, own in enumerate(scores):
        samples = range(point.config.sampling.n)
        given = {k: progress.forced[j, kind, k] for k in samples if (j, kind, k) in progress.forced}
        changes = [given[k] - before[j, OWN, k] for k in given if (j, OWN, k) in before]
        if given:
            own["divergence/control_answer_logprob"] = sum(given.values()) / len(given)
        if changes:
            own["divergence/control_answer_logprob_change"] = sum(changes) / len(changes)
    return scores


def _perturbations(progress: Progress) -> list[Scores]:
    planned = progress.planned
    count = range(len(planned.prompts))
    measured = [progress.measuring[i].result() for i in count]
    scores = [dict(own.perturbation) for own in measured]
    if planned.point.config.scoring.nearest_rows:
        flips = nearest_token_flips([own.neighbours for own in measured], planned.corpus.table)
        for own, flip in zip(scores, flips, strict=True):
            own["perturbation/nearest_token_flips"] = flip
    return scores


def as_yaml(point: Point) -> str:
    """Return the point's resolved configuration, without secrets."""
    return redact(str(yaml.dump(point.config.plain(), Dumper=DUMPER, sort_keys=False, allow_unicode=True)))


def _rows(progress: Progress, scored: Sequence[Sequence[Scores]], of_prompts: Sequence[Scores]) -> list[dict[str, Any]]:
    """Return a row for each generation: `prompt` differs in every one, and `generation` comes second."""
    planned = progress.planned
    name = planned.point.name
    texts = Counter(encoded.prompt.text for encoded in planned.prompts)
    rows = []
    for i, (encoded, samples) in enumerate(zip(planned.prompts, scored, strict=True)):
        prompt, answers = encoded.prompt, progress.answers[i]
        for k, (answer, scores) in enumerate(zip(answers, samples, strict=True)):
            label = prompt.text if texts[prompt.text] == 1 else f"{prompt.text} [{prompt.id}]"
            label += f" #{k + 1}" if len(answers) > 1 else ""
            row: dict[str, Any] = {
                "prompt": label,
                "generation": answer.text,
                "prompt_id": prompt.id,
                "reference": " | ".join(prompt.references),
                "finish_reason": answer.finish_reason,
                "sample": k,
                "token_ids": list(answer.token_ids),
                "point": planned.index,
                "name": name,
                "role": planned.point.role,
            }
            row |= {f"axis/{key}": value for key, value in planned.point.axes}
            rows.append(row | scores | of_prompts[i])
    return rows
