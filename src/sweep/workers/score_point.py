"""From a point's answers to what is published of it: scored, summarised, and laid out in rows."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from omegaconf import OmegaConf

from sweep.inputs.corpus import Corpus
from sweep.outcome import CONTROL, OWN, Finished, PointResult, as_yaml
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
    """What became of a point.

    Attributes:
        record: what is published of it.
        values: as of `PointResult`.
        rows: one for each of its generations.
    """

    record: PointRecord
    values: Mapping[str, Floats]
    rows: list[dict[str, Any]]


def conclude(finished: Finished, corpus: Corpus) -> Outcome:
    """Score a finished point; of one that failed, say so.

    Args:
        corpus: its prompts and its model's table.

    Raises:
        ScorerError: a scorer of the user's failed.
    """
    began = time.monotonic()
    point, against = finished.point, finished.against
    scoring = point.config.scoring
    scored: list[list[Scores]] = []
    of_prompts: list[Scores] = []
    if finished.error is None:
        scorers = select(scoring.quality)
        scored = [
            [
                score(
                    answer,
                    encoded.prompt.references,
                    against.answers[i][k] if against.answers else None,
                    scorers,
                    scoring.logprobs,
                )
                | _own_probability(finished, i, k)
                for k, answer in enumerate(answers)
            ]
            for i, (encoded, answers) in enumerate(zip(corpus.prompts, finished.answers, strict=True))
        ]
        of_prompts = _of_prompts(finished, corpus)
    values = by_measure([mean_scores(samples) | own for samples, own in zip(scored, of_prompts, strict=True)])
    summaries = summarise_scores(values, scoring.confidence)
    own_costs = finished.costs.metrics() | {"cost/score_seconds": time.monotonic() - began}
    reused = {"sweep.reused": str(finished.costs.reused)} if finished.costs.reused else {}
    record = PointRecord(
        index=finished.index,
        name=point.name,
        role=point.role,
        fingerprint=finished.identity.fingerprint,
        started=finished.started,
        ended=finished.ended,
        parameters=point.parameters() | {"prompts.count": len(corpus.prompts)},
        axes=point.axes,
        summaries=summaries,
        metrics=own_costs | {f"cost/shared/{name}": value for name, value in finished.shared.items()},
        tags={**finished.tags, **reused, "sweep.result": finished.identity.result_key},
        config=as_yaml(point),
        error=finished.error and redact(finished.error),
        traceback=finished.traceback and redact(finished.traceback),
    )
    return Outcome(record, values, _rows(finished, corpus, scored, of_prompts) if scored else [])


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


def _own_probability(finished: Finished, prompt: int, sample: int) -> Scores:
    given = finished.forced.get((prompt, OWN, sample))
    return {} if given is None else {"divergence/answer_logprob": given}


def _of_prompts(finished: Finished, corpus: Corpus) -> list[Scores]:
    """Return what is measured once for a prompt: the perturbation, and the control's answers, over their samples."""
    scores = _perturbations(finished, corpus)
    point, forced = finished.point, finished.forced
    # The control's own answers are the control's answers under the control's prompt.
    kind, before = (OWN, forced) if point.is_control else (CONTROL, finished.against.forced)
    for j, own in enumerate(scores):
        samples = range(point.config.sampling.n)
        given = {k: forced[j, kind, k] for k in samples if (j, kind, k) in forced}
        changes = [given[k] - before[j, OWN, k] for k in given if (j, OWN, k) in before]
        if given:
            own["divergence/control_answer_logprob"] = sum(given.values()) / len(given)
        if changes:
            own["divergence/control_answer_logprob_change"] = sum(changes) / len(changes)
    return scores


def _perturbations(finished: Finished, corpus: Corpus) -> list[Scores]:
    scores = [dict(own.perturbation) for own in finished.measured]
    if finished.point.config.scoring.nearest_rows:
        flips = nearest_token_flips([own.neighbours for own in finished.measured], corpus.table)
        for own, flip in zip(scores, flips, strict=True):
            own["perturbation/nearest_token_flips"] = flip
    return scores


def _rows(
    finished: Finished, corpus: Corpus, scored: Sequence[Sequence[Scores]], of_prompts: Sequence[Scores]
) -> list[dict[str, Any]]:
    """Return a row for each generation: `prompt` differs in every one, and `generation` comes second."""
    name, role = finished.point.name, finished.point.role
    texts = Counter(encoded.prompt.text for encoded in corpus.prompts)
    rows = []
    for encoded, answers, samples, own in zip(corpus.prompts, finished.answers, scored, of_prompts, strict=True):
        prompt = encoded.prompt
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
                "point": finished.index,
                "name": name,
                "role": role,
            }
            row |= {f"axis/{key}": value for key, value in finished.point.axes}
            rows.append(row | scores | own)
    return rows
