"""Distances of next-token distributions from the control's, in nats, from top-k log-probabilities.

An engine reports the k most probable tokens, not the whole distribution. Both distributions are therefore compared
over the tokens that either lists, plus one bucket `other` for the rest. A token that only one of them lists gets an
estimated probability in the other: an even share of the unlisted mass (`other` counts as one more token), but at most
the probability of the k-th listed token.

Both sides are proper distributions, so a distance is never negative. It is exact where everything is listed. Otherwise
its error grows with the unlisted mass, which is reported with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sweep.engines.base import Completion
from sweep.scoring.divergence import first_divergence
from sweep.scoring.registry import Direction, MeasureSpec, Shown

# Lowest probability of an unlisted token; smaller values are below float32 resolution.
FLOOR = 1e-7

Logprobs = Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Distance:
    """Distance of a next-token distribution q from the control's, p.

    Attributes:
        kl: KL(p‖q) in nats, 0 or more.
        js: Jensen-Shannon divergence in nats, in [0, ln 2].
        top1: 1 if the most probable token is the same, else 0.
        unlisted: probability mass of q that is not listed, in [0, 1].
        control_unlisted: probability mass of p that is not listed, in [0, 1].
    """

    kl: float
    js: float
    top1: float
    unlisted: float
    control_unlisted: float


UNDEFINED = Distance(math.nan, math.nan, math.nan, math.nan, math.nan)


def distance(answer: Logprobs, control: Logprobs, top_k: int | None = None) -> Distance:
    """Compare two next-token distributions.

    Args:
        answer: natural log-probabilities by token id (q). A token at minus infinity counts as not listed.
        control: the control's (p), in the same form.
        top_k: number of most probable tokens listed. Needed if the sampled token was added to them. None: all listed
            tokens are the most probable ones.

    Raises:
        ValueError: nothing is listed, a log-probability is NaN, or the probabilities sum to more than 1.
    """
    q, p = _listed(answer), _listed(control)
    tokens = list(dict.fromkeys([*p, *q]))
    wide_p, control_unlisted = _spread(p, tokens, top_k)
    wide_q, unlisted = _spread(q, tokens, top_k)
    middle, rel_entr = (wide_p + wide_q) / 2, _rel_entr()
    js = float(rel_entr(wide_p, middle).sum() + rel_entr(wide_q, middle).sum()) / 2
    kl = float(rel_entr(wide_p, wide_q).sum())
    top1 = float(not _most_probable(p).isdisjoint(_most_probable(q)))
    return Distance(max(kl, 0.0), min(max(js, 0.0), math.log(2)), top1, unlisted, control_unlisted)


def distances(
    answer_ids: Sequence[int],
    answer: Sequence[Logprobs],
    control_ids: Sequence[int],
    control: Sequence[Logprobs],
    top_k: int | None = None,
) -> dict[str, float]:
    """Compare an answer's distributions with the control's, step by step, while both have the same prefix.

    Args:
        answer_ids: tokens of the answer.
        answer: log-probabilities at each of the answer's tokens.
        control_ids: tokens of the control's answer.
        control: log-probabilities at each of the control's tokens.
        top_k: see `distance`.

    Returns:
        `divergence/first_token_…`: `kl`, `js`, `top1`, `unlisted` and `control_unlisted` at the first step.
        `divergence/prefix_…`: their means over the common prefix and the first step where the tokens differ. The
        distributions of that step still follow the same tokens. NaN if there is no step.

    Raises:
        ValueError: the numbers of tokens and steps differ, or see `distance`.
    """
    if len(answer_ids) != len(answer) or len(control_ids) != len(control):
        raise ValueError(
            f"expected log-probabilities for each token, got {len(answer)} for {len(answer_ids)} tokens of the answer "
            f"and {len(control)} for {len(control_ids)} of the control's"
        )
    steps = min(int(first_divergence(answer_ids, control_ids)) + 1, len(answer), len(control))
    per_step = [distance(answer[i], control[i], top_k) for i in range(steps)]
    first = per_step[0] if per_step else UNDEFINED
    scores = {}
    for name in Distance.__slots__:
        values = [getattr(step, name) for step in per_step]
        scores[f"divergence/first_token_{name}"] = getattr(first, name)
        scores[f"divergence/prefix_{name}"] = sum(values) / steps if steps else math.nan
    return scores


@cache
def _rel_entr() -> Any:
    from scipy.special import rel_entr  # imported late: a list of measures does not need SciPy

    return rel_entr


def _listed(logprobs: Logprobs) -> dict[int, float]:
    """Return the probabilities by token, without those that are zero."""
    probabilities = {token: math.exp(value) for token, value in logprobs.items() if value != -math.inf}
    mass = math.fsum(probabilities.values())
    if not probabilities or not mass <= 1.001:
        raise ValueError(
            f"expected log-probabilities of one distribution, got {len(probabilities)} tokens with a mass of {mass}"
        )
    return probabilities


def _spread(listed: dict[int, float], tokens: list[int], top_k: int | None) -> tuple[NDArray[np.float64], float]:
    """Return the probabilities of `tokens` and the `other` bucket, (len(tokens) + 1,), and the unlisted mass."""
    missing = [token for token in tokens if token not in listed]
    rest = max(1 - math.fsum(listed.values()), 0.0)
    kth = sorted(listed.values(), reverse=True)[:top_k][-1]
    estimate = max(min(kth, rest / (len(missing) + 1)), FLOOR)
    other = max(rest - estimate * len(missing), FLOOR)
    wide = np.array([*(listed.get(token, estimate) for token in tokens), other])
    return wide / wide.sum(), rest


def _most_probable(listed: dict[int, float]) -> set[int]:
    most = max(listed.values())
    return {token for token, value in listed.items() if value == most}


def _compare(answer: Completion, control: Completion, top_k: int) -> dict[str, float]:
    if not top_k:
        return {}
    return distances(answer.token_ids, answer.logprobs, control.token_ids, control.logprobs, top_k)


WHERE = {
    "first_token": "at the first token",
    "prefix": "mean over the common prefix, with the first token that differs",
}
# Meaning, highest value, unit, and which values are closer to the control.
DISTANCES: dict[str, tuple[str, float, str, Direction | None]] = {
    "kl": ("KL(control‖point)", math.inf, "nats", "lower"),
    "js": ("Jensen-Shannon divergence", math.log(2), "nats", "lower"),
    "top1": ("agreement of the most probable token", 1.0, "", "higher"),
    "unlisted": ("probability beyond the listed tokens; KL and JS are too low where it is large", 1.0, "", None),
    "control_unlisted": ("the same of the control", 1.0, "", None),
}
QUANTILES = (0.5, 0.9, 0.99)  # a few prompts can have most of the mean KL
MEASURES = tuple(
    MeasureSpec(
        f"divergence/{place}_{name}",
        f"{about}; {where}",
        per="pair",
        range=(0.0, high),
        unit=unit,
        direction=direction,
        # At a single token the agreement is 0 or 1.
        interval="wilson" if (place, name) == ("first_token", "top1") else "bca",
        quantiles=QUANTILES if name == "kl" else (),
        shown=Shown(report=50) if (place, name) == ("first_token", "kl") else Shown(),
        compute=_compare,
    )
    for place, where in WHERE.items()
    for name, (about, high, unit, direction) in DISTANCES.items()
)
