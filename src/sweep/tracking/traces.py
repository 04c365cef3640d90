"""MLflow traces: one per generation, with its scores, for MLflow's row-by-row comparison of runs with its text diff.

Traces are written by synchronous calls that raise if the store did not accept them. MLflow's decorators instead use a
background thread, whose queue drops traces with a warning when it is full. They also write to the process's current
store and experiment.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from sweep.core.records import PointRecord, Table
from sweep.errors import TrackingError
from sweep.tracking import limits

if TYPE_CHECKING:
    from mlflow.entities import Feedback, Span, TraceInfo

BATCH = 100  # rows per call
PAGE = 500  # traces per search result: the maximum that servers allow
NOT_SCORES = ("prompt", "generation", "prompt_id", "reference", "finish_reason")  # columns of a table


@dataclass(frozen=True, slots=True)
class Traces:
    """Traces of the runs in one experiment.

    Attributes:
        uri: address of the store.
        experiment: id of the experiment in MLflow.
    """

    uri: str
    experiment: str

    def complete(self, run_id: str, record: PointRecord, table: Table) -> None:
        """Make sure that a run, which may have traces already, has those of its table exactly once.

        Raises:
            MlflowException, TrackingError: see `log`.
        """
        if self._stored(run_id) != _expected(_by_id(run_id, table)):
            self.delete(run_id)
            self.log(run_id, record, table)

    def log(self, run_id: str, record: PointRecord, table: Table) -> None:
        """Log the traces of a table to a run without traces, and check that the store has all of them.

        Raises:
            MlflowException: the store failed.
            TrackingError: the store did not keep all traces.
        """
        from mlflow.tracing.client import TracingClient

        client, rows = TracingClient(self.uri), _by_id(run_id, table)
        # The time of one generation in a batch is unknown, so traces start with their point and last 0 ms. They are
        # 1 ms apart, because MLflow sorts by time, the latest first: this keeps the order of the prompts.
        times = {trace_id: int(record.started * 1000) - i for i, trace_id in enumerate(rows)}
        for start in range(0, len(rows), BATCH):
            batch = dict(islice(rows.items(), start, start + BATCH))
            for trace_id, row in batch.items():
                client.start_trace(self._info(trace_id, run_id, record.name, times[trace_id], row))
            client.log_spans(
                self.experiment, [_span(row, trace_id, times[trace_id]) for trace_id, row in batch.items()]
            )
        expected = _expected(rows)
        if rows and (stored := self._stored(run_id)) != expected:
            kept = sum(stored.get(trace_id) == scores for trace_id, scores in expected.items())
            raise TrackingError(f"only {kept} of {len(rows)} traces were stored")

    def delete(self, run_id: str) -> None:
        """Delete a run's traces, if it has any.

        Raises:
            MlflowException: the store failed.
        """
        from mlflow.tracing.client import TracingClient

        ids = [info.trace_id for info in self._infos(run_id)]
        for start in range(0, len(ids), BATCH):
            TracingClient(self.uri).delete_traces(self.experiment, trace_ids=ids[start : start + BATCH])

    def _stored(self, run_id: str) -> dict[str, int]:
        """Return the number of scores of each of a run's traces by trace id, without traces whose spans are missing."""
        from mlflow.tracing.constant import TraceTagKey

        infos = self._infos(run_id)
        return {info.trace_id: len(info.assessments) for info in infos if TraceTagKey.SPANS_LOCATION in info.tags}

    def _infos(self, run_id: str) -> Iterator[TraceInfo]:
        from mlflow.tracing.client import TracingClient

        client, token = TracingClient(self.uri), None
        while True:
            page = client.search_traces(
                locations=[self.experiment], run_id=run_id, max_results=PAGE, page_token=token, include_spans=False
            )
            yield from (trace.info for trace in page)
            if not (token := page.token):
                return

    def _info(self, trace_id: str, run_id: str, name: str, time_ms: int, row: Mapping[str, Any]) -> TraceInfo:
        from mlflow.entities import TraceInfo, TraceLocation, TraceState
        from mlflow.tracing.constant import (
            TRACE_SCHEMA_VERSION,
            TRACE_SCHEMA_VERSION_KEY,
            TraceMetadataKey,
            TraceTagKey,
        )

        return TraceInfo(
            trace_id,
            TraceLocation.from_experiment_id(self.experiment),
            request_time=time_ms,
            state=TraceState.OK,
            trace_metadata={
                TraceMetadataKey.SOURCE_RUN: run_id,
                TRACE_SCHEMA_VERSION_KEY: str(TRACE_SCHEMA_VERSION),
            },
            tags={TraceTagKey.TRACE_NAME: limits.fit(name, limits.NAME)},
            assessments=_feedback(row, trace_id, run_id),
        )


def _by_id(run_id: str, table: Table) -> dict[str, dict[str, Any]]:
    """Return a table's rows by trace id. Ids depend only on run and row, so a repeated call creates no second trace."""
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    return {"tr-" + _digest(f"{run_id}/{i}"): row for i, row in enumerate(rows)}


def _expected(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Return the expected number of scores by trace id."""
    return {trace_id: len(_scores(row)) for trace_id, row in rows.items()}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _scores(row: Mapping[str, Any]) -> dict[str, float]:
    """Return a generation's scores, without missing values."""
    scores = {name: value for name, value in row.items() if name not in NOT_SCORES and not name.startswith("axis/")}
    return {name: value for name, value in scores.items() if value is not None and math.isfinite(value)}


def _feedback(row: Mapping[str, Any], trace_id: str, run_id: str) -> list[Feedback]:
    from mlflow.entities import AssessmentSource, Feedback
    from mlflow.tracing.constant import AssessmentMetadataKey

    source = AssessmentSource(source_type="CODE", source_id="sweep")
    feedback = []
    for name, value in _scores(row).items():
        one = Feedback(name, value, source=source, metadata={AssessmentMetadataKey.SOURCE_RUN_ID: run_id})
        one.assessment_id = "a-" + _digest(f"{trace_id}/{name}")
        feedback.append(one)
    return feedback


def _span(row: Mapping[str, Any], trace_id: str, time_ms: int) -> Span:
    """Return a trace's only span. MLflow aligns rows by its inputs, which must not contain swept values."""
    from mlflow.entities import Span, SpanType
    from mlflow.tracing.constant import SpanAttributeKey

    number = bytes.fromhex(trace_id.removeprefix("tr-"))
    attributes = {
        SpanAttributeKey.REQUEST_ID: trace_id,
        SpanAttributeKey.SPAN_TYPE: SpanType.LLM,
        SpanAttributeKey.INPUTS: {"prompt_id": row["prompt_id"], "prompt": row["prompt"]},
        SpanAttributeKey.OUTPUTS: row["generation"],
        "finish_reason": row.get("finish_reason"),
    }
    return Span.from_dict(
        {
            "trace_id": base64.b64encode(number).decode(),
            "span_id": base64.b64encode(number[:8]).decode(),
            "parent_span_id": None,
            "name": "generate",
            "start_time_unix_nano": time_ms * 1_000_000,
            "end_time_unix_nano": time_ms * 1_000_000,
            "status": {"code": "STATUS_CODE_OK", "message": ""},
            "attributes": {
                key: limits.encodable(json.dumps(value, ensure_ascii=False)) for key, value in attributes.items()
            },
            "events": [],
            "links": [],
        }
    )


def _as_json(value: Any) -> str:
    return limits.encodable(json.dumps(value, ensure_ascii=False))
