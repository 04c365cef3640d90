"""What became of a point: from its answers to what is published of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import yaml

from sweep.encoding import EncodedPrompt
from sweep.engines.base import Completion
from sweep.plan import PlannedPoint
from sweep.point import Point
from sweep.scoring import Scores, mean_scores, score, summarise_scores
from sweep.scoring.perturbation import Neighbours, nearest_token_flips
from sweep.scoring.statistics import Summary
from sweep.tracking import PointRecord
from sweep.transforms import Pipeline

Answers = list[tuple[Completion, ...]]  # one entry for each prompt, one completion for each sample


@dataclass(frozen=True, slots=True)
class PointResult:
    """A finished point, as the user is shown it; `index` is its place in the sweep."""

    index: int
    point: Point
    summaries: dict[str, Summary] = field(default_factory=dict)
    error: str | None = None


@dataclass(slots=True)
class Progress:
    """A point in the making, the `index`-th of its sweep: what has come back so far."""

    index: int
    planned: PlannedPoint
    started: float
    ended: float = 0.0
    answers: dict[int, tuple[Completion, ...]] = field(default_factory=dict)
    perturbations: dict[int, Scores] = field(default_factory=dict)
    neighbours: dict[int, Neighbours] = field(default_factory=dict)
    error: str | None = None

    @property
    def complete(self) -> bool:
        """Whether all prompts have been answered."""
        return len(self.answers) == len(self.planned.prompts)

    def in_order(self) -> Answers:
        """Return the answers in the order of the prompts."""
        return [self.answers[i] for i in range(len(self.planned.prompts))]


def conclude(progress: Progress, control: Answers | None, tokens_per_second: float) -> tuple[PointResult, PointRecord]:
    """Score a complete or failed point.

    Args:
        progress: the point; if it failed, whatever answers are there are neither scored nor published.
        control: the control's answers to the same prompts; None for the control itself.
        tokens_per_second: of the whole batch, which the point shared.
    """
    planned = progress.planned
    point, prompts = planned.point, planned.prompts
    scored: list[list[Scores]] = []
    if progress.error is None:
        scored = [
            [
                score(answer, encoded.prompt.references, control[i][k] if control else None)
                for k, answer in enumerate(answers)
            ]
            for i, (encoded, answers) in enumerate(zip(prompts, progress.in_order(), strict=True))
        ]
    perturbations = _perturbations(progress) if scored else []
    rows = [mean_scores(samples) | own for samples, own in zip(scored, perturbations, strict=True)]
    summaries = summarise_scores(rows, point.config.scoring.confidence)
    columns, table = _table(prompts, progress, scored) if scored else (["prompt", "generation"], [])
    record = PointRecord(
        name=point.name,
        role=point.role,
        fingerprint=planned.fingerprint,
        started=progress.started,
        ended=progress.ended,
        parameters=point.parameters() | {"prompts.count": len(prompts)},
        axes=point.axes,
        summaries=summaries,
        metrics={"sweep/index": float(progress.index), "cost/batch_tokens_per_second": tokens_per_second},
        columns=columns,
        rows=table,
        config=as_yaml(point),
        error=progress.error,
    )
    return PointResult(progress.index, point, summaries, progress.error), record


def _perturbations(progress: Progress) -> list[Scores]:
    planned = progress.planned
    count = range(len(planned.prompts))
    measured = [progress.perturbations[i] for i in count]
    if not planned.point.config.scoring.nearest_rows:
        return measured
    flips = nearest_token_flips([progress.neighbours[i] for i in count], planned.corpus.table)
    return [own | {"perturbation/nearest_token_flips": flip} for own, flip in zip(measured, flips, strict=True)]


def as_yaml(point: Point) -> str:
    """Return the point's resolved configuration."""
    pipeline = point.config.transform
    config = asdict(replace(point.config, transform=Pipeline(())))
    config["transform"] = pipeline.config()
    config["engine"] = {"name": point.config.engine.name, **config["engine"]}
    config["plugins"] = list(config["plugins"])
    return str(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def _table(
    prompts: Sequence[EncodedPrompt], progress: Progress, scored: Sequence[Sequence[Scores]]
) -> tuple[list[str], list[list[Any]]]:
    """Return the columns and rows of the table of generations, one row for each sample."""
    texts = Counter(encoded.prompt.text for encoded in prompts)
    measures = list(dict.fromkeys(name for samples in scored for sample in samples for name in sample))
    columns = ["prompt", "generation", "prompt_id", "reference", "finish_reason", *measures]
    rows = []
    for i, (encoded, samples) in enumerate(zip(prompts, scored, strict=True)):
        prompt, answers = encoded.prompt, progress.answers[i]
        for k, (answer, scores) in enumerate(zip(answers, samples, strict=True)):
            label = prompt.text if texts[prompt.text] == 1 else f"{prompt.text} [{prompt.id}]"
            label += f" #{k + 1}" if len(answers) > 1 else ""
            reference = " | ".join(prompt.references)
            values = [scores.get(measure) for measure in measures]
            rows.append([label, answer.text, prompt.id, reference, answer.finish_reason, *values])
    return columns, rows
