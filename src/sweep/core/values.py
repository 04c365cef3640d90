"""What measures come to."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = dict[str, float]  # of an answer, by measure
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Summary:
    """A mean over prompts and its confidence interval, whose bounds are NaN where one prompt says nothing of spread."""

    mean: float
    ci_low: float
    ci_high: float
    n: int
