"""Scores of an answer in all measures, and their summaries over the prompts of a point."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import chain

import numpy as np

from sweep.core.values import Floats, Scores, Summary
from sweep.engines.base import Completion
from sweep.scoring.registry import computations, spec
from sweep.scoring.scorers import Scorer
from sweep.scoring.statistics import intervals

# How the samples of a prompt make one value.
AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": lambda samples: sum(samples) / len(samples),
    "min": min,
    "max": max,
}


def score(
    answer: Completion,
    references: Sequence[str],
    control: Completion | None,
    scorers: Mapping[str, Scorer],
    top_k: int = 0,
    text: str | None = None,
) -> Scores:
    """Return all measures of one answer, without those that do not apply.

    Args:
        answer: the answer.
        references: correct answers. Without any, measures that need them are left out.
        control: the control's answer to the same prompt; None: no divergence is measured.
        scorers: quality measures by name.
        top_k: number of log-probabilities at each step; 0: none.
        text: what quality measures see instead of the answer's text, such as the text without reasoning.
    """
    scores = {name: scorer(answer.text if text is None else text, references) for name, scorer in scorers.items()}
    if control is not None:
        for compare in computations("pair"):
            scores |= compare(answer, control, top_k)
    for compute in computations("completion"):
        scores |= compute(answer)
    return {name: value for name, value in scores.items() if not math.isnan(value)}


def mean_scores(samples: Sequence[Scores]) -> Scores:
    """Return each measure's value over the samples of one prompt; the prompt is the unit of all statistics."""
    if len(samples) == 1:
        return dict(samples[0])
    names = dict.fromkeys(chain.from_iterable(samples))
    values = {name: [sample[name] for sample in samples if name in sample] for name in names}
    return {name: AGGREGATES[spec(name).aggregate](present) for name, present in values.items()}


def by_measure(prompts: Sequence[Scores]) -> dict[str, Floats]:
    """Return each measure's values by prompt, (prompts,); NaN where it does not apply."""
    names = dict.fromkeys(chain.from_iterable(prompts))
    return {name: np.array([scores.get(name, math.nan) for scores in prompts]) for name in names}


def _with_unseen(bounds: tuple[float, float], n: int, confidence: float) -> tuple[float, float]:
    """Return the bounds of a mean share; if all values are 0, or all 1, with an exact bound on the other side.

    A mean of values in [0, 1] above 1 - α^(1/n) gives n zeros with a probability of less than α.
    """
    unseen = 1 - ((1 - confidence) / 2) ** (1 / n) if n else math.nan
    if bounds == (0.0, 0.0):
        return 0.0, unseen
    return (1 - unseen, 1.0) if bounds == (1.0, 1.0) else bounds


def summarise_scores(values: Mapping[str, Floats], confidence: float) -> dict[str, Summary]:
    """Return each measure's mean over prompts, with its confidence interval and the number of prompts that have it."""
    summaries = {}
    for yes_or_no in (True, False):  # all measures of one kind together share their resamples
        names = [name for name in values if spec(name).may_be_yes_or_no == yes_or_no]
        if not names:
            continue
        estimates = intervals(np.stack([values[name] for name in names]), confidence, yes_or_no=yes_or_no)
        for row, name in enumerate(names):
            low, high = spec(name).range
            bounds = float(estimates.ci_low[row]), float(estimates.ci_high[row])
            if spec(name).interval == "share":
                bounds = _with_unseen(bounds, int(estimates.n[row]), confidence)
            if not math.isnan(bounds[0]):
                bounds = max(bounds[0], low), min(bounds[1], high)
            summaries[name] = Summary(float(estimates.mean[row]), *bounds, int(estimates.n[row]))
    return {name: summaries[name] for name in values}
