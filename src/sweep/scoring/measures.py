"""All measures of an answer, and their summaries over the prompts of a point."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain

import numpy as np

from sweep.core.values import Floats, Scores, Summary
from sweep.engines.base import Completion
from sweep.scoring import divergence
from sweep.scoring.distributions import distances
from sweep.scoring.health import SHARES as HEALTH_SHARES
from sweep.scoring.health import YES_OR_NO as HEALTH_YES_OR_NO
from sweep.scoring.health import health
from sweep.scoring.scorers import QUALITY, Scorer
from sweep.scoring.statistics import intervals
from sweep.scoring.text import CACHE_SIZE

# Many answers of a sweep are the same.
_health = lru_cache(maxsize=CACHE_SIZE)(health)

YES_OR_NO = (
    {name for name, scorer in QUALITY.items() if scorer.yes_or_no}
    | HEALTH_YES_OR_NO
    | {"cost/truncated", "divergence/first_token_top1"}
)
# Measures in [0, 1]; their confidence intervals are clipped to that range.
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
# Endings of the names of measures that can be negative.
SIGNED = ("/snr_db", "/dose_requested", "/dose_achieved", "_logprob", "_logprob_change")


def score(
    answer: Completion,
    references: Sequence[str],
    control: Completion | None,
    scorers: Mapping[str, Scorer],
    top_k: int = 0,
) -> Scores:
    """Return all measures of one answer, without those that do not apply.

    Args:
        answer: the answer.
        references: correct answers. Without any, measures that need them are left out.
        control: the control's answer to the same prompt; None: no divergence is measured.
        scorers: quality measures by name.
        top_k: number of log-probabilities at each step; 0: none.
    """
    scores = {name: scorer(answer.text, references) for name, scorer in scorers.items()}
    if control is not None:
        answer_ids, control_ids = answer.token_ids, control.token_ids
        scores |= divergence.compare(answer_ids, control_ids)
        if top_k:
            scores |= distances(answer_ids, answer.logprobs, control_ids, control.logprobs, top_k)
    scores |= _health(answer.text, answer.token_ids)
    scores["cost/output_tokens"] = float(len(answer.token_ids))
    scores["cost/truncated"] = float(answer.finish_reason == "length")
    return {name: value for name, value in scores.items() if not math.isnan(value)}


def mean_scores(samples: Sequence[Scores]) -> Scores:
    """Return each measure's mean over the samples of one prompt; the prompt is the unit of all statistics."""
    if len(samples) == 1:
        return dict(samples[0])
    names = dict.fromkeys(chain.from_iterable(samples))
    values = {name: [sample[name] for sample in samples if name in sample] for name in names}
    return {name: sum(present) / len(present) for name, present in values.items()}


def by_measure(prompts: Sequence[Scores]) -> dict[str, Floats]:
    """Return each measure's values by prompt, (prompts,); NaN where it does not apply."""
    names = dict.fromkeys(chain.from_iterable(prompts))
    return {name: np.array([scores.get(name, math.nan) for scores in prompts]) for name in names}


def summarise_scores(values: Mapping[str, Floats], confidence: float) -> dict[str, Summary]:
    """Return each measure's mean over prompts, with its confidence interval and the number of prompts that have it."""
    summaries = {}
    for yes_or_no in (True, False):  # all measures of one kind together share their resamples
        names = [name for name in values if (name in YES_OR_NO) == yes_or_no]
        if not names:
            continue
        estimates = intervals(np.stack([values[name] for name in names]), confidence, yes_or_no=yes_or_no)
        for row, name in enumerate(names):
            low, high = limits(name)
            bounds = float(estimates.ci_low[row]), float(estimates.ci_high[row])
            if not math.isnan(bounds[0]):
                bounds = max(bounds[0], low), min(bounds[1], high)
            summaries[name] = Summary(float(estimates.mean[row]), *bounds, int(estimates.n[row]))
    return {name: summaries[name] for name in values}


def limits(name: str) -> tuple[float, float]:
    """Return a measure's lowest and highest possible value."""
    if name == "perturbation/cosine":
        return -1.0, 1.0
    if name.endswith(SIGNED):
        return -math.inf, math.inf
    if name in QUALITY:
        return QUALITY[name].limits
    if name.startswith("quality/"):  # a custom scorer, with unknown limits
        return -math.inf, math.inf
    return 0.0, 1.0 if name in SHARES else math.inf
