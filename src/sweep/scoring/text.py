"""Answers against references: measures of quality, ours and the user's.

All give one float for an answer and its references, the best over the references, in [0, 1] (a user's own scorer may
give any number, or NaN where it does not apply).
"""

from __future__ import annotations

import importlib
import inspect
import math
import os
import re
import string
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from operator import attrgetter
from typing import Any

from sweep.checks import did_you_mean
from sweep.errors import ConfigError, SweepError

GROUP = "quality/"

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
# A sign counts where it is no dash between numbers or words; digits within a word (H2O) are no number.
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w.)%])[-+−])?[$€£¥]?(?<!\w)"
    r"(?P<digits>(?:\d{1,3}(?:[,\u00a0\u202f]\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?|\.\d+)"
    r"(?P<percent>\s?(?:%|per\s?cent\b))?"
)
_SEPARATORS = str.maketrans("", "", ",\u00a0\u202f")


class ScorerError(SweepError):
    """A user's scorer failed on an answer, or gave something that is no number."""


def exact_match(answer: str, references: Sequence[str]) -> float:
    """Return 1 if the answer is one of the references, white space at both ends aside, else 0."""
    return float(answer.strip() in {reference.strip() for reference in references})


def normalise(text: str) -> str:
    """Return a text in lower case without ASCII punctuation, English articles and superfluous white space.

    As SQuAD's evaluation does (Rajpurkar et al. 2016, arXiv:1606.05250).
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def normalised_exact_match(answer: str, references: Sequence[str]) -> float:
    """Return 1 if the answer is one of the references after `normalise` (arXiv:1606.05250), else 0."""
    return float(normalise(answer) in map(normalise, references))


def contains(answer: str, references: Sequence[str]) -> float:
    """Return 1 if one of the references occurs in the answer, else 0."""
    return float(any(reference.strip() in answer for reference in references))


def regex_match(answer: str, references: Sequence[str]) -> float:
    """Return 1 if one of the references, as a Python regular expression, matches somewhere in the answer, else 0.

    `^` and `$` are the answer's ends; `(?i)` at the start of a pattern ignores case, `(?m)` and `(?s)` work as in `re`.

    Raises:
        ConfigError: a reference is no regular expression; `check_pattern` finds that beforehand.
    """
    return float(any(check_pattern(reference).search(answer) for reference in references))


@lru_cache(maxsize=4096)
def check_pattern(reference: str) -> re.Pattern[str]:
    """Return the compiled pattern.

    Raises:
        ConfigError: it is no regular expression.
    """
    try:
        return re.compile(reference)
    except re.error as error:
        raise ConfigError(f"quality/regex_match: {reference!r} is no regular expression: {error}.") from error


def token_f1(answer: str, references: Sequence[str]) -> float:
    """Return the harmonic mean of precision and recall of the words, after `normalise` (SQuAD, arXiv:1606.05250).

    Where the answer or the reference has no words left it is 1 if neither has, else 0 (as in SQuAD 2.0).
    """
    words = normalise(answer).split()
    return max((_f1(words, normalise(reference).split()) for reference in references), default=0.0)


def _f1(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    return 2 * (Counter(answer) & Counter(reference)).total() / (len(answer) + len(reference))


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
    return max((_chrf(answer, [reference]) for reference in references), default=0.0)


def bleu(answer: str, references: Sequence[str]) -> float:
    """Return sentence BLEU (Post 2018, arXiv:1804.08771) by sacrebleu, with effective order, over 100.

    The n-grams that a short answer cannot have are left out; each reference is taken alone, and the best one counts.
    """
    return max((_bleu(answer, [reference]) for reference in references), default=0.0)


# Imported on first use: sacrebleu takes half a second, and not every sweep wants it.
def _chrf(answer: str, reference: list[str]) -> float:
    return min(float(_sacrebleu("CHRF").sentence_score(answer, reference).score) / 100, 1.0)


def _bleu(answer: str, reference: list[str]) -> float:
    return min(float(_sacrebleu("BLEU", effective_order=True).sentence_score(answer, reference).score) / 100, 1.0)


@cache
def _sacrebleu(metric: str, **options: bool) -> Any:
    return getattr(importlib.import_module("sacrebleu.metrics"), metric)(**options)


@dataclass(frozen=True, slots=True)
class Scorer:
    """A measure of an answer against references; call it like its function.

    Attributes:
        name: of the metric, `quality/…`.
        function: takes the answer and the references.
        needs_reference: whether it says something only of prompts with references.
        yes_or_no: whether it is 0 or 1.
        limits: the least and the greatest value.
    """

    name: str
    function: Callable[[str, Sequence[str]], float]
    needs_reference: bool = True
    yes_or_no: bool = False
    limits: tuple[float, float] = (0.0, 1.0)

    def __call__(self, answer: str, references: Sequence[str]) -> float:
        """Return the score; NaN for a prompt without references where they are needed."""
        if self.needs_reference and not references:
            return math.nan
        return self.function(answer, references)


QUALITY: dict[str, Scorer] = {
    scorer.name: scorer
    for scorer in (
        Scorer(GROUP + "exact_match", exact_match, yes_or_no=True),
        Scorer(GROUP + "normalised_exact_match", normalised_exact_match, yes_or_no=True),
        Scorer(GROUP + "contains", contains, yes_or_no=True),
        Scorer(GROUP + "regex_match", regex_match, yes_or_no=True),
        Scorer(GROUP + "token_f1", token_f1),
        Scorer(GROUP + "numeric_match", numeric_match, yes_or_no=True),
        Scorer(GROUP + "chrf", chrf),
        Scorer(GROUP + "bleu", bleu),
    )
}


def select(names: Sequence[str]) -> dict[str, Scorer]:
    """Return scorers by metric name.

    Args:
        names: names in `QUALITY`, with or without `quality/`, and users' own functions as `load_scorer` takes them.

    Raises:
        ConfigError: a name is unknown or two scorers have the same; as of `load_scorer`.
    """
    chosen: dict[str, Scorer] = {}
    for name in names:
        metric = GROUP + name.removeprefix(GROUP)
        if metric not in QUALITY and not re.search(r"[.:]", name):
            known = [known.removeprefix(GROUP) for known in QUALITY]
            raise ConfigError(f"scoring: {name!r} is no measure of quality. {did_you_mean(name, known)}")
        scorer = QUALITY.get(metric) or load_scorer(name)
        if scorer.name in chosen:
            raise ConfigError(f"scoring: two scorers are called {scorer.name!r}; the second one is {name!r}.")
        chosen[scorer.name] = scorer
    return chosen


def load_scorer(path: str) -> Scorer:
    """Return a user's own scorer, `def name(generation: str, references: Sequence[str]) -> float`, as `quality/name`.

    If it takes the generation alone, or its second parameter has a default, it needs no references and scores all
    prompts.  It may return NaN where it does not apply.

    Args:
        path: `module:function` or `module.function`; modules of the current directory are found.

    Raises:
        ConfigError: the module cannot be imported, has no such function, or it cannot be called like that.
    """
    module, colon, attribute = path.partition(":")
    if not colon:
        module, _, attribute = path.rpartition(".")
    if not module or not attribute:
        raise ConfigError(f"scoring: {path!r} is no scorer; write module:function.")
    function = _import(path, module, attribute)
    parameters = _positional(path, function)
    name = GROUP + attribute.rpartition(".")[2]
    alone = len(parameters) == 1 and parameters[0].kind is not inspect.Parameter.VAR_POSITIONAL
    needs_reference = len(parameters) > 1 and parameters[1].default is inspect.Parameter.empty

    def scored(answer: str, references: Sequence[str]) -> float:
        try:
            return float(function(answer) if alone else function(answer, references))
        except Exception as error:  # it is the user's, and may raise anything
            raise ScorerError(f"scoring: {path} failed with {type(error).__name__}: {_line(error)}") from error

    return Scorer(name, scored, needs_reference, limits=(-math.inf, math.inf))


def _import(path: str, module: str, attribute: str) -> Callable[..., Any]:
    if (here := os.getcwd()) not in sys.path:  # where `python -m sweep` looks, and the command `sweep` would not
        sys.path.append(here)
    try:
        found: Any = attrgetter(attribute)(importlib.import_module(module))
    except SyntaxError as error:
        raise ConfigError(f"scoring: {path}: {error.filename}:{error.lineno}: {error.msg}.") from error
    except Exception as error:  # as above
        raise ConfigError(f"scoring: {path} cannot be loaded: {type(error).__name__}: {_line(error)}") from error
    if not callable(found):
        raise ConfigError(f"scoring: {path} is no function but {type(found).__name__}.")
    function: Callable[..., Any] = found
    return function


def _positional(path: str, function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters that can be given by position, if one or two of them are enough to call the function."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"scoring: {path} does not say what it takes: {_line(error)}") from error
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [p for p in signature.parameters.values() if p.kind in (*places, inspect.Parameter.VAR_POSITIONAL)]
    for count in (2, 1):
        try:
            signature.bind(*range(count))
        except TypeError:
            continue
        return parameters
    raise ConfigError(f"scoring: {path}{signature} must take (generation, references), or the generation alone.")


def _line(error: Exception) -> str:
    return str(error).split("\n")[0]
