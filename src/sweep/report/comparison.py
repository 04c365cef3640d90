"""Points against their controls and along their axes: from what was measured to what may be said of it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from sweep.outcome import PointResult
from sweep.scoring.measures import YES_OR_NO
from sweep.scoring.response import Response, Side, dose_response
from sweep.scoring.significance import benjamini_hochberg, p_values
from sweep.scoring.statistics import Intervals, paired_difference
from sweep.scoring.values import Floats
from sweep.transforms import Identity, Pipeline

COMPARED = ("quality/", "divergence/", "health/")
LEVEL = 0.05  # of the false discovery rate, below which a difference is called significant


Responses = Mapping[tuple[str, str, Side], Response]


@dataclass(frozen=True, slots=True)
class Difference:
    """A point's mean difference to its control in one measure.

    Attributes:
        mean, ci_low, ci_high: of the differences, prompt by prompt.
        p: of no difference, two-sided.
        q: the same after Benjamini and Hochberg, over all points and all measures of one group.
    """

    mean: float
    ci_low: float
    ci_high: float
    p: float
    q: float

    @property
    def significant(self) -> bool:
        """Whether it is taken for more than chance."""
        return self.q < LEVEL


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a sweep's points say beside each other.

    Attributes:
        results: in the order of the sweep.
        controls: the index of each point's control, by index.
        differences: by index and measure.
        responses_of: of the points of each control, by its index: by axis, measure, and side of the neutral dose.
    """

    results: Sequence[PointResult]
    controls: Mapping[int, int] = field(default_factory=dict)
    differences: Mapping[int, Mapping[str, Difference]] = field(default_factory=dict)
    responses_of: Mapping[int, Responses] = field(default_factory=dict)

    @property
    def responses(self) -> Responses:
        """The responses, if there is one control; along the axes of several there is no one curve."""
        return next(iter(self.responses_of.values())) if len(self.responses_of) == 1 else {}


def compare(results: Iterable[PointResult], confidence: float) -> Comparison:
    """Compare all points with their controls, and describe the responses to each swept number."""
    ordered = sorted(results, key=lambda result: result.index)
    groups: dict[str, list[PointResult]] = {}
    for result in ordered:
        if result.values:
            groups.setdefault(result.point.control_key, []).append(result)
    controls: dict[int, int] = {}
    found: dict[tuple[int, str], tuple[Intervals, int, float]] = {}
    responses: dict[int, Responses] = {}
    for group in groups.values():
        control = next((result for result in group if result.point.is_control), None)
        if control is None:
            continue
        others = [result for result in group if result is not control]
        controls |= {result.index: control.index for result in others}
        for measure in _measures(others):
            found |= _differences(measure, others, control, confidence)
        responses[control.index] = dict(_responses(others, control, confidence))
    return Comparison(ordered, controls, _adjusted(found), responses)


def _measures(points: Sequence[PointResult]) -> list[str]:
    names = dict.fromkeys(name for result in points for name in result.values)
    return [name for name in names if name.startswith(COMPARED)]


def _table(measure: str, points: Sequence[PointResult], prompts: int) -> Floats:
    empty = np.full(prompts, math.nan)
    return np.stack([result.values.get(measure, empty) for result in points])


def _differences(
    measure: str, points: Sequence[PointResult], control: PointResult, confidence: float
) -> Iterator[tuple[tuple[int, str], tuple[Intervals, int, float]]]:
    prompts = len(next(iter(control.values.values())))
    # What a control has of a divergence is its second run's.
    table, own = _table(measure, points, prompts), _table(measure, [control], prompts)[0]
    yes_or_no = measure in YES_OR_NO
    difference = paired_difference(table, own, confidence, yes_or_no=yes_or_no)
    p = p_values(table, own, yes_or_no=yes_or_no, permutations=1999)
    for row, result in enumerate(points):
        if difference.n[row]:
            yield (result.index, measure), (difference, row, float(p[row]))


def _adjusted(
    found: Mapping[tuple[int, str], tuple[Intervals, int, float]],
) -> dict[int, dict[str, Difference]]:
    differences: dict[int, dict[str, Difference]] = {}
    for group in COMPARED:
        keys = [key for key in found if key[1].startswith(group)]
        adjusted = benjamini_hochberg([found[key][2] for key in keys])
        for (index, measure), q in zip(keys, adjusted, strict=True):
            of, row, p = found[index, measure]
            bounds = float(of.mean[row]), float(of.ci_low[row]), float(of.ci_high[row])
            differences.setdefault(index, {})[measure] = Difference(*bounds, p, float(q))
    return differences


def _responses(
    points: Sequence[PointResult], control: PointResult, confidence: float
) -> Iterator[tuple[tuple[str, str, Side], Response]]:
    """Yield the responses along each axis on which numbers were swept and nothing else with them."""
    axes = dict.fromkeys(key for result in points for key, value in result.point.axes if isinstance(value, float))
    prompts = len(next(iter(control.values.values())))
    for axis in axes:
        if axis.endswith("seed"):  # a name, not a dose
            continue
        values = [(dict(result.point.axes).get(axis), result) for result in points]
        # An infinite dose has no place on an axis; it is the neutral one wherever transforms know one.
        doses = [(value, result) for value, result in values if isinstance(value, float) and math.isfinite(value)]
        if len({dose for dose, _ in doses}) < 2:
            continue
        swept = [result for _, result in doses]
        neutral, control_is_neutral = _neutral(axis, [result.point.config.transform for result in swept])
        for measure in _measures(points):
            own = _table(measure, [control], prompts)[0]
            if np.isnan(own).all():
                continue
            # The control's own divergence is its second run's: what is compared with it is clear of the floor.
            found = dose_response(
                [dose for dose, _ in doses],
                _table(measure, swept, prompts),
                own,
                neutral=neutral,
                control_is_neutral=control_is_neutral,
                yes_or_no=measure in YES_OR_NO,
                confidence=confidence,
                resamples=1000,
            )
            floor = float(np.nanmean(own)) if measure.startswith("divergence/") else math.nan
            for side, response in found.items():
                # Only of quality it is known that less is worse.
                own_breaking = response if measure.startswith("quality/") else response.without_breaking_point()
                yield (axis, measure, side), replace(own_breaking, floor=floor)


def _neutral(axis: str, pipelines: Iterable[Pipeline]) -> tuple[float | None, bool]:
    """Return the dose of an axis at which its transform changes nothing, and whether the others change nothing either.

    There is none unless the axis is the dose of a transform, `transform.<dose>`, or of a step of a composition,
    `transform.<i>.<dose>`, with one neutral value for all points.
    """
    found = [_neutral_in(axis, pipeline) for pipeline in pipelines]
    doses = {dose for dose, _ in found}
    return doses.pop() if len(doses) == 1 else None, all(alone for _, alone in found)


def _neutral_in(axis: str, pipeline: Pipeline) -> tuple[float | None, bool]:
    name = re.fullmatch(r"transform\.(?:(\d+)\.)?(\w+)", axis)
    place = int(name[1] or 0) if name else 0
    transforms = [stage.transform for stage in pipeline.stages]
    if name is None or place >= len(transforms) or transforms[place].dose != name[2]:
        return None, False
    others = transforms[:place] + transforms[place + 1 :]
    return transforms[place].neutral, all(other.is_neutral or isinstance(other, Identity) for other in others)
