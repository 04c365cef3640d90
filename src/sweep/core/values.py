"""Value types of measures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = dict[str, float]  # one completion's scores, by measure
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Summary:
    """Mean over prompts with its confidence interval. The bounds are NaN for a single prompt, which has no spread."""

    mean: float
    ci_low: float
    ci_high: float
    n: int
