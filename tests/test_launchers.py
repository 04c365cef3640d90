"""This project's launcher against Hydra's own, which hands over one point after the other: the same results."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from sweep import cli, session
from sweep.engines.base import Engine


def generations(tiny: Path, outputs: Path, launcher: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    monkeypatch.setattr(session, "_current", None)
    overrides = ["transform=noise", "transform.sigma=0.5,1", "seed=0,1", f"hydra/launcher={launcher}"]
    given = [f"model.id={tiny}", "prompts.items=[Hi,Ho]", f"sweep.dir={outputs}", "sampling.max_tokens=8"]
    monkeypatch.setattr(sys, "argv", ["sweep", *overrides, *given])
    cli.main()
    client = MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}")
    runs = client.search_runs(["1"])
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert [run.data.tags["sweep.role"] for run in runs].count("control") == 1
    assert [run.data.tags["sweep.role"] for run in runs].count("sweep") == 1
    found = {}
    for run in runs:
        if run.data.tags["sweep.role"] != "sweep":
            path = client.download_artifacts(run.info.run_id, "generations.json")
            rows = json.loads(Path(path).read_text())["data"]
            found[run.data.tags["sweep.fingerprint"]] = [row[1] for row in rows]
    return found


def test_launchers_agree(tiny: Path, tmp_path: Path, on_shared_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    local = generations(tiny, tmp_path / "local", "local", monkeypatch)
    basic = generations(tiny, tmp_path / "basic", "basic", monkeypatch)
    assert local == basic
    assert len(local) == 5 and len({tuple(answers) for answers in local.values()}) == 5


def test_a_later_batch_that_is_refused_leaves_the_earlier_ones(
    tiny: Path, tmp_path: Path, on_shared_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("Hi\n")
    arguments = ["transform=scale", "transform.factor=2", "prompts.path=a.txt,b.txt", "hydra.sweeper.max_batch_size=1"]
    arguments += [f"model.id={tiny}", "sampling.max_tokens=4"]
    monkeypatch.setattr(sys, "argv", ["sweep", *arguments])
    monkeypatch.setattr(session, "_current", None)
    with pytest.raises(SystemExit) as refused:
        cli.main()
    assert refused.value.code == 1  # the first batch was run
    [before] = (tmp_path / "outputs" / "sweeps").iterdir()

    (tmp_path / "b.txt").write_text("Ho\n")
    monkeypatch.setattr(sys, "argv", ["sweep", *arguments])
    monkeypatch.setattr(session, "_current", None)
    cli.main()
    assert [before] == list((tmp_path / "outputs" / "sweeps").iterdir())
    runs = MlflowClient(f"sqlite:///{tmp_path / 'outputs' / 'mlflow.db'}").search_runs(["1"])
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert [run.data.tags["sweep.role"] for run in runs].count("sweep") == 1 and len(runs) == 5
