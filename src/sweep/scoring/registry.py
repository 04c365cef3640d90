"""Registry of measures. A `MeasureSpec` is the only definition of a measure. Tables and plots query the registry.

Metric names are `group/measure`. The built-in ones are the tuples `MEASURES` of the modules in `FAMILIES`, which are
imported on the first query, so that commands without measures start faster. Plugins add others with
`sweep.scoring.batch.register_measure`.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import import_module
from operator import itemgetter
from typing import Any, Literal

Per = Literal["references", "completion", "pair", "batch", "prompt", "point"]
Direction = Literal["higher", "lower", "zero"]
Aggregate = Literal["mean", "min", "max"]
Interval = Literal["bca", "wilson", "by_values", "share"]
Place = Literal["terminal", "report", "description", "live", "ranking", "primary"]

# In the order of the measures: columns of tables are in this order too.
FAMILIES = (
    *("text", "samples", "likelihood", "divergence", "distributions", "forced", "similarity", "health", "judge"),
    *("perturbation", "recovery", "cost"),
)


@dataclass(frozen=True, slots=True)
class Group:
    """Group of measures: the first part of their names.

    Attributes:
        name: the part before the slash.
        main: number of its measures that reports show initially.
        tested: whether differences from the control are tested, with one correction for the whole group.
        headline: whether it is plotted, and shown with intervals in the terminal.
        floor: whether the control's own value is the noise floor, instead of a value to compare with.
        breaks: whether lower is known to be worse, so that there is a breaking point.
        range: lowest and highest possible value of a measure that is not registered.
    """

    name: str
    main: int = 1
    tested: bool = False
    headline: bool = False
    floor: bool = False
    breaks: bool = False
    range: tuple[float, float] = (0.0, math.inf)

    @property
    def prefix(self) -> str:
        """The group's name with the slash that follows it in the names of its measures."""
        return f"{self.name}/"


# In the order of tables and reports.
GROUPS: dict[str, Group] = {
    group.name: group
    for group in (
        # A user's own function has unknown limits.
        Group("quality", main=2, tested=True, headline=True, breaks=True, range=(-math.inf, math.inf)),
        # Log-probabilities have no breaking point: half of a negative number is larger.
        Group("likelihood", main=2, tested=True, headline=True, range=(-math.inf, math.inf)),
        Group("divergence", main=4, tested=True, headline=True, floor=True),
        Group("health", tested=True),
        Group("perturbation"),
        Group("cost"),
    )
}


@dataclass(frozen=True, slots=True)
class Shown:
    """Display places of a measure: its rank in each, ascending; None if it is not shown there.

    Attributes:
        terminal: columns of the table that a sweep prints at its end.
        report: within its group, measures that the report shows initially. Others follow.
        description: columns of the table in the sweep's description, and charts of its view in MLflow.
        live: lines that are printed as points finish.
        ranking: preference as the measure that ranks points, without `scoring.primary`.
        primary: values of `scoring.primary` that every sweep can have.
    """

    terminal: int | None = None
    report: int | None = None
    description: int | None = None
    live: int | None = None
    ranking: int | None = None
    primary: int | None = None


@dataclass(frozen=True, slots=True)
class MeasureSpec:
    """Definition of a measure. Immutable; used by any thread.

    Attributes:
        name: metric name, `group/measure`.
        about: its meaning, as a noun phrase without a full stop; empty: the first sentence of `compute`'s docstring.
        per: what it measures, which decides the arguments of `compute`:
            `references`: an answer against references; `compute(text, references)` returns the score.
            `completion`: an answer by itself; `compute(completion)` returns the scores of all measures that share it.
            `pair`: an answer and the control's; `compute(completion, control, top_k)` likewise. Forced answers: None.
            `batch`: all answers of a point; `compute(items)` returns a score for each, see `sweep.scoring.batch`. It is
                computed if `scoring.measures` names it.
            `prompt`, `point`: measured elsewhere, while requests are built and run, or over all samples of a prompt;
                `compute` is None.
        range: lowest and highest possible value. Confidence intervals are clipped to it.
        unit: unit of its values; empty: a plain number.
        direction: which values are better or closer to the control; None: neither.
        interval: `wilson` for values of 0 or 1, otherwise `bca`. `by_values`: decided for each point by its values.
            `share`: `bca`, but with an exact bound where all prompts have 0, or all have 1.
        aggregate: how the samples of a prompt make one value. Over prompts it is always the mean.
        shown: where it is shown.
        quantiles: quantiles over prompts that are shown next to its mean, in (0, 1); for measures with a long tail.
        implied: whether it says nothing of an answer whose tokens are those of the control's.
        compute: function of the answer. One function may compute several measures.
        source: publication that defines it.
        title: readable name; empty: made from `name`.
        configured: whether `compute` of a `batch` takes the `MeasureSettings` as its second argument.
        check: of a `batch`, checks the section `scoring` before an engine starts, and raises a `ConfigError`. Its
            second argument is whether it may contact servers.
        companions: other measures of a `batch` that are computed with it.
    """

    name: str
    about: str = ""
    per: Per = "references"
    range: tuple[float, float] = (0.0, math.inf)
    unit: str = ""
    direction: Direction | None = None
    interval: Interval = "bca"
    aggregate: Aggregate = "mean"
    shown: Shown = Shown()
    quantiles: tuple[float, ...] = ()
    implied: bool = False
    compute: Callable[..., Any] | None = field(default=None, repr=False)
    source: str = ""
    title: str = ""
    configured: bool = False
    check: Callable[[Any, bool], None] | None = field(default=None, repr=False)
    companions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        group, _, rest = self.name.partition("/")
        if group not in GROUPS or not rest:
            raise ValueError(
                f"{self.name!r} is not a measure. Expected GROUP/NAME with a group of {', '.join(GROUPS)}."
            )
        if not self.range[0] < self.range[1]:
            raise ValueError(f"{self.name}: the range {self.range} is empty")
        if self.yes_or_no and self.range != (0.0, 1.0):
            raise ValueError(f"{self.name}: interval='wilson' needs range=(0, 1), got {self.range}")
        if not self.about and self.compute is not None:
            object.__setattr__(self, "about", _summary(self.compute))
        if not self.title:
            object.__setattr__(self, "title", rest.replace("_", " ").replace("/", ", "))

    @property
    def group(self) -> Group:
        """The group that its name begins with."""
        return GROUPS[self.name.partition("/")[0]]

    @property
    def yes_or_no(self) -> bool:
        """Whether all scores are 0 or 1."""
        return self.interval == "wilson"

    @property
    def may_be_yes_or_no(self) -> bool:
        """Whether values that are all 0 or 1 are those of a yes-or-no measure, not of a scale that they end."""
        return self.interval in ("wilson", "by_values")


_measures: dict[str, MeasureSpec] = {}


def register(*measures: MeasureSpec) -> None:
    """Register measures, in this order. The same one may be registered again, as on a second import.

    Raises:
        ValueError: another measure has the same name.
    """
    _load_families()
    _add(measures)


@cache
def _load_families() -> None:
    for family in FAMILIES:
        _add(import_module(f"sweep.scoring.{family}").MEASURES)


def _add(measures: Iterable[MeasureSpec]) -> None:
    for measure in measures:
        known = _measures.get(measure.name)
        if known is not None and _origin(known) != _origin(measure):
            raise ValueError(f"The measure name {measure.name!r} is taken by {_origin(known)}. Choose another name.")
        _measures[measure.name] = measure
    for query in (spec, shown_in, computations):
        query.cache_clear()


def _origin(measure: MeasureSpec) -> str:
    compute = measure.compute
    return measure.about if compute is None else f"{compute.__module__}.{compute.__qualname__}"


def _summary(function: Callable[..., Any]) -> str:
    """Return the first sentence of a docstring, without its verb."""
    paragraph = " ".join(inspect.cleandoc(function.__doc__ or "").split("\n\n")[0].split())
    first = re.split(r"(?<=[a-z)])\. ", paragraph)[0].rstrip(".")
    return re.sub(r"^Return (the )?", "", first)


def measures() -> list[MeasureSpec]:
    """Return all registered measures, in the order of their groups and of registration."""
    _load_families()
    order = list(GROUPS)
    return sorted(_measures.values(), key=lambda measure: order.index(measure.group.name))


def measures_of(group: str) -> list[MeasureSpec]:
    """Return the registered measures of a group, in the order of registration."""
    return [measure for measure in measures() if measure.group.name == group]


@cache
def spec(name: str) -> MeasureSpec:
    """Return the definition of a measure. One that is not registered gets a definition from its name.

    Such measures are users' own functions in `scoring.quality`, measures of older archives, those of one step of a
    composition (`perturbation/0/dose_achieved`), which are measured like those of the whole, and those of one number
    (`quality/pass_at_4`), which are registered with the letter k.

    Raises:
        ValueError: the name does not begin with a group.
    """
    _load_families()
    if name in _measures:
        return _measures[name]
    group, _, rest = name.partition("/")
    whole = _measures.get(f"{group}/{rest.rpartition('/')[2]}") if re.fullmatch(r"\d+/[^/]+", rest) else None
    if whole is not None:
        return replace(whole, name=name, title="", shown=Shown())
    if (of_k := re.fullmatch(r"(.*_at_)(\d+)", name)) and (family := _measures.get(f"{of_k[1]}k")) is not None:
        return replace(family, name=name, title=re.sub("k$", of_k[2], family.title), shown=Shown())
    limits = GROUPS[group].range if group in GROUPS else (0.0, math.inf)
    # A user's function may return 0 and 1, or any number. Its values tell.
    return MeasureSpec(name, range=limits, interval="by_values" if group == "quality" else "bca")


@cache
def shown_in(place: Place) -> tuple[str, ...]:
    """Return the names of the measures that are shown in a place, in its order."""
    ranked = [(rank, measure.name) for measure in measures() if (rank := getattr(measure.shown, place)) is not None]
    return tuple(name for _, name in sorted(ranked, key=itemgetter(0)))


@cache
def computations(per: Per) -> tuple[Callable[..., Any], ...]:
    """Return the distinct functions that compute the measures of one kind, in order."""
    functions = (measure.compute for measure in measures() if measure.per == per and measure.compute is not None)
    return tuple(dict.fromkeys(functions))
