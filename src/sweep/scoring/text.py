"""Answers against references."""

from __future__ import annotations

from collections.abc import Sequence


def exact_match(answer: str, references: Sequence[str]) -> float:
    """Return 1 if the answer is one of the references, white space at both ends aside, else 0."""
    return float(answer.strip() in {reference.strip() for reference in references})


def contains(answer: str, references: Sequence[str]) -> float:
    """Return 1 if one of the references occurs in the answer, else 0."""
    return float(any(reference.strip() in answer for reference in references))
