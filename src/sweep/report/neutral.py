"""Neutral dose: the value of an axis at which its transform changes nothing."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sweep.transforms import Identity, Pipeline


def neutral_dose(axis: str, pipelines: Iterable[Pipeline]) -> tuple[float | None, bool]:
    """Return the neutral dose of an axis, and whether all other transforms of the pipelines change nothing.

    The dose is None unless the axis is the dose of a transform, `transform.<dose>`, or of a step of a composition,
    `transform.<i>.<dose>`, with one neutral value for all points.
    """
    results = [_neutral_in(axis, pipeline) for pipeline in pipelines]
    doses = {dose for dose, _ in results}
    return doses.pop() if len(doses) == 1 else None, all(alone for _, alone in results)


def _neutral_in(axis: str, pipeline: Pipeline) -> tuple[float | None, bool]:
    name = re.fullmatch(r"transform\.(?:(\d+)\.)?(\w+)", axis)
    step = int(name[1] or 0) if name else 0
    transforms = [stage.transform for stage in pipeline.stages]
    if name is None or step >= len(transforms) or transforms[step].dose != name[2]:
        return None, False
    others = transforms[:step] + transforms[step + 1 :]
    return transforms[step].neutral, all(other.is_neutral or isinstance(other, Identity) for other in others)
