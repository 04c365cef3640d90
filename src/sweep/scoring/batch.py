"""Measures that score all answers of a point at once, such as a judge, a classifier or BERTScore.

Plugins add them:

    @register_measure("quality/brief", range=(0, 1), direction="higher")
    def brief(items):
        \"\"\"Return 1 for an answer of at most five words, else 0.\"\"\"
        return [len(item.answer.text.split()) <= 5 for item in items]

They are computed if `scoring.measures` names them.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sweep.core.values import Scores
from sweep.engines.base import Completion
from sweep.errors import ConfigError
from sweep.inputs.prompts import Prompt
from sweep.scoring.registry import GROUPS, Aggregate, Direction, Interval, MeasureSpec, Shown, measures, register
from sweep.scoring.text import ScorerError
from sweep.util.digests import code_digest
from sweep.util.validators import did_you_mean

KEY = "scoring.measures"
SLACK = 1e-9  # rounding errors beyond the range of a measure


@dataclass(frozen=True, slots=True)
class Item:
    """One answer of a point, with all that a measure may use. Measures must not change it.

    Attributes:
        prompt: the prompt, with `id`, `text`, `messages`, `references`, and `values` of its placeholders.
        rendered: the prompt as it was tokenized, chat template included.
        answer: the answer, with `text`, `token_ids`, `finish_reason`, and the `logprobs` of `scoring.logprobs`.
        control: the control's answer to the prompt. For a control, that of its second run. None: there is none.
        sample: number of the answer among those to the prompt.
        metadata: `name` and `role` of the point, and its swept values by key.
    """

    prompt: Prompt
    rendered: str
    answer: Completion
    control: Completion | None = None
    sample: int = 0
    metadata: Mapping[str, str | float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MeasureSettings:
    """Settings for built-in measures, in addition to the answers.

    Attributes:
        scoring: the section `scoring` of the configuration, see `sweep.config.schema.ScoringConfig`.
        cache: folder for results that later sweeps reuse.
    """

    scoring: Any
    cache: Path


Compute = Callable[[Sequence[Item]], Sequence[float]]
C = TypeVar("C", bound=Compute)


def register_measure(
    name: str,
    *,
    range: tuple[float, float] = (-math.inf, math.inf),
    direction: Direction | None = None,
    yes_or_no: bool = False,
    aggregate: Aggregate = "mean",
    unit: str = "",
    title: str = "",
    source: str = "",
    shown: Shown | None = None,
) -> Callable[[C], C]:
    """Register a function as a measure of all answers of a point; a decorator.

    The function takes a sequence of `Item` and returns one number for each, NaN where the measure does not apply. A
    score must depend on its own item only. `sweep.testing.check_measure` tests this.

    Args:
        name: metric name: `quality/…`, `likelihood/…`, `divergence/…` or `health/…`.
        range: lowest and highest possible score. A score outside is an error.
        direction: which scores are better or closer to the control.
        yes_or_no: whether all scores are 0 or 1; the range is then (0, 1).
        aggregate: how the samples of a prompt make one value: `mean`, `min` or `max`.
        unit: unit of the scores.
        title: readable name; empty: made from `name`.
        source: publication that defines it.
        shown: where else it is shown. Reports show it next to the measure of `scoring.primary`.

    Raises:
        ValueError: the name is taken, or does not have this form.
    """
    groups = [group.name for group in GROUPS.values() if group.tested]
    if not re.fullmatch(rf"(?:{'|'.join(groups)})/\w+", name):
        raise ValueError(
            f"{name!r} is not a name for a measure. Expected GROUP/NAME with a group of {', '.join(groups)}."
        )

    def decorate(function: C) -> C:
        limits = (0.0, 1.0) if yes_or_no else range
        interval: Interval = "wilson" if yes_or_no else "bca"
        register(
            MeasureSpec(
                name,
                per="batch",
                range=limits,
                unit=unit,
                direction=direction,
                interval=interval,
                aggregate=aggregate,
                shown=shown or Shown(),
                compute=function,
                source=source,
                title=title,
            )
        )
        return function

    return decorate


def select_measures(names: Sequence[str]) -> list[MeasureSpec]:
    """Return the measures of `scoring.measures`, each followed by its companions.

    Raises:
        ConfigError: such a measure is neither built in nor registered by a plugin, or a name occurs twice.
    """
    registered = {measure.name: measure for measure in measures() if measure.per == "batch"}
    companions = {name for measure in registered.values() for name in measure.companions}
    chosen = []
    for number, name in enumerate(names):
        if name not in registered or name in companions:
            hint = did_you_mean(name, [known for known in registered if known not in companions])
            raise ConfigError(
                f"{KEY}: {name!r} is not a measure that a plugin has registered, or a built-in one of whole points. "
                f"{hint}"
            )
        if name in names[:number]:
            raise ConfigError(f"{KEY}: {name!r} is listed twice. Remove one.")
        chosen += [registered[name], *(registered[companion] for companion in registered[name].companions)]
    return chosen


def check_measures(scoring: Any, *, contact: bool = True) -> None:
    """Check the measures of a section `scoring` with their settings, before an engine starts.

    Args:
        scoring: see `MeasureSettings`.
        contact: whether to contact servers and the hub.

    Raises:
        ConfigError: see `select_measures`; or a measure cannot be computed with these settings.
    """
    for measure in select_measures(scoring.measures):
        if measure.check is not None:
            measure.check(scoring, contact)


def code_of(names: Sequence[str]) -> dict[str, str | None]:
    """Return the digests of the modules of plugins that define measures, by name."""
    return {
        measure.name: code_digest(inspect.unwrap(measure.compute))
        for measure in select_measures(names)
        if measure.compute is not None and not measure.configured
    }


def score_batch(
    chosen: Sequence[MeasureSpec], items: Sequence[Item], settings: MeasureSettings | None = None
) -> list[Scores]:
    """Return the scores of each item, without those that do not apply.

    Args:
        chosen: the measures.
        items: all answers of a point.
        settings: for measures that are `configured`.

    Raises:
        ScorerError: a function fails, or returns something else than one number in its range or NaN for each item.
    """
    scores: list[Scores] = [{} for _ in items]
    for measure in chosen:
        for found, value in zip(scores, checked_values(measure, items, settings), strict=True):
            if not math.isnan(value):
                found[measure.name] = value
    return scores


def checked_values(measure: MeasureSpec, items: Sequence[Item], settings: MeasureSettings | None = None) -> list[float]:
    """Return one number per item: in the measure's range, or NaN.

    Raises:
        ScorerError: see `score_batch`.
    """
    assert measure.compute is not None
    low, high = measure.range
    try:
        computed = measure.compute(items, settings) if measure.configured else measure.compute(items)
        values = [float(value) for value in computed]
        if len(values) != len(items):
            raise ValueError(f"expected {len(items)} scores, one per item, got {len(values)}")
        for value in values:
            if (not (low - SLACK <= value <= high + SLACK) and not math.isnan(value)) or math.isinf(value):
                raise ValueError(f"expected finite scores from {low:g} to {high:g} or NaN, got {value:g}")
            if measure.yes_or_no and value not in (0, 1) and not math.isnan(value):
                raise ValueError(f"expected scores of 0 or 1 or NaN, got {value:g}")
    except Exception as error:  # user code may raise anything
        first_line = str(error).split("\n")[0]
        raise ScorerError(f"{KEY}: {measure.name} failed with {type(error).__name__}: {first_line}") from error
    return values
