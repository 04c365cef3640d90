"""Tests that the project's launcher gives the same results as Hydra's, which runs one point after the other."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from mlflow import MlflowClient
from mlflow.entities import Run

from hydra_plugins.sweep_launchers._compose import Composer
from shards import SCRIPTED
from sweep.app import sweep_app
from sweep.config import loader as parsing
from sweep.config.loader import parse
from sweep.config.overrides import Override
from sweep.util.paths import conf_dir

CommandLine = Callable[..., tuple[int, str, str]]


def runs_of(outputs: Path) -> list[Run]:
    return list(MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}").search_runs(["1"]))


def roles_of(runs: list[Run]) -> Counter[str]:
    """Return the roles of the runs, which must all be FINISHED."""
    assert {run.info.status for run in runs} == {"FINISHED"}
    return Counter(run.data.tags["sweep.role"] for run in runs)


def test_launchers_give_equal_answers(tiny: Path, tmp_path: Path, command_line: CommandLine) -> None:
    def generations(launcher: str) -> dict[str, list[str]]:
        """Return the answers of each point by fingerprint."""
        outputs = tmp_path / launcher
        overrides = ["transform=noise", "transform.sigma=0.5,1", "seed=0,1", f"hydra/launcher={launcher}", *SCRIPTED]
        given = [f"model.id={tiny}", "prompts.items=[Hi,Ho]", f"sweep.dir={outputs}", "sampling.max_tokens=8"]
        code, _, err = command_line(*overrides, *given)
        assert code == 0, err
        runs = runs_of(outputs)
        assert roles_of(runs) == {"point": 4, "control": 1, "sweep": 1}
        found = {}
        for run in runs:
            if run.data.tags["sweep.role"] != "sweep":
                path = MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}").download_artifacts(
                    run.info.run_id, "generations.json"
                )
                found[run.data.tags["sweep.fingerprint"]] = [
                    row[1] for row in json.loads(Path(path).read_text())["data"]
                ]
        return found

    local, basic = generations("local"), generations("basic")
    assert local == basic
    assert len(local) == 5 and len({tuple(answers) for answers in local.values()}) == 5


def test_values_set_without_hydra_equal_hydras(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers are parsed without Hydra, and all overrides that are not plain values are composed once."""
    parsing.register()
    monkeypatch.setattr(sweep_app, "_current", None)
    sweep_app.current()  # registers a resolver that the configuration uses
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        given = ["transform=noise", "transform.span={window: [0, 2]}"]
        master = loader.load_configuration("config", given, RunMode.MULTIRUN)
        composer = Composer(loader)
        composed = composer._load  # the loader's method that the composer wraps
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
            setting = composer.setting(Override.read(override))
            assert setting is not None and setting.path == ("transform", "sigma")
            assert repr(setting.value) == repr(known), text
        for span in ("{window: [0, 2]}", "{role: user}", "content"):
            for sigma in ("0.5", "2"):
                overrides = ["transform=noise", f"transform.span={span}", f"transform.sigma={sigma}", "seed=3"]
                read, config = composer.compose(master, overrides)
                assert [override.line for override in read] == overrides
                assert config == parse(composed(master, overrides))


def test_refused_batch_keeps_earlier_batches(
    tiny: Path, tmp_path: Path, command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("Hi\n")
    arguments = ["transform=scale", "transform.factor=2", "prompts.path=a.txt,b.txt", "hydra.sweeper.max_batch_size=1"]
    arguments += [f"model.id={tiny}", "sampling.max_tokens=4", *SCRIPTED]
    code, _, err = command_line(*arguments)
    assert code == 1, err  # the first batch was run
    [before] = (tmp_path / "outputs" / "sweeps").iterdir()

    (tmp_path / "b.txt").write_text("Ho\n")
    code, _, err = command_line(*arguments)
    assert code == 0, err
    assert [before] == list((tmp_path / "outputs" / "sweeps").iterdir())
    assert roles_of(runs_of(tmp_path / "outputs")) == {"point": 2, "control": 2, "sweep": 1}
