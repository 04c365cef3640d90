"""Measures of teacher forcing: log-probabilities of given answers, in nats per token."""

from __future__ import annotations

import math
from collections.abc import Collection

from sweep.core.values import Scores
from sweep.scoring.registry import Direction, MeasureSpec, Per, Shown

ANSWER = "divergence/answer_logprob"
CONTROL_ANSWER = "divergence/control_answer_logprob"
CHANGE = "divergence/control_answer_logprob_change"


def answer_scores(logprob: float | None) -> Scores:
    """Return the measures of a point's own answer under the clean prompt.

    Args:
        logprob: its mean log-probability per token; None: it was not measured. Infinite for an answer of probability 0,
            which has no finite mean over prompts and is left out.
    """
    return {} if logprob is None else _finite({ANSWER: logprob})


def control_scores(logprobs: Collection[float], changes: Collection[float]) -> Scores:
    """Return the measures of the control's answers to one prompt, averaged over samples; without infinite ones.

    Args:
        logprobs: mean log-probability per token of each answer under the transformed prompt.
        changes: the same, less that under the clean prompt.
    """
    scores = {CONTROL_ANSWER: sum(logprobs) / len(logprobs)} if logprobs else {}
    return _finite(scores | ({CHANGE: sum(changes) / len(changes)} if changes else {}))


def _finite(scores: Scores) -> Scores:
    return {name: value for name, value in scores.items() if math.isfinite(value)}


def _logprob(
    name: str, about: str, per: Per, direction: Direction = "higher", high: float = 0.0, **shown: int
) -> MeasureSpec:
    about = f"mean log-probability per token: {about}"
    limits = (-math.inf, high)
    return MeasureSpec(name, about, per, limits, "nats", direction, shown=Shown(**shown))


MEASURES = (
    _logprob(CONTROL_ANSWER, "control's answer under the transformed prompt", "prompt"),
    _logprob(
        CHANGE,
        "the same, less that under the clean prompt",
        "prompt",
        "zero",
        math.inf,
        report=40,
        description=30,
    ),
    _logprob(ANSWER, "the point's answer under the clean prompt", "pair"),
)
