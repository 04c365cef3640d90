"""Divergence of an answer from the control's answer, on token ids."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import compress, count
from operator import eq, ne

from rapidfuzz.distance import Levenshtein

from sweep.engines.base import Completion
from sweep.scoring.registry import Direction, MeasureSpec, Shown


def compare(answer: Sequence[int], control: Sequence[int]) -> dict[str, float]:
    """Return all measures of this module by metric name, `divergence/…`."""
    first = first_divergence(answer, control)
    return {
        "divergence/first_divergence": first,
        "divergence/prefix_agreement": _share(first, answer, control),
        "divergence/token_agreement": token_agreement(answer, control),
        "divergence/edit_distance": edit_distance(answer, control),
    }


def first_divergence(answer: Sequence[int], control: Sequence[int]) -> float:
    """Return the length of the common prefix in tokens, which is the position of the first difference.

    If one answer is a prefix of the other, this is the shorter one's length. For equal answers it is their length.
    """
    return float(next(compress(count(), map(ne, answer, control)), min(len(answer), len(control))))


def token_agreement(answer: Sequence[int], control: Sequence[int]) -> float:
    """Return the share of positions with the same token, over the longer answer's length; 1 if both are empty."""
    longer = max(len(answer), len(control))
    return sum(map(eq, answer, control)) / longer if longer else 1.0


def edit_distance(answer: Sequence[int], control: Sequence[int]) -> float:
    """Return the Levenshtein distance over the longer answer's length: 0 if equal, 1 if nothing is in common."""
    return float(Levenshtein.normalized_distance(answer, control))


def prefix_agreement(answer: Sequence[int], control: Sequence[int]) -> float:
    """Return the common prefix's share of the control's tokens.

    If the control's answer is empty, it is 1 for an empty answer, else 0.
    """
    return _share(first_divergence(answer, control), answer, control)


def _share(first: float, answer: Sequence[int], control: Sequence[int]) -> float:
    return first / len(control) if control else float(not answer)


def _compare(answer: Completion, control: Completion, top_k: int) -> dict[str, float]:
    return compare(answer.token_ids, control.token_ids)


def _divergence(name: str, about: str, direction: Direction, high: float = 1.0, **shown: int) -> MeasureSpec:
    return MeasureSpec(
        f"divergence/{name}",
        about,
        per="pair",
        range=(0.0, high),
        unit="" if high == 1 else "tokens",
        direction=direction,
        shown=Shown(**shown),
        implied=True,
        compute=_compare,
    )


MEASURES = (
    _divergence(
        "first_divergence",
        "length of the common prefix, which is the position of the first difference",
        "higher",
        math.inf,
        terminal=30,
        report=20,
        primary=20,
    ),
    _divergence("prefix_agreement", "common prefix's share of the control's tokens", "higher"),
    _divergence(
        "token_agreement",
        "share of positions with the same token, over the longer answer's length; 1 if both are empty",
        "higher",
        terminal=40,
        report=10,
        description=10,
        live=10,
        ranking=30,
        primary=10,
    ),
    _divergence(
        "edit_distance",
        "Levenshtein distance over the longer answer's length: 0 if equal, 1 if nothing is in common",
        "lower",
        terminal=50,
        report=30,
        description=20,
        primary=30,
    ),
)
