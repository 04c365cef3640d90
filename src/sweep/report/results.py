"""A sweep's results as tables, for reports and notebooks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, fields
from typing import Any

import pandas as pd

from sweep.planning.results import PointResult
from sweep.report.comparison import Comparison, SeriesResponse
from sweep.report.contrast_tables import contrast_table
from sweep.report.contrast_text import baseline_notes, contrast_rows
from sweep.report.contrasts import Contrasts
from sweep.report.judge_notes import judge_notes
from sweep.report.marks import legend, null_findings
from sweep.report.paired_differences import Difference
from sweep.report.replicates import Row
from sweep.report.run_summary import null_measures, power_notes
from sweep.report.series import Series, TreatedPoint, find_series
from sweep.report.turning_tables import front_table, quantiles, turning_table
from sweep.scoring.response import Response
from sweep.storage.archive import encodable


@dataclass(frozen=True, slots=True)
class SweepResults:
    """Results of a sweep as tables.

    Attributes:
        sweep_id: the sweep's id.
        name: the sweep's name.
        command: the command that ran the sweep.
        confidence: level of all intervals.
        points: one row per point, in the order of the sweep: `point`, `name`, `role`, `control`, `axis/<key>` for each
            swept key, `error`. Each measure `m` has its mean `m`, `m/ci_low`, `m/ci_high` and `m/n`. Against the
            control it has `m/difference`, `m/difference/ci_low`, `m/difference/ci_high`, `m/p`, `m/q`,
            `m/significant` and, for a yes-or-no measure, `m/gained` and `m/lost`. With `report.baseline` these are
            against the point in column `baseline`. KL divergences have quantiles over prompts, `m/quantile_50`,
            `m/quantile_90` and `m/quantile_99`. For a control, `axis/<key>` is the neutral dose, if the axis has
            one.
        rows: one row per row of the report's table, where points that differ in their seeds alone are pooled. The
            columns are those of `points`, with `point` of the first point, `points` (the indices of all) and `seeds`.
            A measure `m` has `m/seed_sd` (standard deviation between the seeds' means). Against the control or
            baseline it has `m/detectable` (smallest difference that the prompts could show) and, with
            `scoring.equivalence`, `m/equivalence` (the verdict), `m/equivalence/margin`, `m/equivalence/ci_low`,
            `m/equivalence/ci_high`.
        generations: one row per generation: `point`, `name`, `role`, `axis/<key>`, `prompt_id`, `prompt_digest`,
            `prompt`, `sample`, `generation`, `reference`, `finish_reason`, `token_ids`, and a column per measure. If
            references or choices are scored, `given_logprobs` has their log-probabilities in nats, as a JSON mapping.
            `prompt_digest` is equal for prompts with the same content apart from the system message; several files may
            use the same `prompt_id`. First samples of controls have `rendered_prompt`, the prompt as the model receives
            it. Those of other points have `span`, its characters [start, stop) that transforms may change, as JSON.
        responses: one row per numeric axis, series, measure and side: `control` (its `point`), `axis`, `series` (its
            name; empty if it is the axis' only one), `pooled` (the seeds that it averages over), `measure`, `side`
            (`above` or `below` the neutral dose; `all` if there is none), `neutral`, `rho`, `first_effective`,
            `breaking_point`, the last three with `/ci_low` and `/ci_high`, and `floor`.
        pooled: one row per dose and measure of each series that averages over seeds: `axis`, `series`, `dose`,
            `measure`, `mean`, `ci_low`, `ci_high`.
        first: measures to show before others.
        notes: remarks on a judge, the baseline and the marks, and what the prompts could have shown.
        reference: what differences are against: `control` or `baseline`.
        contrasts: one row per contrast and measure: `first`, `second`, `measure`, `difference` (first minus second),
            `difference/ci_low`, `difference/ci_high`, `p`, `q`, `significant`, `gained`, `lost`, `detectable` (see
            `rows`), `n`.
        contrast_table: cells of the shown contrasts, with the columns `contrast_text.COLUMNS`.
        turnings: one row per numeric axis, series and measure, see `turning.Turning`: `best`, `best/ci_low`,
            `best/ci_high`, `best_mean`, `within_low`, `within_high`, `confirmed_low`, `confirmed_high`, `tolerance`,
            `shape`, `monotone_p`, `trend`, `trend_p`, `trend_p_below`, `trend_p_above`, `doses`, `prompts`.
        front: one row per point: `point`, `name`, `effect`, `quality` (means of the measures in `attrs`), `on_front`,
            `share` (of resamples in which it is on the front).
        compared: the series that `responses` and `pooled` refer to; None: they are derived from `points`.
    """

    sweep_id: str
    name: str
    command: str
    confidence: float
    points: pd.DataFrame
    generations: pd.DataFrame
    responses: pd.DataFrame = field(default_factory=lambda: _responses(()))
    pooled: pd.DataFrame = field(default_factory=lambda: _pooled(()))
    rows: pd.DataFrame = field(default_factory=pd.DataFrame)
    first: Sequence[str] = ()
    notes: Sequence[str] = ()
    compared: Sequence[Series] | None = None
    reference: str = "control"
    contrasts: pd.DataFrame = field(default_factory=lambda: contrast_table(Contrasts()))
    contrast_table: Sequence[Sequence[str]] = ()
    turnings: pd.DataFrame = field(default_factory=lambda: turning_table(()))
    front: pd.DataFrame = field(default_factory=lambda: front_table(None, {}))

    @property
    def axes(self) -> list[str]:
        """The swept keys."""
        return [column.removeprefix("axis/") for column in self.points.columns if column.startswith("axis/")]

    @property
    def series(self) -> list[Series]:
        """The series along each numeric axis, without failed points."""
        if self.compared is not None:
            return list(self.compared)
        return find_series([_entry(row) for row in self.points.to_dict("records") if row["role"] != "control"])


def tables(
    comparison: Comparison, generations: pd.DataFrame, *, sweep_id: str, name: str, command: str, confidence: float
) -> SweepResults:
    """Return the results of a sweep as tables.

    Args:
        comparison: comparison of all points.
        generations: all generations of the sweep.
        sweep_id: the sweep's id.
        name: the sweep's name.
        command: the command that ran the sweep.
        confidence: confidence level of the intervals.
    """
    points = pd.DataFrame([_point_row(comparison, result) for result in comparison.results])
    rows = pd.DataFrame([_table_row(comparison, row) for row in comparison.rows])
    responses, pooled = _responses(comparison.series), _pooled(comparison.series)
    generations = _with_axes_of(points, generations)
    first = comparison.first
    # The page explains significance itself.
    notes = [*judge_notes(comparison.results), *list(legend(comparison))[1:], *baseline_notes(comparison)]
    notes += [*power_notes(comparison), *null_findings(comparison, null_measures(comparison))]
    # Taken from the comparison: names depend on the order of the keys, which the table's columns do not keep.
    compared = [described.series for described in comparison.series]
    word, contrasts = comparison.baselines.word, contrast_table(comparison.contrasts)
    return SweepResults(
        sweep_id,
        name,
        command,
        confidence,
        points,
        generations,
        responses,
        pooled,
        rows,
        first,
        notes,
        compared,
        word,
        contrasts,
        contrast_rows(comparison),
        turning_table(comparison.turnings),
        front_table(comparison.front, {row.index: row.name for row in comparison.rows}),
    )


def _entry(row: Mapping[Any, Any]) -> TreatedPoint:
    axes = {str(name).removeprefix("axis/"): value for name, value in row.items() if str(name).startswith("axis/")}
    values = {
        key: value if isinstance(value, str) else float(value) for key, value in axes.items() if not pd.isna(value)
    }
    failed = not pd.isna(row.get("error"))
    control = row.get("control")
    return TreatedPoint(int(row["point"]), {} if failed else values, None if pd.isna(control) else int(control))  # type: ignore[arg-type]


def _with_axes_of(points: pd.DataFrame, generations: pd.DataFrame | None) -> pd.DataFrame:
    """Replace the generations' swept values by those of their points, which are uniform over all batches."""
    if generations is None or not len(generations):
        return generations
    by_point = points.set_index("point")
    replaced = {column: by_point[column].reindex(generations["point"]).to_numpy() for column in _axes(points.columns)}
    return generations.assign(**replaced)


def _axes(columns: Iterable[str]) -> list[str]:
    return [column for column in columns if column.startswith("axis/")]


def _responses(series: Iterable[SeriesResponse]) -> pd.DataFrame:
    columns = ["control", "axis", "series", "pooled", "measure", "side"]
    columns += [_column(attribute.name) for attribute in fields(Response)]
    rows = [
        (s.series.control, s.series.axis, s.series.name, s.series.pooled, *key, *astuple(response))
        for s in series
        for key, response in s.responses.items()
    ]
    return pd.DataFrame(rows, columns=columns).astype({"neutral": float})


def _pooled(series: Iterable[SeriesResponse]) -> pd.DataFrame:
    rows = [
        (s.series.axis, s.series.name, dose, measure, mean, low, high)
        for s in series
        for measure, means in s.means.items()
        for dose, mean, low, high in means
    ]
    return pd.DataFrame(rows, columns=["axis", "series", "dose", "measure", "mean", "ci_low", "ci_high"])


def _point_row(comparison: Comparison, result: PointResult) -> dict[str, Any]:
    partners = (comparison.controls.get(result.index), comparison.baselines.of.get(result.index))
    return _row(comparison, result, result.point.name, partners, comparison.differences.get(result.index, {}))


def _table_row(comparison: Comparison, row: Row) -> dict[str, Any]:
    differences = comparison.row_differences.get(row.index, {})
    partners = (row.control, comparison.baselines.rows.get(row.index))
    table_row = _row(comparison, row.result, row.name, partners, differences)
    table_row |= {"points": " ".join(str(member.index) for member in row.members), "seeds": row.seeds}
    table_row |= {f"{measure}/seed_sd": spread for measure, spread in row.seed_sd.items()}
    for measure, difference in differences.items():
        table_row[f"{measure}/detectable"] = difference.detectable
        if not math.isnan(difference.margin):
            table_row[f"{measure}/equivalence"] = difference.verdict
            table_row[f"{measure}/equivalence/margin"] = difference.margin
            table_row[f"{measure}/equivalence/ci_low"] = difference.inner_low
            table_row[f"{measure}/equivalence/ci_high"] = difference.inner_high
    return table_row


def _row(
    comparison: Comparison,
    result: PointResult,
    name: str,
    partners: tuple[int | None, int | None],
    differences: Mapping[str, Difference],
) -> dict[str, Any]:
    control, baseline = partners
    row: dict[str, Any] = {
        "point": result.index,
        "name": name,
        "role": result.point.role,
        "control": control,
        "error": encodable(result.error),
    }
    if comparison.baselines.name:
        row["baseline"] = baseline
    row |= {f"axis/{key}": value for key, value in comparison.neutral.get(result.index, {}).items()}
    row |= {f"axis/{key}": value for key, value in result.point.axes}
    for measure, summary in result.summaries.items():
        row |= {_column(f"{measure}_{key}" if key != "mean" else measure): v for key, v in asdict(summary).items()}
        row |= quantiles(measure, result)
    for measure, difference in differences.items():
        row[f"{measure}/difference"] = difference.mean
        row[f"{measure}/difference/ci_low"] = difference.ci_low
        row[f"{measure}/difference/ci_high"] = difference.ci_high
        row[f"{measure}/p"], row[f"{measure}/q"] = difference.p, difference.q
        row[f"{measure}/significant"] = difference.significant
        if difference.gained is not None:
            row[f"{measure}/gained"], row[f"{measure}/lost"] = difference.gained, difference.lost
    return row


def _column(key: str) -> str:
    for end in ("ci_low", "ci_high", "n"):
        key = key.removesuffix(f"_{end}") + f"/{end}" if key.endswith(f"_{end}") else key
    return key
