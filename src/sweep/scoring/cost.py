"""Costs: the length of an answer, and what a point costs, which `sweep.core.timing` accounts for."""

from __future__ import annotations

import math

from sweep.core.values import Scores
from sweep.engines.base import Completion
from sweep.scoring.registry import MeasureSpec, Shown


def _measure(answer: Completion) -> Scores:
    return {
        "cost/output_tokens": float(len(answer.token_ids)),
        "cost/truncated": float(answer.finish_reason == "length"),
    }


def _cost(name: str, about: str, unit: str = "") -> MeasureSpec:
    return MeasureSpec(f"cost/{name}", about, "point", (0.0, math.inf), unit)


MEASURES = (
    MeasureSpec(
        "cost/output_tokens",
        "mean length of an answer",
        "completion",
        unit="tokens",
        title="tokens",
        shown=Shown(terminal=90, report=10),
        compute=_measure,
    ),
    MeasureSpec(
        "cost/truncated",
        "share of answers that ended at `sampling.max_tokens`",
        "completion",
        (0.0, 1.0),
        interval="wilson",
        compute=_measure,
    ),
    _cost("requests", "requests sent, with those of teacher forcing and of given answers"),
    _cost("prompt_tokens", "their prompt tokens"),
    _cost("cached_prompt_tokens", "prompt tokens found in the engine's prefix cache"),
    _cost("generated_tokens", "tokens generated"),
    _cost("build_seconds", "seconds to build the requests", "s"),
    _cost("transform_seconds", "of these, in transforms", "s"),
    _cost("score_seconds", "seconds to score the point", "s"),
    _cost("shared/tokens_per_second", "speed of the batch that all points share", "tokens/s"),
    _cost("shared/engine_start_seconds", "seconds that engine starts took so far", "s"),
    _cost("shared/gpu_memory_gib", "GPU memory that the engine holds; only with a GPU", "GiB"),
)
