"""Measures of given answers: log-probabilities of references and choices under a point's prompt, in nats."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sweep.core.values import Scores
from sweep.inputs.given_answers import GivenAnswer, GivenAnswers
from sweep.scoring.registry import Direction, Interval, MeasureSpec, Shown

LM_EVAL = "lm-evaluation-harness 0.4"


def likelihood_scores(given: GivenAnswers, logprobs: Sequence[float]) -> Scores:
    """Return the measures of a prompt's given answers, without those that do not apply or are infinite.

    An answer of probability 0 has no finite log-probability, and no mean over prompts could include it.

    Args:
        given: the answers.
        logprobs: mean log-probability per token of each of `given.sequences`.
    """
    scores = _reference_scores(given.references, logprobs) | _choice_scores(given, logprobs)
    return {f"likelihood/{name}": value for name, value in scores.items() if math.isfinite(value)}


def answer_logprobs(given: GivenAnswers, logprobs: Sequence[float]) -> dict[str, float]:
    """Return the log-probability of each given answer, in nats, by the text that follows the prompt.

    Args:
        given: the answers.
        logprobs: mean log-probability per token of each of `given.sequences`.
    """
    return {answer.sent: _sum(answer, logprobs) for answer in (*given.references, *given.choices)}


def _reference_scores(references: Sequence[GivenAnswer], logprobs: Sequence[float]) -> Scores:
    """Return the measures of references. The best reference counts, in each measure by itself."""
    if not references:
        return {}
    sums = [_sum(reference, logprobs) for reference in references]
    per_token = max(logprobs[reference.sequence] for reference in references)
    sizes = [len(reference.sent.encode("utf-8", "surrogatepass")) for reference in references]
    return {
        "reference_logprob": max(sums),
        "reference_logprob_per_token": per_token,
        "reference_logprob_per_byte": max(total / size for total, size in zip(sums, sizes, strict=True)),
        "reference_perplexity": _exp(-per_token),
    }


def _choice_scores(given: GivenAnswers, logprobs: Sequence[float]) -> Scores:
    """Return the measures of choices. `acc` and `acc_norm` are those of lm-evaluation-harness."""
    if not given.choices:
        return {}
    sums = np.array([_sum(choice, logprobs) for choice in given.choices])
    lengths = np.array([len(choice.text) for choice in given.choices], float)
    is_right = np.isin(np.arange(len(sums)), given.right)
    right, wrong = (float(np.logaddexp.reduce(sums[mask])) for mask in (is_right, ~is_right))
    return {
        "choice_log_odds": right - wrong,
        "choice_probability": _exp(right - float(np.logaddexp(right, wrong))),
        "acc": float(is_right[np.argmax(sums)]),
        "acc_norm": float(is_right[np.argmax(sums / lengths)]),
    }


def _sum(answer: GivenAnswer, logprobs: Sequence[float]) -> float:
    return logprobs[answer.sequence] * answer.tokens


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def _likelihood(
    name: str,
    about: str,
    limits: tuple[float, float],
    unit: str = "",
    direction: Direction = "higher",
    source: str = "",
    interval: Interval = "bca",
    **shown: int,
) -> MeasureSpec:
    return MeasureSpec(
        f"likelihood/{name}", about, "prompt", limits, unit, direction, interval, shown=Shown(**shown), source=source
    )


NEGATIVE, REAL, SHARE = (-math.inf, 0.0), (-math.inf, math.inf), (0.0, 1.0)
MEASURES = (
    _likelihood(
        "reference_logprob",
        "log-probability of the reference after the prompt; the best of several",
        NEGATIVE,
        "nats",
        terminal=24,
        report=20,
        description=6,
        ranking=24,
    ),
    _likelihood("reference_logprob_per_token", "the same over the reference's tokens", NEGATIVE, "nats", report=40),
    _likelihood("reference_logprob_per_byte", "the same over its UTF-8 bytes, delimiter included", NEGATIVE, "nats"),
    _likelihood(
        "reference_perplexity",
        "exp(-x) of the log-probability per token x of the reference",
        (1.0, math.inf),
        direction="lower",
    ),
    _likelihood(
        "choice_log_odds",
        "log-odds of the right choices against the wrong ones: log of the sum of their probabilities, less that of the "
        "others",
        REAL,
        "nats",
        report=30,
    ),
    _likelihood("choice_probability", "probability of the right choices, if only choices are possible", SHARE),
    _likelihood(
        "acc",
        "1 if the most probable choice is right, else 0",
        SHARE,
        source=LM_EVAL,
        interval="wilson",
        terminal=22,
        report=10,
        description=4,
        ranking=22,
    ),
    _likelihood(
        "acc_norm",
        "1 if the choice with the highest log-probability per character is right, else 0",
        SHARE,
        source=LM_EVAL,
        interval="wilson",
        report=50,
    ),
)
