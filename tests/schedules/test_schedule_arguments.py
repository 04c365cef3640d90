"""What the schedules sweep: a valid configuration, and keys that the launchers have."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from hydra.core.plugins import Plugins
from schedule_files import SCHEDULE, container, lines, manifests, named

from sweep.app import sweep_app
from sweep.cli.main import main


def launcher_arguments() -> dict[str, list[str]]:
    """What the schedules give beside the file of arguments, by where."""
    [call] = re.findall(r"^exec ((?:.*\\\n)*.*)", (SCHEDULE / "nightly.sbatch").read_text(), re.MULTILINE)
    found = {"nightly.sbatch": call.replace("\\\n", " ").split()}
    for _, document in manifests():
        if document["kind"] in ("Job", "CronJob"):
            found[document["metadata"]["name"]] = container(document)["command"]
    return {where: [part for part in parts if "=" in part] for where, parts in found.items()}


@pytest.mark.parametrize("source", ["arguments", "ConfigMap"])
def test_scheduled_arguments_are_a_valid_configuration(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    text = (SCHEDULE / "arguments").read_text()
    if source == "ConfigMap":
        text = named("ConfigMap", "common.yaml")["data"]["arguments"]
        assert "sweep.dir=/data/outputs" in lines(text), "all pods write on the shared volume"
        assert any(line.startswith("tracking.uri=http") for line in lines(text)), "SQLite is for one machine"
    monkeypatch.setattr(sweep_app, "_current", None)
    monkeypatch.setattr(sys, "argv", ["sweep", *lines(text), f"sweep.dir={tmp_path}", "sweep.dry_run=true"])
    main()
    assert "9 points" in capfd.readouterr().out


def test_scheduled_launcher_keys_exist() -> None:
    given = {where: arguments for where, arguments in launcher_arguments().items() if arguments}
    chosen = {where: arguments[0].removeprefix("hydra/launcher=") for where, arguments in given.items()}
    assert chosen == {"nightly.sbatch": "slurm", "sweep-plan": "plan"}
    Plugins.instance()  # registers the launchers' configurations
    from hydra.core.config_store import ConfigStore

    known = ConfigStore.instance().repo["hydra"]["launcher"]
    for where, arguments in given.items():
        keys = {argument.partition("=")[0].removeprefix("hydra.launcher.") for argument in arguments[1:]}
        assert keys <= set(known[f"{chosen[where]}.yaml"].node), where
