"""Tests of resuming: the same command again loses no answer and generates none twice."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from resumed_sweeps import Configure, Counting, runs_of, scaled, sweep, tables_of
from sweep.api import load
from sweep.app.sweep_runner import SweepRunner
from sweep.errors import TooManyFailures
from sweep.points.point import Point

FULL = {"logprobs": 5, "teacher_forced": True}


@pytest.fixture
def engine_log(monkeypatch: pytest.MonkeyPatch) -> Counting:
    return Counting(monkeypatch)


@pytest.fixture
def configure(configure: Configure) -> Configure:
    return partial(configure, engine={"name": "scripted"})


def test_finished_sweep_generates_and_publishes_nothing_again(configure: Configure, engine_log: Counting) -> None:
    points = scaled(configure, 1.5, 2.0)
    sweep(points)
    before, asked = {run.info.run_id: run.data.metrics for run in runs_of(configure())}, len(engine_log.asked)
    again = sweep(points)
    assert again.engine_starts == 0 and len(engine_log.asked) == asked
    assert {run.info.run_id: run.data.metrics for run in runs_of(configure())} == before
    assert again.publisher is not None and again.publisher.earlier == 3
    assert again.publisher.nothing_new


def test_finished_sweep_is_renamed(configure: Configure, engine_log: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTHER_TOKEN", "hunter22")

    def named(name: str | None) -> SweepRunner:
        return sweep(scaled(configure, 2.0, sweep={"dir": configure().sweep.dir, "name": name}))

    named("one")
    asked = len(engine_log.asked)
    report = named("two hunter22").folder / "report"
    [parent] = [run for run in runs_of(configure()) if run.data.tags["sweep.role"] == "sweep"]
    assert (parent.info.run_name, parent.info.status) == ("two ***", "FINISHED") and len(engine_log.asked) == asked
    html = (report / "report.html").read_text()
    assert "two ***" in html and "hunter22" not in html
    assert load(report, points=False).attrs["name"] == "two ***"
    for name in ("two hunter22", None):
        again = named(name).publisher
        assert again is not None and again.nothing_new


CONTROL, FIRST, SECOND = "control", "factor=1.5", "factor=2"


@pytest.mark.parametrize(
    ("scoring", "published"),
    [
        # The control, the first point, the control's second run and the other points have three answers each. They are
        # interrupted after 2, 5, 9 and 14 of the 15.
        pytest.param({}, [(2, []), (3, []), (4, [CONTROL, FIRST]), (5, [CONTROL, FIRST, SECOND])], id="plain"),
        # With teacher forcing, each has three requests more for its own answers, and each point three for the control's.
        pytest.param(
            FULL,
            [(2, []), (3, []), (4, []), (5, []), (7, [CONTROL, FIRST]), (6, [CONTROL, FIRST, SECOND])],
            id="forced",
        ),
    ],
)
def test_interrupted_sweep_continues_at_the_next_prompt(
    configure: Configure,
    engine_log: Counting,
    tmp_path: Path,
    scoring: dict[str, object],
    published: list[tuple[int, list[str]]],
) -> None:
    def points(folder: str) -> list[Point]:
        changes = {"scoring": scoring, "sampling": {"max_tokens": 8, "ignore_eos": True}}
        return scaled(configure, 1.5, 2.0, 4.0, sweep={"dir": str(tmp_path / folder)}, **changes)

    undisturbed = points("undisturbed")
    sweep(undisturbed)
    needed, engine_log.asked = len(engine_log.asked), []
    interrupted = points("interrupted")
    for engine_log.interrupt_after, names in published:
        with pytest.raises(KeyboardInterrupt):
            sweep(interrupted, settled=engine_log)
        statuses = {run.info.run_name: run.info.status for run in runs_of(interrupted[0].config)}
        assert statuses == {"a": "KILLED"} | dict.fromkeys(names, "FINISHED")
    engine_log.interrupt_after = None
    sweep(interrupted)
    assert len(engine_log.asked) == needed
    assert {run.info.status for run in runs_of(interrupted[0].config)} == {"FINISHED"}
    assert tables_of(interrupted[0].config) == tables_of(undisturbed[0].config)


def test_another_sweep_reuses_generations(configure: Configure, engine_log: Counting) -> None:
    sweep(scaled(configure, 1.5, 2.0))
    asked = len(engine_log.asked)
    sweep(scaled(configure, 2.0, scoring={"quality": ["chrf"]}), "b")
    assert len(engine_log.asked) == asked
    reused = {
        r.info.run_name: r.data.tags.get("sweep.reused") for r in runs_of(configure()) if r.data.tags["sweep.id"] == "b"
    }
    assert reused == {"b": None, "control": "3", "factor=2": "3"}
    assert tables_of(configure(), "b")["factor=2"][0][1] == tables_of(configure())["factor=2"][0][1]


def test_resume_false_generates_everything_again(configure: Configure, engine_log: Counting) -> None:
    sweep(scaled(configure, 2.0))
    asked = len(engine_log.asked)
    anew = {"dir": str(configure().sweep.dir), "resume": "false"}
    sweep(scaled(configure, 2.0, sweep=anew), "a.2")
    assert len(engine_log.asked) == 2 * asked
    assert tables_of(configure(), "a.2") == tables_of(configure())


def test_failed_point_fails_alone_and_is_retried(configure: Configure, engine_log: Counting) -> None:
    engine_log.refused = {(1, 1)}  # the second prompt of the first point after the control
    points = scaled(configure, 1.5, 2.0)
    runner = sweep(points)
    statuses = {run.info.run_name: run.info.status for run in runs_of(configure())}
    assert statuses == {"a": "FAILED", "control": "FINISHED", "factor=1.5": "FAILED", "factor=2": "FINISHED"}
    assert "prompt 'sky': refused for the test" in str(runner.results[points[0].key].error)
    asked, engine_log.refused = len(engine_log.asked), set()
    sweep(points)
    assert len(engine_log.asked) == asked + 1  # the other answers are in the journal
    assert {run.info.run_name: run.info.status for run in runs_of(configure())} == dict.fromkeys(statuses, "FINISHED")


@pytest.mark.parametrize(("setting", "failed"), [({"on_error": "stop"}, "1 point"), ({"max_failures": 1}, "2 points")])
def test_too_many_failures_end_the_sweep(
    configure: Configure, engine_log: Counting, setting: dict[str, object], failed: str
) -> None:
    engine_log.refused = {(i, 0) for i in range(1, 12)}
    points = scaled(configure, *(1.0 + i / 10 for i in range(1, 10)), sweep={"dir": configure().sweep.dir} | setting)
    with pytest.raises(TooManyFailures, match=f"stopped: {failed} failed \\(sweep"):
        sweep(points, settled=engine_log)
    statuses = {run.info.run_name: run.info.status for run in runs_of(configure())}
    refused = [f"factor=1.{i}" for i in range(1, int(failed[0]) + 1)]
    # At the first refusal, the control still waits for its second run.
    control = {"control": "FINISHED"} if failed == "2 points" else {}
    assert statuses == {"a": "FAILED"} | control | dict.fromkeys(refused, "FAILED")
