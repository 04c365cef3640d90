"""An answer against the control's, on token ids."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from rapidfuzz.distance import Levenshtein


def first_divergence(answer: Sequence[int], control: Sequence[int]) -> float:
    """Return the position of the first token that differs: the common prefix's length in tokens.

    Where one answer begins with the other, this is the shorter one's length; equal answers give their length.
    """
    return float(sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(answer, control, strict=False))))


def token_agreement(answer: Sequence[int], control: Sequence[int]) -> float:
    """Return the share of positions, of the longer answer's, at which both have the same token; 1 if both are empty."""
    longer = max(len(answer), len(control))
    return sum(a == c for a, c in zip(answer, control, strict=False)) / longer if longer else 1.0


def edit_distance(answer: Sequence[int], control: Sequence[int]) -> float:
    """Return the Levenshtein distance over the longer answer's length: 0 for equal answers, 1 for nothing in common."""
    return float(Levenshtein.normalized_distance(answer, control))


def prefix_agreement(answer: Sequence[int], control: Sequence[int]) -> float:
    """Return the share of the control's tokens before the first that differs.

    Where the control has none it is 1 if the answer has none either, else 0.
    """
    return first_divergence(answer, control) / len(control) if control else float(not answer)
