"""A sweep's results as tables, for reports and notebooks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, field, fields
from typing import Any

import pandas as pd

from sweep.report.comparison import Comparison, Responses
from sweep.scoring.response import Response


@dataclass(frozen=True, slots=True)
class SweepResults:
    """What a sweep found.

    Attributes:
        sweep_id, name, command: of the sweep.
        confidence: of all intervals.
        points: one row for each point, in the order of the sweep: `point`, `name`, `role`, `control`, `axis/<key>` for
            each swept key, `error`, and for each measure its mean `m` with `m/ci_low`, `m/ci_high`, `m/n`, and against
            the control `m/difference`, `m/difference/ci_low`, `m/difference/ci_high`, `m/p`, `m/q`, `m/significant`.
        generations: one row for each generation: `point`, `name`, `role`, `axis/<key>`, `prompt_id`, `prompt`,
            `sample`, `generation`, `reference`, `finish_reason`, `token_ids`, and a column for each measure.
        responses: one row for each control, numeric axis, measure and side: `control` (its `point`), `axis`,
            `measure`, `side` (`above` or `below` the neutral dose; `all` where there is none), `neutral`, `rho`,
            `first_effective`, `breaking_point`, the last three with `/ci_low` and `/ci_high`, and `floor`.
    """

    sweep_id: str
    name: str
    command: str
    confidence: float
    points: pd.DataFrame
    generations: pd.DataFrame
    responses: pd.DataFrame = field(default_factory=lambda: _responses({}))

    @property
    def axes(self) -> list[str]:
        """The swept keys."""
        return [column.removeprefix("axis/") for column in self.points.columns if column.startswith("axis/")]


def tables(
    comparison: Comparison, generations: pd.DataFrame, *, sweep_id: str, name: str, command: str, confidence: float
) -> SweepResults:
    """Lay a comparison out as tables, beside the generations that it is of."""
    points = [_point_row(comparison, i) for i in range(len(comparison.results))]
    responses = _responses(comparison.responses_of)
    return SweepResults(sweep_id, name, command, confidence, pd.DataFrame(points), generations, responses)


def _responses(found: Mapping[int, Responses]) -> pd.DataFrame:
    columns = ["control", "axis", "measure", "side", *(_column(attribute.name) for attribute in fields(Response))]
    rows = [(control, *key, *astuple(r)) for control, own in found.items() for key, r in own.items()]
    return pd.DataFrame(rows, columns=columns).astype({"neutral": float})


def _point_row(comparison: Comparison, place: int) -> dict[str, Any]:
    result = comparison.results[place]
    row: dict[str, Any] = {
        "point": result.index,
        "name": result.point.name,
        "role": result.point.role,
        "control": comparison.controls.get(result.index),
        "error": result.error,
    }
    row |= {f"axis/{key}": value for key, value in result.point.axes}
    for measure, summary in result.summaries.items():
        row |= {_column(f"{measure}_{key}" if key != "mean" else measure): v for key, v in asdict(summary).items()}
    for measure, difference in comparison.differences.get(result.index, {}).items():
        row[f"{measure}/difference"] = difference.mean
        row[f"{measure}/difference/ci_low"] = difference.ci_low
        row[f"{measure}/difference/ci_high"] = difference.ci_high
        row[f"{measure}/p"], row[f"{measure}/q"] = difference.p, difference.q
        row[f"{measure}/significant"] = difference.significant
    return row


def _column(key: str) -> str:
    for end in ("ci_low", "ci_high", "n"):
        key = key.removesuffix(f"_{end}") + f"/{end}" if key.endswith(f"_{end}") else key
    return key
