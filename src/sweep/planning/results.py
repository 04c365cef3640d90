"""Results: a point's answers while they arrive, the input for its scoring, and the result shown to the user."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from sweep.core import provenance
from sweep.core.timing import Costs
from sweep.core.values import Floats, Summary
from sweep.engines.base import Completion, Origin
from sweep.inputs.given_answers import GivenAnswers
from sweep.planning.plan import PlannedPoint
from sweep.planning.request_builder import Measured
from sweep.points.fingerprint import PointFingerprint
from sweep.points.point import Point
from sweep.util.redaction import redact

# Written for each point, so use LibYAML's fast dumper where PyYAML has it.
DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

# Source of a forced answer, and the beginning of its kind in the journal. Given answers are references and choices.
OWN, CONTROL, GIVEN = "own answer", "control's answer", "given answer"

Forced = dict[tuple[int, str, int], float]  # mean log-probability per token, by prompt, source and sample
Answers = list[tuple[Completion, ...]]  # one entry per prompt, one completion per sample


@dataclass(frozen=True, slots=True)
class PointResult:
    """The result of a finished point, as shown to the user.

    Attributes:
        index: position in the sweep.
        point: the point.
        summaries: summary of each measure.
        values: values of each measure: (prompts,), NaN where the measure does not apply.
        error: reason of the failure, or None.
        prompt_ids: ids of the prompts, in the order of the values; empty if they are not known.
    """

    index: int
    point: Point
    summaries: Mapping[str, Summary] = field(default_factory=dict)
    values: Mapping[str, Floats] = field(default_factory=dict)
    error: str | None = None
    prompt_ids: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class ControlAnswers:
    """The answers that a point is compared with.

    Attributes:
        answers: the control's answers, or for a control those of its second run. None: there are none.
        forced: log-probabilities of the control's answers under the control's own prompts.
    """

    answers: Answers | None = None
    forced: Forced = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Finished:
    """A finished or failed point: all the input for scoring it, except its prompts.

    Attributes:
        index: position in the sweep.
        point: the point.
        point_fingerprint: its fingerprint.
        control: the answers that it is compared with.
        answers: one entry per prompt, empty for a failed point.
        measured: the perturbation of each prompt, empty for a failed point.
        forced: see `Progress`.
        costs: tokens, requests and time of this point.
        shared: see `Progress`.
        tags: further tags, such as versions.
        started: seconds since the epoch.
        ended: seconds since the epoch.
        error: reason of the failure, or None.
        traceback: traceback of the failure, if there is one.
        given: see `PlannedPoint`.
    """

    index: int
    point: Point
    point_fingerprint: PointFingerprint
    control: ControlAnswers
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
    given: Sequence[GivenAnswers] = ()

    def failed(self, reason: str, trace: str | None = None) -> Finished:
        """Return a copy that has failed for this reason."""
        return replace(self, answers=[], measured=[], error=reason, traceback=trace)


@dataclass(slots=True)
class Progress:
    """A begun point: the answers received so far. Owned by the main thread.

    Attributes:
        planned: the point.
        started: seconds since the epoch.
        answers: completions by index of the prompt.
        measured: perturbation by index of the prompt.
        is_floor: whether this is a control's second run, which only measures the noise floor.
        forced: mean log-probability per token of forced answers, by prompt, source and sample.
        awaited: number of forced answers that were requested and have not arrived.
        costs: tokens, requests and time of this point.
        shared: costs of the batch, which its points share.
        origins: engines that generated the answers, in order of arrival.
        began: `started` by the monotonic clock, so that setting the system clock cannot make durations negative.
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
    origins: dict[Origin, None] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    @property
    def origin_tags(self) -> dict[str, str]:
        """The origins of the answers as tags. There are several after a resume with `sweep.resume=force`."""
        engines = dict.fromkeys(origin.engine for origin in self.origins)
        served = dict.fromkeys(origin.served for origin in self.origins if origin.served)
        tags = {provenance.ENGINE: " and ".join(engines), provenance.SERVED: " and ".join(served)}
        return {key: text for key, text in tags.items() if text}

    @property
    def answered(self) -> bool:
        """Whether all prompts are answered."""
        return len(self.answers) == len(self.planned.prompts)

    def in_order(self) -> Answers:
        """Return the answers in the order of the prompts."""
        return [self.answers[i] for i in range(len(self.planned.prompts))]

    def end(self, control: ControlAnswers, tags: Mapping[str, str], error: str | None, trace: str | None) -> Finished:
        """Return the point as finished, or as failed if there is an error."""
        planned = self.planned
        return Finished(
            index=planned.index,
            point=planned.point,
            point_fingerprint=planned.point_fingerprint,
            control=control,
            answers=[] if error is not None else self.in_order(),
            measured=[] if error is not None else [self.measured[i] for i in range(len(planned.prompts))],
            forced=self.forced,
            costs=self.costs,
            shared=self.shared,
            tags=tags,
            started=self.started,
            ended=self.started + time.monotonic() - self.began,
            error=error,
            traceback=trace,
            given=planned.given,
        )


def given_kinds(planned: PlannedPoint, prompt: int) -> list[str]:
    """Return the journal's kinds of a prompt's given answers, in the order of their sequences.

    The kind names an answer by its tokens. Answers that are references and choices, or are kept when others are added,
    are thus scored once.
    """
    sequences = planned.given[prompt].sequences if planned.given else ()
    return [f"{GIVEN} {hashlib.sha256(repr(tokens).encode()).hexdigest()[:16]}" for tokens in sequences]


def as_yaml(point: Point) -> str:
    """Return the point's resolved configuration as YAML, without secrets."""
    return redact(str(yaml.dump(point.config.plain(), Dumper=DUMPER, sort_keys=False, allow_unicode=True)))
