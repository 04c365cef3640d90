"""What becomes of a point: its answers as they come back, and what the user is shown of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from sweep.costs import Costs
from sweep.engines.base import Completion
from sweep.identity import Identity
from sweep.plan import PlannedPoint
from sweep.point import Point
from sweep.redaction import redact
from sweep.request import Measured
from sweep.scoring.values import Floats, Summary

# In C where it was built with LibYAML: a point's configuration is written for each point.
DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

OWN, CONTROL = "own answer", "control's answer"  # whose answer is forced

Forced = dict[tuple[int, str, int], float]  # mean log-probability per token, by prompt, whose answer and which sample
Answers = list[tuple[Completion, ...]]  # one entry for each prompt, one completion for each sample


@dataclass(frozen=True, slots=True)
class PointResult:
    """A finished point, as the user is shown it.

    Attributes:
        index: its place in the sweep.
        values: each measure's value per prompt, [prompts], NaN where it does not apply.
    """

    index: int
    point: Point
    summaries: Mapping[str, Summary] = field(default_factory=dict)
    values: Mapping[str, Floats] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Against:
    """What a point is compared with.

    Attributes:
        answers: its control's; a control's are compared with those of its second run.  None: there are none.
        forced: the log-probabilities of the control's answers under the control's prompts.
    """

    answers: Answers | None = None
    forced: Forced = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Finished:
    """A point that has come to its end, well or not: all that it takes to score it, but for its corpus.

    Attributes:
        index: its place in the sweep.
        answers, measured: to and of each prompt; none of a point that has failed.
        forced, shared: as of `Progress`.
        tags: what is to be known of it besides, such as versions.
    """

    index: int
    point: Point
    identity: Identity
    against: Against
    answers: Answers
    measured: list[Measured]
    forced: Forced
    costs: Costs
    shared: Mapping[str, float]
    tags: Mapping[str, str]
    started: float
    ended: float
    error: str | None = None
    traceback: str | None = None

    def failed(self, reason: str, trace: str | None = None) -> Finished:
        """Return it as one that has failed."""
        return replace(self, answers=[], measured=[], error=reason, traceback=trace)


@dataclass(slots=True)
class Progress:
    """A point in the making: what has come back so far.

    Attributes:
        measured: each prompt's perturbation.
        shared: what the batch cost that the point shared.
        is_floor: whether it is a control's second run, whose answers are only compared with the first's.
        forced: the mean log-probability per token of an answer, by prompt, whose answer it is and which sample.
        awaited: how many of those have been asked for and not come back.
    """

    planned: PlannedPoint
    started: float
    answers: dict[int, tuple[Completion, ...]] = field(default_factory=dict)
    measured: dict[int, Measured] = field(default_factory=dict)
    is_floor: bool = False
    forced: Forced = field(default_factory=dict)
    awaited: int = 0
    costs: Costs = field(default_factory=Costs)
    shared: Mapping[str, float] = field(default_factory=dict)

    @property
    def answered(self) -> bool:
        """Whether all prompts have been answered."""
        return len(self.answers) == len(self.planned.prompts)

    def in_order(self) -> Answers:
        """Return the answers in the order of the prompts."""
        return [self.answers[i] for i in range(len(self.planned.prompts))]

    def end(self, against: Against, tags: Mapping[str, str], error: str | None, trace: str | None) -> Finished:
        """Return it as it has come to its end: finished, or failed with an error."""
        planned = self.planned
        return Finished(
            index=planned.index,
            point=planned.point,
            identity=planned.identity,
            against=against,
            answers=[] if error is not None else self.in_order(),
            measured=[] if error is not None else [self.measured[i] for i in range(len(planned.prompts))],
            forced=self.forced,
            costs=self.costs,
            shared=self.shared,
            tags=tags,
            started=self.started,
            ended=time.time(),
            error=error,
            traceback=trace,
        )


def as_yaml(point: Point) -> str:
    """Return the point's resolved configuration, without secrets."""
    return redact(str(yaml.dump(point.config.plain(), Dumper=DUMPER, sort_keys=False, allow_unicode=True)))
