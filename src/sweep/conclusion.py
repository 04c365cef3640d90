"""From a point's answers to what is published of it: scored, summarised, and laid out in rows."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from omegaconf import OmegaConf

from sweep.outcome import CONTROL, OWN, Against, PointResult, Progress, as_yaml
from sweep.parsing import parse
from sweep.point import Point
from sweep.redaction import redact
from sweep.scoring.measures import by_measure, mean_scores, score, summarise_scores
from sweep.scoring.perturbation import nearest_token_flips
from sweep.scoring.scorers import select
from sweep.scoring.values import Floats, Scores
from sweep.tracking.records import PointRecord


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a point: what is shown of it, what is published of it, and a row for each of its generations."""

    result: PointResult
    record: PointRecord
    rows: list[dict[str, Any]]


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
