"""Scorers of a configuration: registered quality measures by name, and users' own functions."""

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

from sweep.console.signals import Interrupted
from sweep.errors import ConfigError
from sweep.scoring.registry import GROUPS, measures_of
from sweep.scoring.text import ScorerError
from sweep.util.digests import code_digest
from sweep.util.validators import did_you_mean

GROUP = GROUPS["quality"].prefix


@dataclass(frozen=True, slots=True)
class Scorer:
    """Quality measure of an answer against references; called like its function.

    Attributes:
        name: metric name, `quality/…`.
        function: takes the answer and the references, returns a float.
        needs_reference: whether the measure applies only to prompts with references.
        code: digest of the module of a user's function; None for a registered measure.
    """

    name: str
    function: Callable[[str, Sequence[str]], float]
    needs_reference: bool = True
    code: str | None = None

    def __call__(self, answer: str, references: Sequence[str]) -> float:
        """Return the score; NaN if references are needed and the prompt has none."""
        if self.needs_reference and not references:
            return math.nan
        return self.function(answer, references)


def registered_scorers() -> dict[str, Scorer]:
    """Return the registered quality measures by metric name."""
    return {
        measure.name: Scorer(measure.name, measure.compute)
        for measure in measures_of("quality")
        if measure.per == "references" and measure.compute is not None
    }


def select(names: Sequence[str]) -> dict[str, Scorer]:
    """Return the scorers of a configuration by metric name.

    Args:
        names: registered quality measures, with or without `quality/`, and paths of functions, see `load_scorer`.

    Raises:
        ConfigError: a name is unknown, or two scorers have the same name; see also `load_scorer`.
    """
    registered, chosen = registered_scorers(), dict[str, Scorer]()
    for name in names:
        metric = GROUP + name.removeprefix(GROUP)
        if metric not in registered and not re.search(r"[.:]", name):
            available = [key.removeprefix(GROUP) for key in registered]
            raise ConfigError(f"scoring.quality: {name!r} is not a quality measure. {did_you_mean(name, available)}")
        scorer = registered.get(metric) or load_scorer(name)
        if scorer.name in chosen:
            raise ConfigError(
                f"scoring.quality: two measures are named {scorer.name!r}; the second one is {name!r}. Rename one."
            )
        chosen[scorer.name] = scorer
    return chosen


def load_scorer(path: str) -> Scorer:
    """Return a user's scorer, `def name(generation: str, references: Sequence[str]) -> float`, as `quality/name`.

    If the function takes only the generation, or its second parameter has a default, it scores all prompts, also those
    without references. It may return NaN where it does not apply.

    Args:
        path: `module:function` or `module.function`. Modules in the current directory are found.

    Raises:
        ConfigError: the module cannot be imported, the function does not exist, or it takes other arguments.
    """
    module, colon, attribute = path.partition(":")
    if not colon:
        module, _, attribute = path.rpartition(".")
    if not module or not attribute:
        raise ConfigError(f"scoring.quality: {path!r} is not a measure. Write module:function.")
    if module.partition(".")[0] in sys.stdlib_module_names:  # such as os.system, which would execute generated text
        raise ConfigError(
            f"scoring.quality: {path!r} is in Python's standard library. Wrap it in a function of your own module."
        )
    function = _import(path, module, attribute)
    parameters = _positional(path, function)
    name = GROUP + attribute.rpartition(".")[2]
    takes_generation_only = len(parameters) == 1 and parameters[0].kind is not inspect.Parameter.VAR_POSITIONAL
    needs_reference = len(parameters) > 1 and parameters[1].default is inspect.Parameter.empty

    def score(answer: str, references: Sequence[str]) -> float:
        try:
            value = float(function(answer) if takes_generation_only else function(answer, references))
            if math.isinf(value):
                raise ValueError(f"expected a finite score or NaN, got {value}")
            return value
        except Exception as error:  # user code may raise anything
            raise ScorerError(
                f"scoring.quality: {path} failed with {type(error).__name__}: {_first_line(error)}"
            ) from error

    return Scorer(name, score, needs_reference, code_digest(inspect.unwrap(function)))


def _import(path: str, module: str, attribute: str) -> Callable[..., Any]:
    if (cwd := os.getcwd()) not in sys.path:  # `python -m sweep` searches it, the command `sweep` would not
        sys.path.append(cwd)
    try:
        target: Any = attrgetter(attribute)(importlib.import_module(module))
    except SyntaxError as error:
        raise ConfigError(f"scoring.quality: {path}: {error.filename}:{error.lineno}: {error.msg}.") from error
    except Interrupted:
        raise
    except (Exception, SystemExit) as error:  # user code may raise anything
        raise ConfigError(
            f"scoring.quality: {path} cannot be loaded: {type(error).__name__}: {_first_line(error)}"
        ) from error
    if not callable(target):
        raise ConfigError(f"scoring.quality: {path} is not a function but {type(target).__name__}.")
    function: Callable[..., Any] = target
    return function


def _positional(path: str, function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return the positional parameters, if one or two positional arguments are enough to call the function."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"scoring.quality: {path} has no readable signature: {_first_line(error)}") from error
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = [p for p in signature.parameters.values() if p.kind in (*kinds, inspect.Parameter.VAR_POSITIONAL)]
    for count in (2, 1):
        try:
            signature.bind(*range(count))
        except TypeError:
            continue
        return parameters
    raise ConfigError(
        f"scoring.quality: {path}{signature} must take (generation, references), or the generation alone."
    )


def _first_line(error: BaseException) -> str:
    return str(error).split("\n")[0]
