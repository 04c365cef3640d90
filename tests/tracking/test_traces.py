"""Traces of generations, on real stores and in the real user interface of MLflow."""

from __future__ import annotations

import json
import math
import os
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

from servers import chromium
from sweep.app.sweep_runner import SweepRunner
from sweep.config.schema import SweepConfig, TrackingConfig
from sweep.console.terminal import Terminal
from sweep.core.records import Table
from sweep.engines.base import Engine
from sweep.errors import TrackingError
from sweep.points.point import Point
from sweep.tracking import Closing, PointRecord, Tracker
from sweep.tracking.traces import PAGE, Traces

Configure = Callable[..., SweepConfig]
SHOTS = os.environ.get("SWEEP_SCREENSHOTS")  # a folder to leave pictures in


def sweep(configure: Configure, traces: bool = True) -> SweepRunner:
    """Run a sweep of two factors and the control on three prompts."""
    changes: dict[str, Any] = {"tracking": {"traces": traces}}
    points = [
        Point(configure(transform={"name": "scale", "factor": f}, **changes), (("transform.factor", f),))
        for f in (2.0, 8.0)
    ]
    with SweepRunner(points[0].config, "traced", "sweep …", Terminal()) as runner:
        runner.run(points)
    assert not runner.problems
    return runner


def published(uri: str, experiment: str = "sweep") -> tuple[MlflowClient, list[Run], list[Trace]]:
    """Return an experiment's runs of points, and all its traces."""
    client = MlflowClient(uri)
    [found] = client.search_experiments(filter_string=f"name = '{experiment}'")
    runs = client.search_runs([found.experiment_id], "tags.`sweep.role` != 'sweep'")
    return client, runs, client.search_traces(locations=[found.experiment_id], max_results=500)


def rows_of(client: MlflowClient, run_id: str) -> dict[str, dict[str, Any]]:
    """Return the rows of a run's table by prompt."""
    content = json.loads(Path(client.download_artifacts(run_id, "generations.json")).read_text("utf-8"))
    rows = [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
    return {row["prompt_id"]: row for row in rows}


def test_every_generation_has_a_trace_with_its_scores(
    configure: Configure, on_shared_engine: Engine, subtests: pytest.Subtests
) -> None:
    runner = sweep(configure)
    client, runs, traces = published(f"sqlite:///{configure().sweep.root / 'mlflow.db'}")
    names = {run.info.run_id: run.info.run_name for run in runs}

    with subtests.test("as many as generations, each in its run"):
        linked = Counter(names[trace.info.trace_metadata["mlflow.sourceRun"]] for trace in traces)
        assert linked == {"control": 3, "factor=2": 3, "factor=8": 3}
        for run_id in names:
            assert len(client.search_traces(locations=[runs[0].info.experiment_id], run_id=run_id)) == 3

    with subtests.test("inputs, output and scores are those of the run's table"):
        for trace in traces:
            run_id = trace.info.trace_metadata["mlflow.sourceRun"]
            [span] = trace.data.spans
            row = rows_of(client, run_id)[span.inputs["prompt_id"]]
            assert span.inputs == {"prompt_id": row["prompt_id"], "prompt": row["prompt"]}
            assert span.outputs == row["generation"]
            scores = {k: v for k, v in row.items() if "/" in k and not k.startswith("axis/") and v is not None}
            assert len(scores) > 5
            assert {a.name: a.value for a in trace.info.assessments} == pytest.approx(scores)
            for assessment in trace.info.assessments:
                assert assessment.metadata == {"mlflow.assessment.sourceRunId": run_id}
                assert (assessment.source.source_type, assessment.source.source_id) == ("CODE", "sweep")

    with subtests.test("the run's status and times are its own"):
        assert {run.info.status for run in runs} == {"FINISHED"}

    with subtests.test("the description leads to them"):
        assert runner.tracker is not None
        url = runner.tracker.row_by_row_url()
        assert url is not None and url.startswith("http://127.0.0.1:5000/#/experiments/1/")
        [parent] = client.search_runs([runs[0].info.experiment_id], "tags.`sweep.role` = 'sweep'")
        assert "[row by row](#/experiments/" in parent.data.tags["mlflow.note.content"]


def test_traces_can_be_added_by_a_later_run(configure: Configure, on_shared_engine: Engine) -> None:
    first = sweep(configure, traces=False)
    uri = f"sqlite:///{configure().sweep.root / 'mlflow.db'}"
    _, runs, traces = published(uri)
    assert not traces and first.tracker is not None and first.tracker.row_by_row_url() is None
    sweep(configure)
    _, same, traces = published(uri)
    assert {r.info.run_id for r in same} == {r.info.run_id for r in runs} and len(traces) == 9


def record(name: str = "factor=2", role: str = "point", index: int = 1) -> PointRecord:
    now = time.time()
    return PointRecord(
        index=index, name=name, role=role, fingerprint=name, started=now, ended=now, parameters={}, axes=(),
        summaries={}, metrics={}, tags={"sweep.result": name}, config="",
    )  # fmt: skip


def table(rows: int, generation: str = "„Zeile“ {}\n\n😀") -> Table:
    """Return a table in which a third score is missing everywhere."""
    scores = ["quality/exact_match", "health/loop", "divergence/edit_distance"]
    return Table(
        ["prompt", "generation", "prompt_id", "reference", "finish_reason", "axis/transform.factor", *scores],
        [
            [f"prompt {i}", generation.format(i), f"p{i}", "", "stop", 2.0, 1.0, i / 7, None if i % 2 else math.nan]
            for i in range(rows)
        ],
    )


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    tracker = Tracker(TrackingConfig(traces=True), tmp_path, "s")
    tracker.start("s", "sweep …", "")
    return tracker


@pytest.mark.parametrize(("rows", "page"), [(0, PAGE), (64, PAGE), (130, 50)])
def test_all_rows_have_traces(
    tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, page: int
) -> None:
    """The last are more than one call writes and two answers list."""
    monkeypatch.setattr("sweep.tracking.traces.PAGE", page)
    point = record()
    run_id = tracker.publish(point, table(rows), retry=False)
    assert tracker.publish(point, table(rows), retry=True) == run_id
    _, [run], traces = published(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert run.info.status == "FINISHED"
    assert {trace.data.spans[0].inputs["prompt_id"] for trace in traces} == {f"p{i}" for i in range(rows)}
    assert len(traces) == rows and all(len(trace.info.assessments) == 2 for trace in traces)


def _fail(*_: Any) -> None:
    raise ConnectionError("the connection is lost")


def test_traces_of_failed_attempts_are_removed(
    tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attempts that end between the traces and the end of the run: one that can clean up, and one that cannot."""
    point, uri = record(), f"sqlite:///{tmp_path / 'mlflow.db'}"
    with monkeypatch.context() as failing:
        failing.setattr(MlflowClient, "set_terminated", _fail)
        with pytest.raises(TrackingError, match="connection"):
            tracker.publish(point, table(5), retry=False)
        assert published(uri)[1:] == ([], [])
        failing.setattr(Traces, "delete", _fail)
        with pytest.raises(TrackingError):
            tracker.publish(point, table(5), retry=True)
    assert len(published(uri)[2]) == 5
    run_id = tracker.publish(point, table(5), retry=True)
    _, [run], traces = published(uri)
    assert run.info.run_id == run_id
    assert [trace.info.trace_metadata["mlflow.sourceRun"] for trace in traces] == [run_id] * 5

    again = replace(point, ended=point.ended + 1)
    replacement = tracker.publish(again, table(4), retry=False, replaces=run_id)
    assert [trace.info.trace_metadata["mlflow.sourceRun"] for trace in published(uri)[2]] == [replacement] * 4


def test_lost_traces_are_an_error(tracker: Tracker, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracing.client import TracingClient

    log_spans = TracingClient.log_spans
    monkeypatch.setattr(TracingClient, "log_spans", lambda self, place, spans: log_spans(self, place, spans[:-1]))
    with pytest.raises(TrackingError, match="only 4 of 5 traces were stored"):
        tracker.publish(record(), table(5), retry=False)


@pytest.fixture
def remote(tracking_server: str, experiment: str, tmp_path: Path) -> Tracker:
    """Tracker that publishes to the shared server."""
    config = TrackingConfig(uri=tracking_server, experiment=experiment, traces=True)
    tracker = Tracker(config, tmp_path / "outputs", "s")
    tracker.start("s", "sweep …", "")
    return tracker


@pytest.mark.slow
def test_traces_on_a_server(remote: Tracker, tracking_server: str, experiment: str) -> None:
    remote.publish(record(), table(64), retry=False)
    _, [run], traces = published(tracking_server, experiment)
    assert len(traces) == 64 and all(len(trace.info.assessments) == 2 for trace in traces)
    assert {trace.info.trace_metadata["mlflow.sourceRun"] for trace in traces} == {run.info.run_id}


@pytest.mark.slow
def test_link_compares_control_and_point_by_prompt(remote: Tracker, tmp_path: Path) -> None:
    """The real user interface of MLflow in a real browser."""
    remote.publish(record("control", "control", 0), table(3, "A plain answer to {}."), retry=False)
    for index, factor in ((1, 2), (2, 8)):
        of_point = table(3, f"An answer to {{}}, {factor} times as large.")
        remote.publish(record(f"factor={factor}", index=index), of_point, retry=False)
    described: dict[str, str] = {}
    (tmp_path / "report").mkdir()
    described.update(remote.close(Closing("named", [], tmp_path / "report", [], [], {}, 0.0)))
    url = remote.row_by_row_url()
    assert url is not None and url.endswith(described["row by row"])
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1900, "height": 950})
        page.goto(url)
        with suppress(Exception):  # the pane of MLflow's assistant, which is open on a first visit
            page.locator('button[aria-label*="lose"]').first.click(timeout=5000)
        places = []
        for prompt in range(3):
            for answer in (f"An answer to {prompt}, 2 times as large.", f"A plain answer to {prompt}."):
                cell = page.get_by_text(answer).first
                cell.wait_for(timeout=60_000)
                box = cell.bounding_box()
                assert box is not None
                places.append(box["y"])
        if SHOTS:
            page.screenshot(path=f"{SHOTS}/traces.png")
        assert places == sorted(places), "the prompts are not in their order, with both answers to each together"
