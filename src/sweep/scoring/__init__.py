"""Measures of a point's generations.  This package knows text, token ids and numbers; not points, engines or MLflow.

Metric names are `group/measure`; the groups are `quality`, `divergence`, `perturbation` and `cost`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sweep.engines.base import Completion
from sweep.scoring import divergence, text
from sweep.scoring.statistics import Summary, summarise

Scores = dict[str, float]

# What an answer's measure can be; intervals do not reach beyond.
YES_OR_NO = frozenset({"quality/exact_match", "quality/contains", "cost/truncated"})
SHARES = YES_OR_NO | {
    "divergence/token_agreement",
    "divergence/edit_distance",
    "perturbation/changed",
    "perturbation/nearest_token_flips",
    "perturbation/rows_kept",
}
# Measures that can be negative, by how they end.
SIGNED = ("/snr_db", "/dose_requested", "/dose_achieved")


def score(answer: Completion, references: Sequence[str], control: Completion | None) -> Scores:
    """Measure one answer: against the references, if there are any, and against the control's, if it is given."""
    scores: Scores = {}
    if references:
        scores["quality/exact_match"] = text.exact_match(answer.text, references)
        scores["quality/contains"] = text.contains(answer.text, references)
    if control is not None:
        scores["divergence/first_divergence"] = divergence.first_divergence(answer.token_ids, control.token_ids)
        scores["divergence/token_agreement"] = divergence.token_agreement(answer.token_ids, control.token_ids)
        scores["divergence/edit_distance"] = divergence.edit_distance(answer.token_ids, control.token_ids)
    scores["cost/output_tokens"] = float(len(answer.token_ids))
    scores["cost/truncated"] = float(answer.finish_reason == "length")
    return scores


def mean_scores(samples: Sequence[Scores]) -> Scores:
    """Return the mean of each measure over the samples of one prompt, which is the unit of all statistics."""
    return {name: sum(sample[name] for sample in samples) / len(samples) for name in samples[0]}


def summarise_scores(prompts: Sequence[Scores], confidence: float) -> dict[str, Summary]:
    """Summarise each measure over the prompts that have it."""
    summaries = {}
    for name in dict.fromkeys(name for scores in prompts for name in scores):
        values = [scores[name] for scores in prompts if name in scores]
        summaries[name] = summarise(values, confidence, limits(name), name in YES_OR_NO)
    return summaries


def limits(name: str) -> tuple[float, float]:
    """Return the least and the greatest value that a measure can have."""
    if name == "perturbation/cosine":
        return -1.0, 1.0
    if name.endswith(SIGNED):
        return -math.inf, math.inf
    return 0.0, 1.0 if name in SHARES else math.inf
