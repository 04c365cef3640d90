"""Measures over all samples of a prompt: pass@k, and the vote of the majority.

They exist for `sampling.n` above 1. A yes-or-no measure decides which samples are correct.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

from sweep.core.values import Scores
from sweep.errors import ConfigError
from sweep.scoring.registry import MeasureSpec, spec
from sweep.scoring.text import last_number, normalise
from sweep.util.validators import require

PASS = "quality/pass_at_"
MAJORITY = "quality/majority_vote"
# How votes are counted: by the result for numbers, else by the normalised text.
BALLOTS: dict[str, Callable[[str], Hashable]] = {"quality/numeric_match": last_number}


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Return the probability that at least one of k answers is correct, estimated without bias from more samples.

    It is 1 - C(n - c, k) / C(n, k), the share of all subsets of k samples with a correct one (Chen et al. 2021,
    arXiv:2107.03374).

    Args:
        samples: number of samples, n.
        correct: number of correct ones, c.
        k: from 1 to n.
    """
    return 1 - math.comb(samples - correct, k) / math.comb(samples, k)


def majority_vote(ballots: Sequence[Hashable], correct: Sequence[float]) -> float:
    """Return whether the most frequent answer is correct; the mean over the most frequent ones if there are several.

    An answer counts as its first sample does (self-consistency, Wang et al. 2022, arXiv:2203.11171). The mean is the
    expected result of drawing one of them. Samples with a ballot of None do not vote, unless all have None.

    Args:
        ballots: what each sample votes for.
        correct: 1 for each correct sample, 0 for the others.
    """
    votes: dict[Hashable, list[float]] = {}
    for ballot, value in zip(ballots, correct, strict=True):
        votes.setdefault(ballot, []).append(value)
    if len(votes) > 1:
        votes.pop(None, None)
    most = max(map(len, votes.values()))
    winners = [values[0] for values in votes.values() if len(values) == most]
    return sum(winners) / len(winners)


def sample_scores(texts: Sequence[str], scores: Sequence[Scores], measure: str | None, sizes: Sequence[int]) -> Scores:
    """Return the measures of one prompt's samples; none for a single sample, or without correct answers to know.

    Args:
        texts: the samples.
        scores: their scores.
        measure: metric name of the yes-or-no measure; None: there is none.
        sizes: values of k.
    """
    if measure is None or len(texts) < 2 or any(measure not in sample for sample in scores):
        return {}
    correct = [sample[measure] for sample in scores]
    count = round(sum(correct))
    found = {f"{PASS}{k}": pass_at_k(len(texts), count, k) for k in sizes if k <= len(texts)}
    ballot = BALLOTS.get(measure, normalise)
    return found | {MAJORITY: majority_vote([ballot(text) for text in texts], correct)}


def correctness_measure(chosen: str | None, configured: Sequence[str]) -> str | None:
    """Return the measure that decides which samples are correct: the chosen one, else the first yes-or-no one.

    Args:
        chosen: metric name; None: not chosen.
        configured: metric names of `scoring.quality` and `scoring.measures`.

    Raises:
        ConfigError: the chosen measure is not computed, or is not a yes-or-no measure.
    """
    available = [name for name in configured if spec(name).yes_or_no]
    if chosen is None:
        return next(iter(available), None)
    if chosen not in available:
        names = ", ".join(name.removeprefix("quality/") for name in available) or "none"
        raise ConfigError(
            f"scoring.correct: {chosen.removeprefix('quality/')!r} is not a yes-or-no measure of scoring.quality or "
            f"scoring.measures. Available: {names}."
        )
    return chosen


def check_sizes(sizes: Sequence[int] | None, measure: str | None) -> None:
    """Check the values of k of a configuration; None stands for the default.

    Raises:
        ConfigError: no measure decides what is correct, or the values are not different numbers of at least 1.
    """
    needed = "needs a yes-or-no measure in scoring.quality, such as contains"
    require(measure is not None, "scoring.pass_at", needed, None)
    valid = sizes is None or (bool(sizes) and min(sizes) >= 1 and len(set(sizes)) == len(sizes))
    require(valid, "scoring.pass_at", "must list different numbers of at least 1", sizes)


def pass_sizes(samples: int, configured: Sequence[int] | None = None) -> list[int]:
    """Return the values of k: those configured, else the powers of two from 2 to the number of samples."""
    return list(configured) if configured is not None else [2**i for i in range(1, samples.bit_length())]


MEASURES = (
    MeasureSpec(
        f"{PASS}k",
        "probability that at least one of k samples is correct, by `scoring.correct`; for each k of `scoring.pass_at`, "
        "with `sampling.n` above 1",
        "prompt",
        (0.0, 1.0),
        direction="higher",
        interval="wilson",
        source="Chen et al. 2021, arXiv:2107.03374",
        title="pass@k",
    ),
    MeasureSpec(
        MAJORITY,
        "whether the most frequent of the samples is correct, by `scoring.correct`; with `sampling.n` above 1",
        "prompt",
        (0.0, 1.0),
        direction="higher",
        interval="wilson",
        source="Wang et al. 2022, arXiv:2203.11171",
    ),
)
