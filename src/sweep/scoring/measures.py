"""All that is measured of one answer, and of a point whose answers are all there."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain

import numpy as np

from sweep.engines.base import Completion
from sweep.scoring import divergence
from sweep.scoring.distributions import distances
from sweep.scoring.health import SHARES as HEALTH_SHARES
from sweep.scoring.health import YES_OR_NO as HEALTH_YES_OR_NO
from sweep.scoring.health import health
from sweep.scoring.scorers import QUALITY, Scorer
from sweep.scoring.statistics import intervals
from sweep.scoring.text import KEPT
from sweep.scoring.values import Floats, Scores, Summary

# Many of a sweep's answers are the same.
_health = lru_cache(maxsize=KEPT)(health)

YES_OR_NO = (
    {name for name, scorer in QUALITY.items() if scorer.yes_or_no}
    | HEALTH_YES_OR_NO
    | {"cost/truncated", "divergence/first_token_top1"}
)
# What an answer's measure can be; intervals do not reach beyond.
SHARES = (
    YES_OR_NO
    | HEALTH_SHARES
    | {
        "divergence/token_agreement",
        "divergence/prefix_agreement",
        "divergence/edit_distance",
        "divergence/prefix_top1",
        "perturbation/changed",
        "perturbation/nearest_token_flips",
        "perturbation/rows_kept",
    }
)
# Measures that can be negative, by how they end.
SIGNED = ("/snr_db", "/dose_requested", "/dose_achieved", "_logprob", "_logprob_change")


def score(
    answer: Completion,
    references: Sequence[str],
    control: Completion | None,
    scorers: Mapping[str, Scorer],
    top_k: int = 0,
) -> Scores:
    """Measure one answer.

    Args:
        references: what counts as right; without them the measures that need them are left out.
        control: the answer that it is compared with; None: it is not.
        scorers: measures of quality, by name.
        top_k: how many log-probabilities there are at each step.
    """
    scores = {name: scorer(answer.text, references) for name, scorer in scorers.items()}
    if control is not None:
        own, other = answer.token_ids, control.token_ids
        scores |= divergence.compare(own, other)
        if top_k:
            scores |= distances(own, answer.logprobs, other, control.logprobs, top_k)
    scores |= _health(answer.text, answer.token_ids)
    scores["cost/output_tokens"] = float(len(answer.token_ids))
    scores["cost/truncated"] = float(answer.finish_reason == "length")
    return {name: value for name, value in scores.items() if not math.isnan(value)}


def mean_scores(samples: Sequence[Scores]) -> Scores:
    """Return the mean of each measure over the samples of one prompt, which is the unit of all statistics."""
    if len(samples) == 1:
        return dict(samples[0])
    names = dict.fromkeys(chain.from_iterable(samples))
    values = {name: [sample[name] for sample in samples if name in sample] for name in names}
    return {name: sum(own) / len(own) for name, own in values.items()}


def by_measure(prompts: Sequence[Scores]) -> dict[str, Floats]:
    """Return for each measure one value per prompt, [prompts], NaN where it does not apply."""
    names = dict.fromkeys(chain.from_iterable(prompts))
    return {name: np.array([scores.get(name, math.nan) for scores in prompts]) for name in names}


def summarise_scores(values: Mapping[str, Floats], confidence: float) -> dict[str, Summary]:
    """Summarise each measure over the prompts that have it."""
    summaries = {}
    for yes_or_no in (True, False):  # all measures of a kind at once, which share their resamples
        names = [name for name in values if (name in YES_OR_NO) == yes_or_no]
        if not names:
            continue
        found = intervals(np.stack([values[name] for name in names]), confidence, yes_or_no=yes_or_no)
        for row, name in enumerate(names):
            low, high = limits(name)
            bounds = float(found.ci_low[row]), float(found.ci_high[row])
            if not math.isnan(bounds[0]):
                bounds = max(bounds[0], low), min(bounds[1], high)
            summaries[name] = Summary(float(found.mean[row]), *bounds, int(found.n[row]))
    return {name: summaries[name] for name in values}


def limits(name: str) -> tuple[float, float]:
    """Return the least and the greatest value that a measure can have."""
    if name == "perturbation/cosine":
        return -1.0, 1.0
    if name.endswith(SIGNED):
        return -math.inf, math.inf
    if name in QUALITY:
        return QUALITY[name].limits
    if name.startswith("quality/"):  # the user's own, of which nothing is known
        return -math.inf, math.inf
    return 0.0, 1.0 if name in SHARES else math.inf
