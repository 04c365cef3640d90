"""This project's launcher against Hydra's own, which hands over one point after the other: the same results."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from mlflow import MlflowClient

from hydra_plugins.sweep_launchers._compose import Composer
from sweep import cli, parsing, session
from sweep.engines.base import Engine
from sweep.parsing import parse
from sweep.paths import conf_dir


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


def test_what_is_set_without_hydra_is_what_hydra_would_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers are read here, and what is more than a plain value is composed once for all points that share it."""
    parsing.register()
    monkeypatch.setattr(session, "_current", None)
    session.current()  # whose resolver the configuration asks for
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        given = ["transform=noise", "transform.span={window: [0, 2]}"]
        master = loader.load_configuration("config", given, RunMode.MULTIRUN)
        composer = Composer(loader)
        composed = composer._load  # the loader's own, which the composer has put itself in front of
        numbers = [
            "0",
            "-3",
            "1.50",
            "-0.0",
            "1e-05",
            "2.0e+3",
            "007",
            "1_0",
            ".5",
            "5.",
            "+2",
            "1e",
            "-",
            "true",
            "null",
        ]
        for text in [*numbers, *map(repr, (0.1 + 0.2, 1e22, 2**70))]:
            override, hydras = f"transform.sigma={text}", OverridesParser.create()
            known = hydras.parse_override(override).value()
            setting = composer.setting(override)
            assert setting is not None and setting.path == ("transform", "sigma")
            assert repr(setting.value) == repr(known), text
        for span in ("{window: [0, 2]}", "{role: user}", "content"):
            for sigma in ("0.5", "2"):
                overrides = ["transform=noise", f"transform.span={span}", f"transform.sigma={sigma}", "seed=3"]
                assert composer.compose(master, overrides) == parse(composed(master, overrides))


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
