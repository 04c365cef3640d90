"""A trace for each generation, with its scores, for MLflow's comparison of runs row by row with its diff of texts.

They are written by calls that return when the store has them, and raise if it has not.  MLflow's own decorators would
hand them to a thread of its own, whose queue drops what is too much for it with a warning, and which writes into
whatever store and experiment are the process's current ones.
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

from sweep.errors import TrackingError
from sweep.redaction import redact
from sweep.tracking.records import PointRecord, Table

if TYPE_CHECKING:
    from mlflow.entities import Feedback, Span, TraceInfo

BATCH = 100  # rows of one call
PAGE = 500  # traces of one answer: what servers allow
NAME_LIMIT = 250
NOT_SCORES = ("prompt", "generation", "prompt_id", "reference", "finish_reason")


@dataclass(frozen=True, slots=True)
class Traces:
    """The traces of one experiment's runs.

    Attributes:
        uri: of the store.
        experiment: MLflow's id of it.
    """

    uri: str
    experiment: str

    def complete(self, run_id: str, record: PointRecord, table: Table) -> None:
        """Give a run that may have traces already those of its table, each once.

        Raises:
            MlflowException, TrackingError: as of `log`.
        """
        if self._stored(run_id) != _expected(_by_id(run_id, table)):
            self.delete(run_id)
            self.log(run_id, record, table)

    def log(self, run_id: str, record: PointRecord, table: Table) -> None:
        """Give a run that has none the traces of its table, and look whether all of them have arrived.

        Raises:
            MlflowException: the store failed.
            TrackingError: it did not keep all of what it was given.
        """
        from mlflow.tracing.client import TracingClient

        client, rows = TracingClient(self.uri), _by_id(run_id, table)
        # What one of many generations in a batch has taken is not known: they start with their point, and take no time;
        # a millisecond apart, as MLflow, which shows the latest first, then keeps the order of the prompts.
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
            raise TrackingError(f"{kept} of {len(rows)} traces were kept")

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
        """Return the number of scores of each of a run's traces, by its id, of those whose texts are there too."""
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
            tags={TraceTagKey.TRACE_NAME: redact(name)[:NAME_LIMIT]},
            assessments=_feedback(row, trace_id, run_id),
        )


def _by_id(run_id: str, table: Table) -> dict[str, dict[str, Any]]:
    """Return a table's rows by the ids of their traces, which are the same whenever the run's rows are logged.

    So a call that is made again, as its answer was lost, leaves no second trace.
    """
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    return {"tr-" + _digest(f"{run_id}/{i}"): row for i, row in enumerate(rows)}


def _expected(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Return how many scores each trace has."""
    return {trace_id: len(_scores(row)) for trace_id, row in rows.items()}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _scores(row: Mapping[str, Any]) -> dict[str, float]:
    """Return what was measured of a generation; a measure without a value is none."""
    found = {name: value for name, value in row.items() if name not in NOT_SCORES and not name.startswith("axis/")}
    return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}


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
    """Return the one span of a trace: what MLflow aligns (the inputs, free of what is swept) and compares."""
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
            "attributes": {key: json.dumps(value, ensure_ascii=False) for key, value in attributes.items()},
            "events": [],
            "links": [],
        }
    )
