"""Score a finished point: scores, summaries and the table of its generations."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import yaml
from omegaconf import OmegaConf

from sweep.config.loader import parse
from sweep.config.scoring_config import ScoringConfig
from sweep.core.records import PointRecord
from sweep.core.values import Floats, Scores
from sweep.engines.base import Completion
from sweep.inputs.prompt_set import PromptSet
from sweep.planning.results import CONTROL, GIVEN, OWN, Finished, PointResult, as_yaml
from sweep.points.point import Point
from sweep.scoring.batch import Item, MeasureSettings, score_batch, select_measures
from sweep.scoring.forced import answer_scores, control_scores
from sweep.scoring.likelihood import answer_logprobs, likelihood_scores
from sweep.scoring.measures import by_measure, mean_scores, score, summarise_scores
from sweep.scoring.perturbation import FLIPS, nearest_token_flips
from sweep.scoring.reasoning import without_reasoning
from sweep.scoring.recovery import recovery
from sweep.scoring.registry import spec
from sweep.scoring.samples import pass_sizes, sample_scores
from sweep.scoring.scorers import select
from sweep.util.redaction import redact

Answers = Sequence[Sequence[Completion]]


@dataclass(frozen=True, slots=True)
class ScoredPoint:
    """A scored point.

    Attributes:
        record: the data to publish.
        values: see `PointResult`.
        rows: one row per generation.
    """

    record: PointRecord
    values: Mapping[str, Floats]
    rows: list[dict[str, Any]]


def score_point(finished: Finished, corpus: PromptSet, *, on_gpu: bool = False) -> ScoredPoint:
    """Score a finished point. The record of a failed point contains its error and no scores.

    Args:
        finished: the point and its answers.
        corpus: the point's prompts and the model's embedding table.
        on_gpu: whether the search for nearest tokens may use a GPU.

    Raises:
        ScorerError: a user's scorer failed.
    """
    began = time.monotonic()
    point, control = finished.point, finished.control
    scoring = point.config.scoring
    scored: list[list[Scores]] = []
    prompt_scores: list[Scores] = []
    if finished.error is None:
        read_answers = _without_reasoning(finished.answers, corpus, scoring)
        scorers = select(scoring.quality)
        scored = [
            [
                score(
                    answer,
                    encoded.prompt.references,
                    control.answers[i][k] if control.answers else None,
                    scorers,
                    scoring.logprobs,
                    read_answers[i][k].text,
                )
                | _answer_logprob(finished, i, k)
                for k, answer in enumerate(answers)
            ]
            for i, (encoded, answers) in enumerate(zip(corpus.prompts, finished.answers, strict=True))
        ]
        if scoring.measures:
            _add_batch_scores(scored, finished, corpus, read_answers)
        prompt_scores = _prompt_scores(finished, corpus, on_gpu)
        sizes, correctness = pass_sizes(point.config.sampling.n, scoring.pass_at), scoring.correctness
        for once, answers, samples in zip(prompt_scores, read_answers, scored, strict=True):
            once |= sample_scores([answer.text for answer in answers], samples, correctness, sizes)
    values = by_measure([mean_scores(samples) | once for samples, once in zip(scored, prompt_scores, strict=True)])
    summaries = summarise_scores(values, scoring.confidence)
    costs = finished.costs.metrics() | {"cost/score_seconds": time.monotonic() - began}
    reused = {"sweep.reused": str(finished.costs.reused)} if finished.costs.reused else {}
    record = PointRecord(
        index=finished.index,
        name=point.name,
        role=point.role,
        fingerprint=finished.point_fingerprint.fingerprint,
        started=finished.started,
        ended=finished.ended,
        parameters=point.parameters() | {"prompts.count": len(corpus.prompts)},
        axes=point.axes,
        summaries=summaries,
        metrics=costs | {f"cost/shared/{name}": value for name, value in finished.shared.items()},
        tags={**finished.tags, **reused, "sweep.result": finished.point_fingerprint.result_key},
        config=as_yaml(point),
        error=finished.error and redact(finished.error),
        traceback=finished.traceback and redact(finished.traceback),
    )
    return ScoredPoint(record, values, _rows(finished, corpus, scored, prompt_scores) if scored else [])


def restore(record: PointRecord, rows: Any, point: Point | None = None) -> PointResult:
    """Return the result of an archived point, as it was after scoring.

    Args:
        record: the published data.
        rows: pandas DataFrame of the point's generations.
        point: the point; None: create it from the record.
    """
    if point is None:
        config: Any = OmegaConf.create(yaml.safe_load(record.config))
        point = Point(parse(config), tuple(record.axes), record.role == "control")
    values: dict[str, Floats] = {}
    prompt_ids: tuple[str, ...] = ()
    if len(rows):
        prompt_ids = tuple(rows["prompt_id"].drop_duplicates())
        prompts = rows.groupby("prompt_id", sort=False)
        means = prompts[list(record.summaries)].mean()
        others = {name: how for name in record.summaries if (how := spec(name).aggregate) != "mean"}
        values = {name: means[name].to_numpy(float) for name in record.summaries}
        values |= {name: prompts[name].agg(how).to_numpy(float) for name, how in others.items()}
    return PointResult(record.index, point, record.summaries, values, record.error, prompt_ids)


def _without_reasoning(answers: Answers, corpus: PromptSet, scoring: ScoringConfig) -> Answers:
    """Return the answers to each prompt as quality measures see them."""
    if not scoring.strip_reasoning or not answers:
        return answers
    return [
        [without_reasoning(answer, scoring.reasoning_tags, encoded.layout.text) for answer in samples]
        for encoded, samples in zip(corpus.prompts, answers, strict=True)
    ]


def _add_batch_scores(
    scored: Sequence[Sequence[Scores]], finished: Finished, corpus: PromptSet, read_answers: Answers
) -> None:
    """Add the scores of `scoring.measures`, which see all answers at once."""
    point = finished.point
    control = _without_reasoning(finished.control.answers or [], corpus, point.config.scoring)
    metadata = {"name": point.name, "role": point.role, **dict(point.axes)}
    items = [
        Item(encoded.prompt, encoded.layout.text, answer, control[i][k] if control else None, k, metadata)
        for i, (encoded, answers) in enumerate(zip(corpus.prompts, read_answers, strict=True))
        for k, answer in enumerate(answers)
    ]
    settings = MeasureSettings(point.config.scoring, point.config.sweep.root / ".cache")
    added = score_batch(select_measures(point.config.scoring.measures), items, settings)
    for scores, more in zip(chain.from_iterable(scored), added, strict=True):
        scores |= more


def _answer_logprob(finished: Finished, prompt: int, sample: int) -> Scores:
    return answer_scores(finished.forced.get((prompt, OWN, sample)))


def _prompt_scores(finished: Finished, corpus: PromptSet, on_gpu: bool) -> list[Scores]:
    """Return scores per prompt: the perturbation, and log-probabilities of the control's and of given answers."""
    scores = _perturbations(finished, corpus, on_gpu)
    point, forced = finished.point, finished.forced
    # For the control, the control's answers are its own answers.
    kind, reference = (OWN, forced) if point.is_control else (CONTROL, finished.control.forced)
    for j, prompt_scores in enumerate(scores):
        samples = range(point.config.sampling.n)
        logprobs = {k: forced[j, kind, k] for k in samples if (j, kind, k) in forced}
        changes = [logprobs[k] - reference[j, OWN, k] for k in logprobs if (j, OWN, k) in reference]
        prompt_scores |= control_scores(logprobs.values(), changes)
        if finished.given:
            prompt_scores |= likelihood_scores(finished.given[j], _given_logprobs(finished, j))
    return scores


def _given_logprobs(finished: Finished, prompt: int) -> list[float]:
    """Return the mean log-probability per token of each of a prompt's `GivenAnswers.sequences`."""
    return [finished.forced[prompt, GIVEN, k] for k in range(len(finished.given[prompt].sequences))]


def _perturbations(finished: Finished, corpus: PromptSet, on_gpu: bool) -> list[Scores]:
    scores = [dict(measured.perturbation) for measured in finished.measured]
    if finished.point.config.scoring.nearest_rows:
        flips = nearest_token_flips([m.neighbours for m in finished.measured], corpus.table, on_gpu=on_gpu)
        for prompt_scores, flip in zip(scores, flips, strict=True):
            prompt_scores[FLIPS] = flip
    exposed = [measured.exposed for measured in finished.measured if measured.exposed is not None]
    if exposed:
        controls, attacks = finished.point.is_control, finished.point.config.scoring.recovery
        recovered = recovery(exposed, corpus.table, attacks, controls=controls, on_gpu=on_gpu)
        for prompt_scores, shares in zip(scores, recovered, strict=True):
            prompt_scores |= shares
    return scores


def _rows(
    finished: Finished, corpus: PromptSet, scored: Sequence[Sequence[Scores]], prompt_scores: Sequence[Scores]
) -> list[dict[str, Any]]:
    """Return one row per generation. The column `prompt` is unique, and `generation` is the second column."""
    name, role = finished.point.name, finished.point.role
    spans = tuple(stage.span for stage in finished.point.config.transform.stages if stage.transform.name != "identity")
    texts = Counter(encoded.prompt.text for encoded in corpus.prompts)
    rows = []
    for j, encoded in enumerate(corpus.prompts):
        answers, samples, once = finished.answers[j], scored[j], prompt_scores[j]
        prompt, digest = encoded.prompt, corpus.digests[j]
        given = answer_logprobs(finished.given[j], _given_logprobs(finished, j)) if finished.given else None
        for k, (answer, scores) in enumerate(zip(answers, samples, strict=True)):
            label = prompt.text if texts[prompt.text] == 1 else f"{prompt.text} [{prompt.id}]"
            label += f" #{k + 1}" if len(answers) > 1 else ""
            row: dict[str, Any] = {
                "prompt": label,
                "generation": answer.text,
                "prompt_id": prompt.id,
                "prompt_digest": digest,
                "reference": " | ".join(prompt.references),
                "finish_reason": answer.finish_reason,
                "sample": k,
                "token_ids": list(answer.token_ids),
                "point": finished.index,
                "name": name,
                "role": role,
            }
            if k == 0:  # the report shows them once a prompt
                is_control = finished.point.is_control
                row["rendered_prompt"] = encoded.layout.text if is_control else None
                row["span"] = None if is_control else corpus.covered(spans, j)
            row |= {f"axis/{key}": value for key, value in finished.point.axes}
            if given is not None:
                row["given_logprobs"] = json.dumps(given, ensure_ascii=False)
            rows.append(row | scores | once)
    return rows
