"""An answer against the control's, on token ids."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress, count
from operator import eq, ne

from rapidfuzz.distance import Levenshtein


def compare(answer: Sequence[int], control: Sequence[int]) -> dict[str, float]:
    """Return the measures of this module, as `divergence/…`."""
    first = first_divergence(answer, control)
    return {
        "divergence/first_divergence": first,
        "divergence/prefix_agreement": _share(first, answer, control),
        "divergence/token_agreement": token_agreement(answer, control),
        "divergence/edit_distance": edit_distance(answer, control),
    }


def first_divergence(answer: Sequence[int], control: Sequence[int]) -> float:
    """Return the position of the first token that differs: the common prefix's length in tokens.

    Where one answer begins with the other, this is the shorter one's length; equal answers give their length.
    """
    return float(next(compress(count(), map(ne, answer, control)), min(len(answer), len(control))))


def token_agreement(answer: Sequence[int], control: Sequence[int]) -> float:
    """Return the share of positions, of the longer answer's, at which both have the same token; 1 if both are empty."""
    longer = max(len(answer), len(control))
    return sum(map(eq, answer, control)) / longer if longer else 1.0


def edit_distance(answer: Sequence[int], control: Sequence[int]) -> float:
    """Return the Levenshtein distance over the longer answer's length: 0 for equal answers, 1 for nothing in common."""
    return float(Levenshtein.normalized_distance(answer, control))


def prefix_agreement(answer: Sequence[int], control: Sequence[int]) -> float:
    """Return the share of the control's tokens before the first that differs.

    Where the control has none it is 1 if the answer has none either, else 0.
    """
    return _share(first_divergence(answer, control), answer, control)


def _share(first: float, answer: Sequence[int], control: Sequence[int]) -> float:
    return first / len(control) if control else float(not answer)
