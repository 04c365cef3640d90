"""Traces of generations, on real stores and in the real user interface of MLflow."""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run, Trace

from servers import chromium, mlflow_server
from sweep.config import SweepConfig, TrackingConfig
from sweep.engines.base import Engine
from sweep.errors import TrackingError
from sweep.point import Point
from sweep.runner import Runner
from sweep.terminal import Terminal
from sweep.tracking import PointRecord, Tracker
from sweep.tracking.records import Table
from sweep.tracking.traces import Traces

Configure = Callable[..., SweepConfig]
SHOTS = os.environ.get("SWEEP_SCREENSHOTS")  # a folder to leave pictures in


def run(configure: Configure, traces: bool = True) -> Runner:
    """Run a sweep of two factors and the control on three prompts."""
    changes: dict[str, Any] = {"tracking": {"traces": traces}}
    points = [
        Point(configure(transform={"name": "scale", "factor": f}, **changes), (("transform.factor", f),))
        for f in (2.0, 8.0)
    ]
    with Runner(points[0].config, "traced", "sweep …", Terminal()) as runner:
        runner.run(points)
    assert not runner.problems
    return runner


def published(uri: str) -> tuple[MlflowClient, list[Run], list[Trace]]:
    """Return a store's runs of points, and all its traces."""
    client = MlflowClient(uri)
    [experiment] = client.search_experiments(filter_string="name = 'sweep'")
    runs = client.search_runs([experiment.experiment_id], "tags.`sweep.role` != 'sweep'")
    return client, runs, client.search_traces(locations=[experiment.experiment_id], max_results=500)


def test_every_generation_has_a_trace_with_its_scores(
    configure: Configure, on_shared_engine: Engine, subtests: pytest.Subtests
) -> None:
    runner = run(configure)
    client, runs, traces = published(f"sqlite:///{configure().sweep.root / 'mlflow.db'}")
    names = {run.info.run_id: run.info.run_name for run in runs}

    with subtests.test("as many as generations, each in its run"):
        linked = Counter(names[trace.info.trace_metadata["mlflow.sourceRun"]] for trace in traces)
        assert linked == {"control": 3, "factor=2": 3, "factor=8": 3}
        for run_id in names:
            assert len(client.search_traces(locations=[runs[0].info.experiment_id], run_id=run_id)) == 3

    with subtests.test("inputs, output and scores are those of the run's table"):
        for run_ in runs:
            table = client.download_artifacts(run_.info.run_id, "generations.json")
            content = json.loads(Path(table).read_text("utf-8"))
            rows = {r["prompt_id"]: r for r in (dict(zip(content["columns"], row)) for row in content["data"])}
            for trace in traces:
                if trace.info.trace_metadata["mlflow.sourceRun"] != run_.info.run_id:
                    continue
                [span] = trace.data.spans
                row = rows[span.inputs["prompt_id"]]
                assert span.inputs == {"prompt_id": row["prompt_id"], "prompt": row["prompt"]}
                assert span.outputs == row["generation"]
                scores = {k: v for k, v in row.items() if "/" in k and not k.startswith("axis/") and v is not None}
                assert len(scores) > 5
                assert {a.name: a.value for a in trace.info.assessments} == pytest.approx(scores)
                for assessment in trace.info.assessments:
                    assert assessment.metadata == {"mlflow.assessment.sourceRunId": run_.info.run_id}
                    assert (assessment.source.source_type, assessment.source.source_id) == ("CODE", "sweep")

    with subtests.test("the run's status and times are its own"):
        assert {run_.info.status for run_ in runs} == {"FINISHED"}

    with subtests.test("the description leads to them"):
        assert runner.tracker is not None and runner.tracker.row_by_row_url() is not None
        [parent] = client.search_runs([runs[0].info.experiment_id], "tags.`sweep.role` = 'sweep'")
        assert "[row by row](#/experiments/" in parent.data.tags["mlflow.note.content"]


def test_traces_can_be_asked_for_later(configure: Configure, on_shared_engine: Engine) -> None:
    first = run(configure, traces=False)
    uri = f"sqlite:///{configure().sweep.root / 'mlflow.db'}"
    _, runs, traces = published(uri)
    assert not traces and first.tracker is not None and first.tracker.row_by_row_url() is None
    run(configure)
    _, same, traces = published(uri)
    assert {r.info.run_id for r in same} == {r.info.run_id for r in runs} and len(traces) == 9


def record(name: str = "factor=2") -> PointRecord:
    now = time.time()
    return PointRecord(
        index=1, name=name, role="point", fingerprint="f", started=now, ended=now, parameters={}, axes=(),
        summaries={}, metrics={}, tags={}, config="",
    )  # fmt: skip


def table(rows: int) -> Table:
    scores = ["quality/exact_match", "health/loop", "divergence/edit_distance"]
    return Table(
        ["prompt", "generation", "prompt_id", "reference", "finish_reason", "axis/transform.factor", *scores],
        [[f"prompt {i}", f"„Zeile“ {i}\n\n😀", f"p{i}", "", "stop", 2.0, 1.0, i / 7, None] for i in range(rows)],
    )  # fmt: skip


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    tracker = Tracker(TrackingConfig(traces=True), tmp_path, "s")
    tracker.start("s", "sweep …", "")
    return tracker


@pytest.mark.parametrize("rows", [0, 64, 450])
def test_all_rows_are_kept(tracker: Tracker, tmp_path: Path, rows: int) -> None:
    point = record()
    run_id = tracker.publish(point, table(rows), again=False)
    assert tracker.publish(point, table(rows), again=True) == run_id
    _, [run], traces = published(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert run.info.status == "FINISHED"
    assert {trace.data.spans[0].inputs["prompt_id"] for trace in traces} == {f"p{i}" for i in range(rows)}
    assert len(traces) == rows and all(len(trace.info.assessments) == 2 for trace in traces)


def _fail(*_: Any) -> None:
    raise ConnectionError("the connection is lost")


def test_what_an_attempt_has_left_is_taken_away(
    tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attempts that end between the traces and the end of the run: one that can clean up, and one that cannot."""
    point, uri = record(), f"sqlite:///{tmp_path / 'mlflow.db'}"
    with monkeypatch.context() as failing:
        failing.setattr(MlflowClient, "set_terminated", _fail)
        with pytest.raises(TrackingError, match="connection"):
            tracker.publish(point, table(5), again=False)
        assert published(uri)[1:] == ([], [])
        failing.setattr(Traces, "delete", _fail)
        with pytest.raises(TrackingError):
            tracker.publish(point, table(5), again=True)
    assert len(published(uri)[2]) == 5
    run_id = tracker.publish(point, table(5), again=True)
    _, [run], traces = published(uri)
    assert run.info.run_id == run_id
    assert [trace.info.trace_metadata["mlflow.sourceRun"] for trace in traces] == [run_id] * 5

    again = replace(point, ended=point.ended + 1)
    replacement = tracker.publish(again, table(4), again=False, replaces=run_id)
    assert [trace.info.trace_metadata["mlflow.sourceRun"] for trace in published(uri)[2]] == [replacement] * 4


def test_lost_traces_are_noticed(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracing.client import TracingClient

    log_spans = TracingClient.log_spans
    monkeypatch.setattr(TracingClient, "log_spans", lambda self, place, spans: log_spans(self, place, spans[:-1]))
    with pytest.raises(TrackingError, match="4 of 5 traces were kept"):
        tracker.publish(record(), table(5), again=False)


def test_on_a_server(tmp_path: Path) -> None:
    with mlflow_server(tmp_path, tmp_path / "server.db", tmp_path / "files") as server:
        tracker = Tracker(TrackingConfig(uri=server, traces=True), tmp_path / "outputs", "s")
        tracker.start("s", "sweep …", "")
        tracker.publish(record(), table(64), again=False)
        _, [run], traces = published(server)
    assert len(traces) == 64 and all(len(trace.info.assessments) == 2 for trace in traces)
    assert {trace.info.trace_metadata["mlflow.sourceRun"] for trace in traces} == {run.info.run_id}


def test_the_page_shows_the_controls_and_a_points_generation_of_one_prompt(
    configure: Configure, on_shared_engine: Engine, tmp_path: Path
) -> None:
    runner = run(configure)
    assert runner.tracker is not None
    url = runner.tracker.row_by_row_url()
    assert url is not None
    outputs = configure().sweep.root
    _, runs, traces = published(f"sqlite:///{outputs / 'mlflow.db'}")
    names = {run.info.run_id: run.info.run_name for run in runs}
    answers = {
        names[t.info.trace_metadata["mlflow.sourceRun"]]: t.data.spans[0].outputs
        for t in traces
        if t.data.spans[0].inputs["prompt_id"] == "sky"
    }
    with mlflow_server(tmp_path, outputs / "mlflow.db", outputs / "artifacts") as server, chromium() as browser:
        page = browser.new_page(viewport={"width": 1900, "height": 950})
        page.goto(url.replace("http://127.0.0.1:5000", server))
        with suppress(Exception):  # the pane of MLflow's assistant, which is open on a first visit
            page.locator('button[aria-label*="lose"]').first.click(timeout=5000)
        page.get_by_text("Why is the sky blue?").first.wait_for(timeout=60_000)
        page.wait_for_timeout(3000)
        if SHOTS:
            page.screenshot(path=f"{SHOTS}/mlflow_row_by_row.png")
        text = page.inner_text("body")
        print(text, answers)
        assert re.search("control", text)
