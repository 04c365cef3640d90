"""Next-token distributions against the control's, from the most probable tokens' log-probabilities.  All in nats.

An engine reports the k most probable tokens, not the distribution.  Both are therefore compared over the tokens that
either lists and one bucket `other` for the rest.  A token that only the one lists has some probability under the other
too: not more than the other's k-th listed one has, and of the mass that the other does not list it is given an even
share, `other` counting as one more token.  What comes out is a distance of two proper distributions, so it is never
negative; it is exact where everything is listed, and otherwise as good as the unlisted mass of both, which is reported
beside it, is small.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import rel_entr

from sweep.scoring.divergence import first_divergence

# The least probability that an unlisted token is given: what float32 log-probabilities leave of a mass of one.
FLOOR = 1e-7

Logprobs = Mapping[int, float]


@dataclass(frozen=True, slots=True)
class Distance:
    """How far a next-token distribution q is from the control's, p.

    Attributes:
        kl: KL(p‖q) in nats, 0 or more.
        js: Jensen-Shannon divergence in nats, in [0, ln 2].
        top1: 1 if the most probable token is the same, else 0.
        unlisted: the mass of q that is not listed, in [0, 1].
        control_unlisted: that of p.
    """

    kl: float
    js: float
    top1: float
    unlisted: float
    control_unlisted: float


NOTHING = Distance(math.nan, math.nan, math.nan, math.nan, math.nan)


def distance(answer: Logprobs, control: Logprobs, top_k: int | None = None) -> Distance:
    """Compare two next-token distributions.

    Args:
        answer: natural log-probabilities by token; q.  A token at minus infinity counts as not listed.
        control: the same of the control; p.
        top_k: how many of the most probable are listed, where a less probable one may have been added to them (the
            one that was drawn); None: all that is listed is the most probable.

    Raises:
        ValueError: nothing is listed, a log-probability is NaN, or the probabilities' sum is above 1.
    """
    q, p = _listed(answer), _listed(control)
    tokens = list(dict.fromkeys([*p, *q]))
    wide_p, control_unlisted = _spread(p, tokens, top_k)
    wide_q, unlisted = _spread(q, tokens, top_k)
    middle = (wide_p + wide_q) / 2
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
    """Compare an answer's distributions with the control's, step by step, while both stand on the same tokens.

    Args:
        answer_ids, control_ids: the tokens of both.
        answer, control: the log-probabilities at each of these steps.
        top_k: as of `distance`.

    Returns:
        `divergence/first_token_…`: `kl`, `js`, `top1`, `unlisted`, `control_unlisted` at the first step;
        `divergence/prefix_…`: their means over the steps up to and with the first at which other tokens were taken,
        whose distributions still have the same tokens before them.  NaN where there is no step.

    Raises:
        ValueError: tokens and steps are not as many; as of `distance`.
    """
    if len(answer_ids) != len(answer) or len(control_ids) != len(control):
        raise ValueError("there must be log-probabilities for each token")
    steps = min(int(first_divergence(answer_ids, control_ids)) + 1, len(answer), len(control))
    found = [distance(answer[i], control[i], top_k) for i in range(steps)]
    first = found[0] if found else NOTHING
    scores = {}
    for name in Distance.__slots__:
        values = [getattr(step, name) for step in found]
        scores[f"divergence/first_token_{name}"] = getattr(first, name)
        scores[f"divergence/prefix_{name}"] = sum(values) / steps if steps else math.nan
    return scores


def _listed(logprobs: Logprobs) -> dict[int, float]:
    """Return the probabilities by token, without those that are zero."""
    found = {token: math.exp(value) for token, value in logprobs.items() if value != -math.inf}
    mass = math.fsum(found.values())
    if not found or not mass <= 1.001:
        raise ValueError(f"no log-probabilities of one distribution: {len(found)} tokens with a mass of {mass}")
    return found


def _spread(listed: dict[int, float], tokens: list[int], top_k: int | None) -> tuple[NDArray[np.float64], float]:
    """Return the probabilities of `tokens` and of all others together, [len(tokens) + 1], and the mass not listed."""
    missing = [token for token in tokens if token not in listed]
    rest = max(1 - math.fsum(listed.values()), 0.0)
    least = sorted(listed.values(), reverse=True)[:top_k][-1]
    given = max(min(least, rest / (len(missing) + 1)), FLOOR)
    other = max(rest - given * len(missing), FLOOR)
    wide = np.array([*(listed.get(token, given) for token in tokens), other])
    return wide / wide.sum(), rest


def _most_probable(listed: dict[int, float]) -> set[int]:
    most = max(listed.values())
    return {token for token, value in listed.items() if value == most}
