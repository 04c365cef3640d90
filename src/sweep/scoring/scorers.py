"""Which measures of quality there are, by name: ours, and the user's own functions."""

from __future__ import annotations

import importlib
import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from sweep.checks import did_you_mean
from sweep.disk.digests import code_digest
from sweep.errors import ConfigError
from sweep.scoring import text
from sweep.scoring.text import ScorerError
from sweep.signals import Interrupted

GROUP = "quality/"


@dataclass(frozen=True, slots=True)
class Scorer:
    """A measure of an answer against references; call it like its function.

    Attributes:
        name: of the metric, `quality/…`.
        function: takes the answer and the references.
        needs_reference: whether it says something only of prompts with references.
        yes_or_no: whether it is 0 or 1.
        limits: the least and the greatest value.
        code: the digest of the module of a user's own function; None for ours.
    """

    name: str
    function: Callable[[str, Sequence[str]], float]
    needs_reference: bool = True
    yes_or_no: bool = False
    limits: tuple[float, float] = (0.0, 1.0)
    code: str | None = None

    def __call__(self, answer: str, references: Sequence[str]) -> float:
        """Return the score; NaN for a prompt without references where they are needed."""
        if self.needs_reference and not references:
            return math.nan
        return self.function(answer, references)


QUALITY: dict[str, Scorer] = {
    scorer.name: scorer
    for scorer in (
        Scorer(GROUP + "exact_match", text.exact_match, yes_or_no=True),
        Scorer(GROUP + "normalised_exact_match", text.normalised_exact_match, yes_or_no=True),
        Scorer(GROUP + "contains", text.contains, yes_or_no=True),
        Scorer(GROUP + "regex_match", text.regex_match, yes_or_no=True),
        Scorer(GROUP + "token_f1", text.token_f1),
        Scorer(GROUP + "numeric_match", text.numeric_match, yes_or_no=True),
        Scorer(GROUP + "chrf", text.chrf),
        Scorer(GROUP + "bleu", text.bleu),
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
            raise ConfigError(f"scoring.quality: {name!r} is no measure of quality. {did_you_mean(name, known)}")
        scorer = QUALITY.get(metric) or load_scorer(name)
        if scorer.name in chosen:
            raise ConfigError(f"scoring.quality: two scorers are called {scorer.name!r}; the second one is {name!r}.")
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
        raise ConfigError(f"scoring.quality: {path!r} is no scorer; write module:function.")
    if module.partition(".")[0] in sys.stdlib_module_names:  # such as os.system, which would run what is generated
        raise ConfigError(f"scoring.quality: {path!r} is of Python's own library; write a function of yours.")
    function = _import(path, module, attribute)
    parameters = _positional(path, function)
    name = GROUP + attribute.rpartition(".")[2]
    alone = len(parameters) == 1 and parameters[0].kind is not inspect.Parameter.VAR_POSITIONAL
    needs_reference = len(parameters) > 1 and parameters[1].default is inspect.Parameter.empty

    def scored(answer: str, references: Sequence[str]) -> float:
        try:
            value = float(function(answer) if alone else function(answer, references))
            if math.isinf(value):
                raise ValueError(f"{value} is no score; NaN says that there is none")
            return value
        except Exception as error:  # it is the user's, and may raise anything
            raise ScorerError(f"scoring.quality: {path} failed with {type(error).__name__}: {_line(error)}") from error

    return Scorer(
        name, scored, needs_reference, limits=(-math.inf, math.inf), code=code_digest(inspect.unwrap(function))
    )


def _import(path: str, module: str, attribute: str) -> Callable[..., Any]:
    if (here := os.getcwd()) not in sys.path:  # where `python -m sweep` looks, and the command `sweep` would not
        sys.path.append(here)
    try:
        found: Any = attrgetter(attribute)(importlib.import_module(module))
    except SyntaxError as error:
        raise ConfigError(f"scoring.quality: {path}: {error.filename}:{error.lineno}: {error.msg}.") from error
    except Interrupted:
        raise
    except (Exception, SystemExit) as error:  # as above
        raise ConfigError(
            f"scoring.quality: {path} cannot be loaded: {type(error).__name__}: {_line(error)}"
        ) from error
    if not callable(found):
        raise ConfigError(f"scoring.quality: {path} is no function but {type(found).__name__}.")
    function: Callable[..., Any] = found
    return function


def _positional(path: str, function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the parameters that can be given by position, if one or two of them are enough to call the function."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"scoring.quality: {path} does not say what it takes: {_line(error)}") from error
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [p for p in signature.parameters.values() if p.kind in (*places, inspect.Parameter.VAR_POSITIONAL)]
    for count in (2, 1):
        try:
            signature.bind(*range(count))
        except TypeError:
            continue
        return parameters
    raise ConfigError(
        f"scoring.quality: {path}{signature} must take (generation, references), or the generation alone."
    )


def _line(error: BaseException) -> str:
    return str(error).split("\n")[0]
