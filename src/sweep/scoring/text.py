"""Built-in quality measures: compare an answer with references.

Each returns a float in [0, 1], the best over the references. Many answers of a sweep are the same, above all the
control's, so slow results are cached for the last few thousand answers.
"""

from __future__ import annotations

import math
import re
import string
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from operator import add
from typing import Any

import regex

from sweep.errors import ConfigError, SweepError
from sweep.scoring.registry import MeasureSpec, Shown

# Cache size in answers: enough for a few points.
CACHE_SIZE = 2048
REGEX_SECONDS = 1.0

_ARTICLES = re.compile(r"\b(?:an?|the)\b")
_PUNCTUATION = string.punctuation.encode()
# A sign counts unless it is a dash between numbers or words. Digits within a word (H2O) are not a number.
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w.)%])[-+−])?[$€£¥]?(?<!\w)"
    r"(?P<digits>(?:\d{1,3}(?:[,\u00a0\u202f]\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|\.\d+)"
    r"(?P<percent>\s?(?:%|per\s?cent\b))?"
)
_SEPARATORS = str.maketrans("", "", ",\u00a0\u202f")
# A brace that is neither part of an escape nor the start of a repetition.
_PLAIN_BRACE = re.compile(r"(\\N\{[^}]*\}|\\.)|\{(?!\d+(?:,\d*)?\}|,\d*\})", re.DOTALL)


class ScorerError(SweepError):
    """A scorer failed on an answer: the user's function or pattern is at fault."""


def exact_match(answer: str, references: Sequence[str]) -> float:
    """Return 1 if the answer equals a reference, ignoring white space at both ends, else 0."""
    return float(answer.strip() in {reference.strip() for reference in references})


@lru_cache(maxsize=CACHE_SIZE)
def normalise(text: str) -> str:
    """Return a text in lower case without ASCII punctuation, English articles and superfluous white space.

    Follows SQuAD's evaluation (Rajpurkar et al. 2016, arXiv:1606.05250).
    """
    # Deleting bytes is ten times faster than deleting characters. Multi-byte characters contain no ASCII bytes.
    raw = text.lower().encode("utf-8", "surrogatepass").translate(None, _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", raw.decode("utf-8", "surrogatepass")).split())


def normalised_exact_match(answer: str, references: Sequence[str]) -> float:
    """Return 1 if the answer equals a reference after `normalise`, else 0."""
    return float(normalise(answer) in map(normalise, references))


def contains(answer: str, references: Sequence[str]) -> float:
    """Return 1 if a reference occurs in the answer, else 0."""
    return float(any(reference.strip() in answer for reference in references))


def regex_match(answer: str, references: Sequence[str]) -> float:
    r"""Return 1 if a reference, as a Python regular expression, matches anywhere in the answer, else 0.

    `^` and `$` match the answer's ends. `(?i)` at the start of a pattern ignores case; `(?m)` and `(?s)` work as in
    `re`. Patterns are matched by the package `regex`, whose searches can time out. Unlike in `re`, combining marks
    match `\w`, and `[[:alpha:]]` matches letters.

    Raises:
        ConfigError: a reference is not a regular expression; `check_pattern` checks this beforehand.
        ScorerError: a search takes more than `REGEX_SECONDS` seconds of CPU time.
    """
    return float(any(_search(reference, answer) for reference in references))


def _search(reference: str, answer: str) -> bool:
    pattern = check_pattern(reference)
    began, limit = time.thread_time(), REGEX_SECONDS
    while True:
        try:
            return pattern.search(answer, timeout=limit) is not None
        except TimeoutError as error:
            # `regex` counts the CPU time of the whole process, including an engine's threads.
            if time.thread_time() - began >= REGEX_SECONDS:
                raise ScorerError(
                    f"quality/regex_match: {reference!r} takes more than {REGEX_SECONDS:g} s on one answer. "
                    f"Nested repetitions such as (a+)+ can take exponential time; simplify the pattern."
                ) from error
            limit *= 2


@lru_cache(maxsize=CACHE_SIZE)
def check_pattern(reference: str) -> Any:
    """Return the compiled pattern, a `regex.Pattern`.

    Raises:
        ConfigError: the reference is not a regular expression.
    """
    try:
        re.compile(reference)
        # `regex` reads {e} and the like as fuzzy matching; in Python's expressions they are plain text.
        return regex.compile(_PLAIN_BRACE.sub(lambda match: match[1] or r"\{", reference))
    except (re.error, regex.error) as error:
        raise ConfigError(f"quality/regex_match: {reference!r} is not a regular expression: {error}.") from error


def token_f1(answer: str, references: Sequence[str]) -> float:
    """Return the harmonic mean of precision and recall of the words, after `normalise`.

    If the answer or the reference has no words left, it is 1 if neither has any, else 0 (as in SQuAD 2.0).
    """
    return max((_f1(answer, reference) for reference in references), default=0.0)


@lru_cache(maxsize=CACHE_SIZE)
def _f1(answer: str, reference: str) -> float:
    words, expected = Counter(normalise(answer).split()), _words(reference)
    if not words or not expected:
        return float(words == expected)
    shared = sum(min(words[word], expected[word]) for word in words.keys() & expected.keys())
    return 2 * shared / (words.total() + expected.total())


@lru_cache(maxsize=CACHE_SIZE)
def _words(reference: str) -> Counter[str]:
    return Counter(normalise(reference).split())


def numeric_match(answer: str, references: Sequence[str], tolerance: float = 1e-9) -> float:
    """Return 1 if the last number in the answer equals the last number in a reference, else 0.

    Step-by-step solutions therefore count by their result, on both sides. Numbers are in English notation: `1,234.5`,
    `-$3`, `.5`, `1e-3`. If only one side has a percent sign, 50 % equals both 50 and 0.5.

    Args:
        answer: the generated text.
        references: texts with numbers; those without numbers match nothing.
        tolerance: relative tolerance, see `math.isclose`.
    """
    if not (number := last_number(answer)):
        return 0.0
    return float(any(_equal(number, other, tolerance) for text in references if (other := last_number(text))))


@lru_cache(maxsize=CACHE_SIZE)
def last_number(text: str) -> tuple[float, bool] | None:
    """Return the last number of a text and whether it is a percentage; None: there is none."""
    if not (numbers := list(_NUMBER.finditer(text))):
        return None
    match = numbers[-1]
    size = float(match["digits"].translate(_SEPARATORS))
    return -size if match["sign"] in ("-", "−") else size, match["percent"] is not None


def _equal(one: tuple[float, bool], other: tuple[float, bool], tolerance: float) -> bool:
    if math.isclose(one[0], other[0], rel_tol=tolerance):
        return True
    share, plain = (one, other) if one[1] else (other, one)
    return share[1] and not plain[1] and math.isclose(share[0] / 100, plain[0], rel_tol=tolerance)


def chrf(answer: str, references: Sequence[str]) -> float:
    """Return the character n-gram F-score chrF2 of sacrebleu, over 100."""
    return max((_chrf(answer, reference) for reference in references), default=0.0)


def bleu(answer: str, references: Sequence[str]) -> float:
    """Return sentence BLEU of sacrebleu with effective order, over 100.

    Effective order skips n-grams that are longer than the answer. Each reference is scored alone; the best one counts.
    """
    return max((_bleu(answer, reference) for reference in references), default=0.0)


@lru_cache(maxsize=CACHE_SIZE)
def _chrf(answer: str, reference: str) -> float:
    return min(float(_chrf_against(reference).corpus_score([answer], None).score) / 100, 1.0)


@lru_cache(maxsize=CACHE_SIZE)
def _bleu(answer: str, reference: str) -> float:
    score = min(float(_bleu_against(reference).corpus_score([answer], None).score) / 100, 1.0)
    for tokenizer in _bleu_tokenizers():  # they would cache 65,536 answers each, of any length
        tokenizer.cache_clear()
    return score


@lru_cache(maxsize=CACHE_SIZE)
def _chrf_against(reference: str) -> Any:
    return _chrf_class()(references=[[reference]])


@lru_cache(maxsize=CACHE_SIZE)
def _bleu_against(reference: str) -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True, references=[[reference]])


@cache
def _bleu_tokenizers() -> tuple[Any, Any]:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
    from sacrebleu.tokenizers.tokenizer_re import TokenizerRegexp

    return Tokenizer13a.__call__, TokenizerRegexp.__call__


@cache  # created on first use: importing sacrebleu takes half a second, and not every sweep needs it
def _chrf_class() -> type[Any]:
    from sacrebleu.metrics import CHRF

    class FasterCHRF(CHRF):  # type: ignore[misc]
        """sacrebleu's chrF for one reference; counts the n-grams in half the time."""

        def _compute_segment_statistics(self, hypothesis: str, ref_kwargs: dict[str, Any]) -> list[int]:
            line, (orders,) = "".join(hypothesis.split()), ref_kwargs["ref_ngrams"]
            statistics, ngrams = [], list(line)
            for n, reference in enumerate(orders):
                if n:
                    ngrams = list(map(add, ngrams, line[n:]))
                matching = Counter(filter(reference.__contains__, ngrams))
                shared = sum(map(min, matching.values(), map(reference.__getitem__, matching)))
                statistics += [len(ngrams) if reference else 0, reference.total(), shared]
            return statistics

    return FasterCHRF


def _quality(
    compute: Callable[[str, Sequence[str]], float], source: str = "", *, yes_or_no: bool = False, **shown: int
) -> MeasureSpec:
    return MeasureSpec(
        f"quality/{compute.__name__}",
        per="references",
        range=(0.0, 1.0),
        direction="higher",
        interval="wilson" if yes_or_no else "bca",
        shown=Shown(**shown),
        compute=compute,
        source=source,
    )


SQUAD = "Rajpurkar et al. 2016, arXiv:1606.05250"
MEASURES = (
    _quality(exact_match, yes_or_no=True, terminal=10, report=10, ranking=10),
    _quality(normalised_exact_match, SQUAD, yes_or_no=True, report=20),
    _quality(contains, yes_or_no=True, terminal=20, report=30, ranking=20),
    _quality(regex_match, yes_or_no=True),
    _quality(token_f1, SQUAD, report=40),
    _quality(numeric_match, yes_or_no=True, report=50),
    _quality(chrf, "Popović 2015, doi:10.18653/v1/W15-3049", report=60),
    _quality(bleu, "Post 2018, arXiv:1804.08771"),
)
