"""Recovery against utility: what attackers recover at each point, next to the measure that is shown first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from sweep.report.measures import main_measures, measures, title
from sweep.report.overview import Cell, Column, Row, Table
from sweep.report.recovery_notes import PREFIX, ROWS_KEPT, missing_reason
from sweep.report.results import SweepResults
from sweep.scoring.attacks import ATTACKS
from sweep.scoring.registry import spec

UTILITY = ("quality", "divergence")
Value = tuple[float, float, float]  # mean, and the lower and upper bound of its interval; NaN if missing


@dataclass(frozen=True, slots=True)
class RecoveryPoint:
    """One point of the sweep.

    Attributes:
        name: the point's name.
        role: `control` or `point`.
        recovered: mean share of recovered tokens by attack; without attacks that do not apply.
        random: the same for random rows, of a control.
        utility: mean of the utility.
        reason: why no token can be recovered by position, or empty.
    """

    name: str
    role: str
    recovered: Mapping[str, Value]
    random: Mapping[str, Value]
    utility: Value
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RecoveryResults:
    """Recovery and utility of all points.

    Attributes:
        attacks: attacks with a value at any point, in order.
        utility: measure that says how useful the answers still are.
        points: in the order of the report.
    """

    attacks: list[str]
    utility: str
    points: list[RecoveryPoint]

    @property
    def notes(self) -> list[str]:
        """One line per reason for missing values, and one on the negative controls."""
        lines: dict[str, list[str]] = {}
        for point in self.points:
            if point.reason:
                lines.setdefault(point.reason, []).append(point.name)
        notes = [f"{reason}: {', '.join(names)}" for reason, names in lines.items()]
        for point in self.points:
            shares = [f"{attack} {value[0]:.2g}" for attack, value in point.random.items()]
            notes += [f"Random rows in place of the rows of {point.name}: {', '.join(shares)}"] if shares else []
        return notes

    def table(self) -> Table:
        """Return one row per point: the share that each attack recovers, and the utility."""
        columns = [Column(f"{PREFIX}{attack}", f"recovered, {attack}", True) for attack in self.attacks]
        columns.append(Column(self.utility, title(self.utility), True))
        rows = [
            Row(
                point.name,
                point.role,
                "",
                [*(_cell(point.recovered.get(attack)) for attack in self.attacks), _cell(point.utility)],
            )
            for point in self.points
        ]
        return Table(columns, rows)


def recovery_results(results: SweepResults, order: list[int]) -> RecoveryResults | None:
    """Return recovery and utility of all points that did not fail; None if `scoring.recovery` was off.

    Args:
        results: the sweep's results.
        order: positions in `results.points`.
    """
    attacks = [attack for attack in ATTACKS if f"{PREFIX}{attack}" in results.points.columns]
    utility = utility_measure(results)
    if not attacks or utility is None:
        return None
    records = results.points.to_dict("records")
    points = [
        _point(records[position], attacks, utility) for position in order if pd.isna(records[position].get("error"))
    ]
    return RecoveryResults(attacks, utility, points)


def utility_measure(results: SweepResults) -> str | None:
    """Return the first measure that the report shows of quality, or else of divergence; None if there is neither."""
    names = measures(results.points.columns)
    return next(iter(main_measures(names, UTILITY, results.first)), None)


def _point(record: Mapping[Any, Any], attacks: list[str], utility: str) -> RecoveryPoint:
    recovered = dict(_present(record, {attack: f"{PREFIX}{attack}" for attack in attacks}))
    random = dict(_present(record, {attack: f"{PREFIX}{attack}_random" for attack in attacks}))
    kept = record.get(ROWS_KEPT, math.nan)
    reason = missing_reason(float(kept), bool(recovered))
    return RecoveryPoint(str(record["name"]), str(record["role"]), recovered, random, _value(record, utility), reason)


def _present(record: Mapping[Any, Any], names: Mapping[str, str]) -> Iterator[tuple[str, Value]]:
    for attack, name in names.items():
        value = _value(record, name)
        if not math.isnan(value[0]):
            yield attack, value


def _value(record: Mapping[Any, Any], name: str) -> Value:
    mean, low, high = (record.get(f"{name}{end}", math.nan) for end in ("", "/ci_low", "/ci_high"))
    return tuple(math.nan if pd.isna(number) else float(number) for number in (mean, low, high))  # type: ignore[return-value]


def _cell(value: Value | None) -> Cell:
    if value is None or math.isnan(value[0]):
        return Cell("–")
    mean, low, high = value
    return Cell(f"{mean:.3g}", "" if math.isnan(low) else f" [{low:.3g}, {high:.3g}]")


def is_share(utility: str) -> bool:
    """Whether all values of the utility are between 0 and 1."""
    return spec(utility).range == (0.0, 1.0)
