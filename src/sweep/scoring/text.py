"""Answers against references: this project's measures of quality.

All give one float in [0, 1] for an answer and its references, the best over the references.

Many of a sweep's answers are the same, the control's above all, so what takes long is kept for the last few thousand.
"""

from __future__ import annotations

import math
import re
import string
import time
from collections import Counter
from collections.abc import Sequence
from functools import cache, lru_cache
from operator import add
from typing import Any

import regex

from sweep.errors import ConfigError, SweepError

# For how many answers the measures are kept: some points' worth.
KEPT = 2048
REGEX_SECONDS = 1.0

_ARTICLES = re.compile(r"\b(?:an?|the)\b")
_PUNCTUATION = string.punctuation.encode()
# A sign counts where it is no dash between numbers or words; digits within a word (H2O) are no number.
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w.)%])[-+−])?[$€£¥]?(?<!\w)"
    r"(?P<digits>(?:\d{1,3}(?:[,\u00a0\u202f]\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|\.\d+)"
    r"(?P<percent>\s?(?:%|per\s?cent\b))?"
)
_SEPARATORS = str.maketrans("", "", ",\u00a0\u202f")
# A brace that is part of no escape and begins no repetition.
_PLAIN_BRACE = re.compile(r"(\\N\{[^}]*\}|\\.)|\{(?!\d+(?:,\d*)?\}|,\d*\})", re.DOTALL)


class ScorerError(SweepError):
    """A measure could not be taken of an answer: the user's scorer or pattern is at fault."""


def exact_match(answer: str, references: Sequence[str]) -> float:
    """Return 1 if the answer is one of the references, white space at both ends aside, else 0."""
    return float(answer.strip() in {reference.strip() for reference in references})


@lru_cache(maxsize=KEPT)
def normalise(text: str) -> str:
    """Return a text in lower case without ASCII punctuation, English articles and superfluous white space.

    As SQuAD's evaluation does (Rajpurkar et al. 2016, arXiv:1606.05250).
    """
    # Bytes are deleted ten times faster than characters, and those of other characters are none of ASCII's.
    raw = text.lower().encode("utf-8", "surrogatepass").translate(None, _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", raw.decode("utf-8", "surrogatepass")).split())


def normalised_exact_match(answer: str, references: Sequence[str]) -> float:
    """Return 1 if the answer is one of the references after `normalise` (arXiv:1606.05250), else 0."""
    return float(normalise(answer) in map(normalise, references))


def contains(answer: str, references: Sequence[str]) -> float:
    """Return 1 if one of the references occurs in the answer, else 0."""
    return float(any(reference.strip() in answer for reference in references))


def regex_match(answer: str, references: Sequence[str]) -> float:
    r"""Return 1 if one of the references, as a Python regular expression, matches somewhere in the answer, else 0.

    `^` and `$` are the answer's ends; `(?i)` at the start of a pattern ignores case, `(?m)` and `(?s)` work as in `re`.
    They are matched by the package `regex`, whose search can be ended, and for which, other than for `re`, combining
    marks count as `\w` and `[[:alpha:]]` as letters.

    Raises:
        ConfigError: a reference is no regular expression; `check_pattern` finds that beforehand.
        ScorerError: a search takes more than `REGEX_SECONDS` seconds of computing.
    """
    return float(any(_found(reference, answer) for reference in references))


def _found(reference: str, answer: str) -> bool:
    pattern = check_pattern(reference)
    began, limit = time.thread_time(), REGEX_SECONDS
    while True:
        try:
            return pattern.search(answer, timeout=limit) is not None
        except TimeoutError as error:
            # What `regex` counts is the whole process's time, an engine's threads and all.
            if time.thread_time() - began >= REGEX_SECONDS:
                raise ScorerError(
                    f"quality/regex_match: {reference!r} takes more than {REGEX_SECONDS:g} s on one answer; "
                    f"repetitions within repetitions, as in (a+)+, can take for ever."
                ) from error
            limit *= 2


@lru_cache(maxsize=KEPT)
def check_pattern(reference: str) -> Any:
    """Return the compiled pattern, a `regex.Pattern`.

    Raises:
        ConfigError: it is no regular expression.
    """
    try:
        re.compile(reference)
        # `regex` has a meaning for {e} and its like, which are plain text in Python's expressions.
        return regex.compile(_PLAIN_BRACE.sub(lambda match: match[1] or r"\{", reference))
    except (re.error, regex.error) as error:
        raise ConfigError(f"quality/regex_match: {reference!r} is no regular expression: {error}.") from error


def token_f1(answer: str, references: Sequence[str]) -> float:
    """Return the harmonic mean of precision and recall of the words, after `normalise` (SQuAD, arXiv:1606.05250).

    Where the answer or the reference has no words left it is 1 if neither has, else 0 (as in SQuAD 2.0).
    """
    return max((_f1(answer, reference) for reference in references), default=0.0)


@lru_cache(maxsize=KEPT)
def _f1(answer: str, reference: str) -> float:
    own, other = Counter(normalise(answer).split()), _words(reference)
    if not own or not other:
        return float(own == other)
    shared = sum(min(own[word], other[word]) for word in own.keys() & other.keys())
    return 2 * shared / (own.total() + other.total())


@lru_cache(maxsize=KEPT)
def _words(reference: str) -> Counter[str]:
    return Counter(normalise(reference).split())


def numeric_match(answer: str, references: Sequence[str], tolerance: float = 1e-9) -> float:
    """Return 1 if the answer's last number equals the last number of a reference, else 0.

    A solution in steps so counts by its result, on both sides.  Numbers are read as English writes them: `1,234.5`,
    `-$3`, `.5`, `1e-3`; 50 % equals 50 as well as 0.5 if only one side has the sign.

    Args:
        answer: what was generated.
        references: texts with numbers in them; those without match nothing.
        tolerance: how much the numbers may differ by, over the larger.
    """
    if not (own := _last_number(answer)):
        return 0.0
    return float(any(_equal(own, other, tolerance) for text in references if (other := _last_number(text))))


@lru_cache(maxsize=KEPT)
def _last_number(text: str) -> tuple[float, bool] | None:
    """Return a text's last number, and whether it is a percentage; None: there is none."""
    if not (numbers := list(_NUMBER.finditer(text))):
        return None
    found = numbers[-1]
    size = float(found["digits"].translate(_SEPARATORS))
    return -size if found["sign"] in ("-", "−") else size, found["percent"] is not None


def _equal(one: tuple[float, bool], other: tuple[float, bool], tolerance: float) -> bool:
    if math.isclose(one[0], other[0], rel_tol=tolerance):
        return True
    share, plain = (one, other) if one[1] else (other, one)
    return share[1] and not plain[1] and math.isclose(share[0] / 100, plain[0], rel_tol=tolerance)


def chrf(answer: str, references: Sequence[str]) -> float:
    """Return the character n-gram F-score, chrF2 (Popović 2015, doi:10.18653/v1/W15-3049), by sacrebleu, over 100."""
    return max((_chrf(answer, reference) for reference in references), default=0.0)


def bleu(answer: str, references: Sequence[str]) -> float:
    """Return sentence BLEU (Post 2018, arXiv:1804.08771) by sacrebleu, with effective order, over 100.

    The n-grams that a short answer cannot have are left out; each reference is taken alone, and the best one counts.
    """
    return max((_bleu(answer, reference) for reference in references), default=0.0)


@lru_cache(maxsize=KEPT)
def _chrf(answer: str, reference: str) -> float:
    return min(float(_chrf_against(reference).corpus_score([answer], None).score) / 100, 1.0)


@lru_cache(maxsize=KEPT)
def _bleu(answer: str, reference: str) -> float:
    score = min(float(_bleu_against(reference).corpus_score([answer], None).score) / 100, 1.0)
    for tokenizer in _bleu_tokenizers():  # which would keep 65,536 answers each, of any length
        tokenizer.cache_clear()
    return score


@lru_cache(maxsize=KEPT)
def _chrf_against(reference: str) -> Any:
    return _chrf_class()(references=[[reference]])


@lru_cache(maxsize=KEPT)
def _bleu_against(reference: str) -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True, references=[[reference]])


@cache
def _bleu_tokenizers() -> tuple[Any, Any]:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
    from sacrebleu.tokenizers.tokenizer_re import TokenizerRegexp

    return Tokenizer13a.__call__, TokenizerRegexp.__call__


@cache  # made on first use: sacrebleu takes half a second to import, and not every sweep wants it
def _chrf_class() -> type[Any]:
    from sacrebleu.metrics import CHRF

    class FasterCHRF(CHRF):  # type: ignore[misc]
        """sacrebleu's chrF, for one reference, with the n-grams counted in half the time."""

        def _compute_segment_statistics(self, hypothesis: str, ref_kwargs: dict[str, Any]) -> list[int]:
            line, (orders,) = "".join(hypothesis.split()), ref_kwargs["ref_ngrams"]
            statistics, ngrams = [], list(line)
            for n, other in enumerate(orders):
                if n:
                    ngrams = list(map(add, ngrams, line[n:]))
                own = Counter(filter(other.__contains__, ngrams))
                shared = sum(map(min, own.values(), map(other.__getitem__, own)))
                statistics += [len(ngrams) if other else 0, other.total(), shared]
            return statistics

    return FasterCHRF
