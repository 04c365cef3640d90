"""Tests of `hydra/sweeper=optuna`: it finds the optimum on one engine, and resumes interrupted searches."""

from __future__ import annotations

import importlib.metadata
import json
import re
from itertools import product
from pathlib import Path

import pytest
from optuna.trial import TrialState

from conftest import MAX_MODEL_LEN, missing
from hydra_plugins.sweep_sweepers._study import StudyFile
from searches import CLOSEST, SCALE, Counting, Sweep, params_of, runs_of, trials_of
from shards import DEFAULT_PROCESSES, SCRIPTED
from sweep.errors import SweepHeld
from sweep.inputs.checkpoint import Checkpoint
from sweep.testing import ScriptedConfig


@pytest.fixture
def engine_log(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> Counting:
    return Counting(ScriptedConfig().open(checkpoint.files, MAX_MODEL_LEN, Path()), monkeypatch)


@pytest.fixture
def sweep(tiny: Path, tmp_path: Path, command_line: Sweep) -> Sweep:
    """Run the command line in this process, on the tiny model; return (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        defaults = [f"sweep.dir={tmp_path / 'outputs'}", f"model.id={tiny}", "prompts.items=[Hi,Ho]"]
        defaults += ["sampling.max_tokens=4", "scoring.noise_floor=false", "hydra/sweeper=optuna", *SCRIPTED]
        return command_line(*arguments, *missing(arguments, defaults))

    return run


def test_search_finds_the_optimum_on_one_engine(sweep: Sweep, tmp_path: Path, engine_log: Counting) -> None:
    code, out, err = sweep(*SCALE, CLOSEST, "hydra.sweeper.n_trials=24", "hydra.sweeper.n_jobs=4")
    assert code == 0, err
    assert engine_log.starts == 1
    assert err.count("2 prompts, 0 with references\n") == 1  # once for all batches
    trials = trials_of(tmp_path / "outputs")
    assert len(trials) == 24 and {trial.state for trial in trials} == {TrialState.COMPLETE}
    best = min(trials, key=lambda trial: trial.value or 0.0)
    assert best.params["transform.factor"] == pytest.approx(1.5, abs=0.05)
    said = re.search(r"Best of 24 trials: transform\.factor=(\S+) \(perturbation/relative_l2 (\S+), target 0\.5\)", out)
    assert said is not None, out
    assert float(said[1]) == pytest.approx(best.params["transform.factor"], abs=1e-4)

    runs = runs_of(tmp_path / "outputs")
    [parent] = [run for run in runs if run.data.tags["sweep.role"] == "sweep"]
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["sweep.best"] == f"transform.factor={said[1]}"
    assert parent.data.tags["sweep.objective"] == "closest:perturbation/relative_l2:0.5"
    assert parent.data.metrics["sweep/best"] == pytest.approx(float(said[2]), rel=1e-4)
    assert parent.data.metrics["cost/engine_starts"] == 1
    assert [run.data.tags["sweep.role"] for run in runs].count("control") == 1
    points = [run for run in runs if run.data.tags["sweep.role"] == "point"]
    assert len(points) == 24
    assert all(re.fullmatch(r"factor=\d(\.\d{1,4})?", run.info.run_name or "") for run in points)
    assert all("axis/transform.factor" in run.data.metrics for run in points)


def test_search_works_with_hydras_basic_launcher(sweep: Sweep, tmp_path: Path, engine_log: Counting) -> None:
    own = sweep(*SCALE, CLOSEST, "hydra.sweeper.n_trials=3", "hydra/launcher=basic", *DEFAULT_PROCESSES)
    assert own[0] == 0 and engine_log.starts == 1, own[2]
    runs = [run for run in runs_of(tmp_path / "outputs") if run.data.tags["sweep.role"] == "point"]
    assert {(run.info.run_name or "").split("=")[0] for run in runs} == {"factor"} and len(runs) == 3


def test_interrupted_search_resumes_with_the_same_trials(sweep: Sweep, tmp_path: Path, engine_log: Counting) -> None:
    command = [*SCALE, CLOSEST, "hydra.sweeper.n_trials=14", "hydra.sweeper.n_jobs=2"]
    assert sweep(*command, f"sweep.dir={tmp_path / 'undisturbed'}")[0] == 0
    undisturbed, needed = params_of(trials_of(tmp_path / "undisturbed")), len(engine_log.asked)
    assert needed == 15 * 2  # two prompts each, and the control

    engine_log.asked.clear()
    for engine_log.interrupt_after in (
        3,
        9,
        24,
    ):  # in the first batch, in a later one, and once TPE is past its random trials
        with pytest.raises(KeyboardInterrupt):
            sweep(*command)
    states = [trial.state for trial in trials_of(tmp_path / "outputs")]
    assert TrialState.RUNNING in states and TrialState.COMPLETE in states
    engine_log.interrupt_after = None
    code, _, err = sweep(*command)
    assert code == 0, err
    assert params_of(trials_of(tmp_path / "outputs")) == undisturbed
    assert len(engine_log.asked) == needed  # nothing twice

    code, out, err = sweep(*command)
    assert code == 0 and len(engine_log.asked) == needed, err
    assert "All 15 points were finished before. Nothing to do." in err and "Best of 14 trials" in out


def test_more_trials_continue_the_study(sweep: Sweep, tmp_path: Path, engine_log: Counting) -> None:
    assert sweep(*SCALE, CLOSEST, "hydra.sweeper.n_trials=4")[0] == 0
    before = params_of(trials_of(tmp_path / "outputs"))
    starts = engine_log.starts
    code, out, err = sweep(*SCALE, CLOSEST, "hydra.sweeper.n_trials=7", "hydra.sweeper.n_jobs=3")
    assert code == 0 and "Best of 7 trials" in out, err
    after = params_of(trials_of(tmp_path / "outputs"))
    assert after[:4] == before and len(after) == 7
    assert len(engine_log.asked) == 8 * 2 and engine_log.starts == starts + 1
    runs = runs_of(tmp_path / "outputs")
    assert [run.data.tags["sweep.role"] for run in runs].count("point") == 7


def test_another_objective_reuses_finished_points(sweep: Sweep, tmp_path: Path, engine_log: Counting) -> None:
    assert sweep(*SCALE, CLOSEST, "hydra.sweeper.n_trials=4")[0] == 0
    asked = len(engine_log.asked)
    code, out, err = sweep(
        *SCALE,
        "sweep.objective=maximize:perturbation/relative_l2",
        "hydra.sweeper.n_trials=5",
        "hydra.sweeper.n_jobs=1",
    )
    assert code == 0, err
    assert len(engine_log.asked) == asked + 2
    trials = trials_of(tmp_path / "outputs", "maximize:perturbation/relative_l2")
    assert params_of(trials)[:4] == params_of(trials_of(tmp_path / "outputs")) and len(trials) == 5
    best = max(params_of(trials))
    assert f"Best of 5 trials: transform.factor={round(best, 4)!r}" in out


def test_failed_point_is_a_failed_trial_and_is_retried(sweep: Sweep, tmp_path: Path, engine_log: Counting) -> None:
    engine_log.refused = {2}
    command = [*SCALE, CLOSEST, "hydra.sweeper.n_trials=6", "hydra.sweeper.n_jobs=6"]
    code, out, err = sweep(*command)
    assert code == 1 and "refused for the test" in err
    assert "Best of 6 trials" in out
    trials = trials_of(tmp_path / "outputs")
    [failed] = [trial for trial in trials if trial.state == TrialState.FAIL]
    assert len(trials) == 6

    engine_log.refused = set()
    code, out, err = sweep(*command)
    assert code == 0 and "Best of 6 trials" in out, err
    *_, again = trials_of(tmp_path / "outputs")
    assert again.state == TrialState.COMPLETE and again.params == failed.params


def test_grid_search_ends_when_exhausted(sweep: Sweep, tmp_path: Path, engine_log: Counting) -> None:
    given = ["transform=scale", "transform.factor=range(1.1,1.35,0.1)", "seed=0,1", "hydra.sweeper.sampler=grid"]
    for n_trials in (2, 20):
        code, _, err = sweep(*given, CLOSEST, f"hydra.sweeper.n_trials={n_trials}", "hydra.sweeper.n_jobs=4")
        assert code == 0, err
    trials = trials_of(tmp_path / "outputs")
    asked = [(trial.params["transform.factor"], trial.params["seed"]) for trial in trials]
    assert asked == [(pytest.approx(f), s) for f, s in product((1.1, 1.2, 1.3), "01")]


def test_objective_relative_to_the_control(sweep: Sweep, tmp_path: Path, engine_log: Counting) -> None:
    """The control has 4 tokens, and no point has half of that."""
    objective = "closest:cost/output_tokens:50%"
    code, out, err = sweep(
        *SCALE, f"sweep.objective={objective}", "hydra.sweeper.n_trials=2", "sampling.ignore_eos=true"
    )
    assert code == 0 and "cost/output_tokens 4, target 2)" in out, err
    assert [trial.value for trial in trials_of(tmp_path / "outputs", objective)] == [2.0, 2.0]
    # Of two equal points, the best is the one that changes the prompts less.
    least = min(params_of(trials_of(tmp_path / "outputs", objective)))
    assert f"transform.factor={round(least, 4)!r} " in out


def test_unknown_measure_is_reported_with_a_suggestion(sweep: Sweep, tmp_path: Path, engine_log: Counting) -> None:
    code, _, err = sweep(*SCALE, "sweep.objective=minimize:perturbation/relative_l3", "hydra.sweeper.n_trials=2")
    assert code == 1
    assert "no point has the measure 'perturbation/relative_l3'. Did you mean 'perturbation/relative_l2'?" in err
    assert "RUNNING" not in {run.info.status for run in runs_of(tmp_path / "outputs")}
    asked = len(engine_log.asked)
    assert sweep(*SCALE, CLOSEST, "hydra.sweeper.n_trials=2")[0] == 0
    assert len(engine_log.asked) == asked  # the points came from the archive


def test_a_dry_run_writes_nothing(sweep: Sweep, tmp_path: Path, engine_log: Counting) -> None:
    code, out, err = sweep(*SCALE, CLOSEST, "sweep.dry_run=true", "hydra.sweeper.n_jobs=3")
    assert code == 0 and "4 points, 1 engine start," in out, err
    assert "Up to 17 more points may follow, chosen from the results of these." in err
    assert not list(tmp_path.rglob("study.journal")) and engine_log.starts == 0


def test_experiment_file_defines_a_search(sweep: Sweep, tmp_path: Path, engine_log: Counting) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "half.yaml").write_text(
        "# @package _global_\n"
        "defaults: [override /transform: scale, override /hydra/sweeper: optuna]\n"
        "sweep: {objective: 'closest:perturbation/relative_l2:0.5'}\n"
        "hydra: {sweeper: {n_trials: 2, params: {transform.factor: 'interval(1,3)'}}}\n"
    )
    code, out, err = sweep(f"--config-dir={tmp_path}", "experiment=half", "hydra/sweeper=optuna", "sweep.dry_run=true")
    assert code == 0 and "3 points" in out and "more points" not in err, err


BAD = {
    "no objective": (SCALE, "sweep.objective must define the objective: minimize:MEASURE"),
    "no aim": ([*SCALE, "sweep.objective=quality/exact_match"], "sweep.objective: 'quality/exact_match' is not an objective"),
    "no such aim": ([*SCALE, "sweep.objective=minimise:quality/exact_match"], "is not an objective. Use minimize:MEASURE"),
    "no measure": ([*SCALE, "sweep.objective=minimize:exact_match"], "'exact_match' is not a measure"),
    "no target": ([*SCALE, "sweep.objective=closest:quality/exact_match"], "must be minimize:MEASURE"),
    "target of a minimum": ([*SCALE, "sweep.objective=minimize:quality/exact_match:1"], "must be minimize:MEASURE"),
    "target that is no number": ([*SCALE, "sweep.objective=closest:quality/exact_match:half"], "needs a number"),
    "nothing to vary": (["transform=scale", "transform.factor=2", CLOSEST], "needs something to vary"),
    "no trials": ([*SCALE, CLOSEST, "hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials must be at least 1"),
    "trials of a wrong type": ([*SCALE, CLOSEST, "hydra.sweeper.n_trials=few"], "hydra.sweeper.n_trials: Value 'few'"),
    "no such setting": ([*SCALE, CLOSEST, "hydra.sweeper.n_trial=2"], "Did you mean 'n_trials'?"),
    "no such sampler": ([*SCALE, CLOSEST, "hydra.sweeper.sampler=tpee"], "Did you mean 'tpe'?"),
    "grid of an interval": ([*SCALE, CLOSEST, "hydra.sweeper.sampler=grid"], "transform.factor=interval has no finite number of values"),
    "interval the wrong way": (["transform=scale", "transform.factor=interval(3,1)", CLOSEST], "must be an interval(low,high)"),
    "interval without an end": (["transform=scale", "transform.factor=interval(1,inf)", CLOSEST], "finite numbers"),
    "logarithm of nothing": (["transform=scale", "transform.factor=tag(log,interval(0,1))", CLOSEST], "must begin above 0"),
    "empty range": (["transform=scale", "transform.factor=range(2,1,0.5)", CLOSEST], "has no values"),
    "an end out of range": (["sampling.temperature=interval(-1,1)", CLOSEST], "sampling.temperature must be 0 or more"),
    "no such key": (["transform=scale", "transform.factr=interval(1,2)", CLOSEST], "Did you mean 'factor'?"),
    "key of another transform": (["transform=scale,noise", "transform.factor=interval(1,2)", CLOSEST], "transform.factor: there is no such key"),
    "confidence varied": ([*SCALE, "scoring.confidence=0.9,0.95", CLOSEST], "scoring.confidence belongs to the whole sweep"),
    "no such prompts": ([*SCALE, CLOSEST, "prompts.path=nowhere.jsonl"], "nowhere.jsonl"),
    "an interval without it": ([*SCALE, "hydra/sweeper=basic"], "such as hydra/sweeper=optuna"),
    "no such sweeper": ([*SCALE, "hydra/sweeper=optna"], "Did you mean 'optuna'?"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_invalid_search_is_refused_before_the_start(
    sweep: Sweep, tmp_path: Path, engine_log: Counting, name: str
) -> None:
    arguments, says = BAD[name]
    code, _, err = sweep(*arguments)
    assert code == 2, err
    message = err[err.rfind("\nsweep: ") + 1 :]
    assert message.startswith("sweep: ") and says in message
    assert engine_log.starts == 0
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("installed", [None, "2.10.1"])
def test_missing_optuna_error_names_the_extra(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: str | None
) -> None:
    known = importlib.metadata.version

    def version(name: str) -> str:
        if name != "optuna":
            return known(name)
        if installed is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed

    monkeypatch.setattr(importlib.metadata, "version", version)
    code, _, err = sweep(*SCALE, CLOSEST)
    assert code == 2 and "pip install '.[optuna]'" in err
    assert not (tmp_path / "outputs").exists()


def test_incomplete_study_line_is_dropped_and_a_study_in_use_is_refused(
    sweep: Sweep, tmp_path: Path, engine_log: Counting
) -> None:
    assert sweep(*SCALE, CLOSEST, "hydra.sweeper.n_trials=2")[0] == 0
    [path] = tmp_path.glob("outputs/sweeps/*/study.journal")
    with path.open("a") as file:
        file.write('{"op_code": 4, "worker')
    assert sweep(*SCALE, CLOSEST, "hydra.sweeper.n_trials=3")[0] == 0
    assert all(json.loads(line) for line in path.read_text().splitlines())
    assert len(trials_of(tmp_path / "outputs")) == 3

    late = StudyFile(path)
    late.append_logs([{"op_code": 0}])
    with path.open("a") as file:
        file.write("{}\n")
    with pytest.raises(SweepHeld):
        late.open()
    path.write_text("no json\n")
    code, _, err = sweep(*SCALE, CLOSEST)
    assert code == 2 and "study.journal is damaged" in err
