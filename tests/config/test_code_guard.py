"""A configuration cannot run code or write outside `sweep.dir` through Hydra, with this Hydra version and the next."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra.core.utils
import pytest
import yaml
from omegaconf import OmegaConf

from conftest import missing
from sweep.config import code_guard

NEXT = "hydra-core==1.4.0rc3"
Sweep = Callable[..., tuple[int, str, str]]

HARMLESS = """
import logging, pathlib
RAN = pathlib.Path(__file__).with_name("ran")
RAN.touch()
class Harmless(logging.NullHandler):
    pass
"""

# Hydra's section in an experiment file, and the key that is refused.
SECTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "callback": ({"callbacks": {"mine": {"_target_": "harmless.Harmless"}}}, "hydra.callbacks"),
    "handler": (
        {"job_logging": {"root": {"handlers": ["h"]}, "handlers": {"h": {"class": "harmless.Harmless"}}}},
        "hydra.job_logging",
    ),
    "factory": (
        {"hydra_logging": {"root": {"handlers": ["h"]}, "handlers": {"h": {"()": "harmless.Harmless"}}}},
        "hydra.hydra_logging",
    ),
    "log file": (
        {
            "hydra_logging": {
                "root": {"handlers": ["h"]},
                "handlers": {"h": {"class": "logging.FileHandler", "filename": "kept", "mode": "w"}},
            }
        },
        "hydra.hydra_logging",
    ),
    "external object": ({"job_logging": {"handlers": {"h": {"stream": "ext://harmless.RAN"}}}}, "hydra.job_logging"),
    "level of every log": ({"verbose": True}, "hydra.verbose"),
    "launcher's class": ({"launcher": {"_target_": "harmless.Harmless"}}, "hydra.launcher._target_"),
    "launcher's option": ({"launcher": {"workers": {"_target_": "harmless.Harmless"}}}, "hydra.launcher.workers"),
    "launcher half made": ({"launcher": {"_partial_": True}}, "hydra.launcher._partial_"),
    "sweeper's class": (
        {"sweeper": {"_target_": "hydra_plugins.sweep_launchers.local.LocalLauncher"}},
        "hydra.sweeper._target_",
    ),
    "sweeper's option": ({"sweeper": {"params": {"a": {"_target_": "harmless.Harmless"}}}}, "hydra.sweeper.params"),
    "environment": ({"job": {"env_set": {"PYTHONPATH": "."}}}, "hydra.job.env_set"),
    "environment copied": ({"job": {"env_copy": ["HOME"]}}, "hydra.job.env_copy"),
    "sweep's folder": ({"sweep": {"dir": "elsewhere"}}, "hydra.sweep.dir"),
    "point's folder": ({"sweep": {"subdir": "elsewhere"}}, "hydra.sweep.subdir"),
    "run's folder": ({"run": {"dir": "elsewhere"}}, "hydra.run.dir"),
    "Hydra's own files": ({"output_subdir": "elsewhere"}, "hydra.output_subdir"),
    "working folder": ({"job": {"chdir": True}}, "hydra.job.chdir"),
    "overrides": ({"overrides": {"task": ["seed=3"]}}, "hydra.overrides"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working folder with a module whose import is detected, and a file that must stay unchanged."""
    (tmp_path / "harmless.py").write_text(HARMLESS)
    (tmp_path / "kept").write_text("kept")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text(HARMLESS)
    for name, (section, _) in SECTIONS.items():
        path = tmp_path / "conf" / "experiment" / f"{name.replace(' ', '_')}.yaml".replace("'", "")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("# @package _global_\n" + yaml.safe_dump({"hydra": section}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path


@pytest.fixture
def refused(tiny: Path, folder: Path, no_engine: None, command_line: Sweep) -> Callable[..., str]:
    """Run a command line that must be refused without changing anything; return the message."""

    def run(*arguments: str) -> str:
        before = set(folder.rglob("*"))
        defaults = [f"model.id={tiny}", "prompts.items=[Hi,Ho]", f"sweep.dir={folder / 'outputs'}"]
        code, out, err = command_line(*arguments, *missing(arguments, defaults))
        assert (code, out) == (2, "")
        assert set(folder.rglob("*")) == before
        assert (folder / "kept").read_text() == "kept"
        assert not {"harmless", "package"} & sys.modules.keys()
        return err

    return run


@pytest.mark.parametrize("dry_run", ["false", "true"])
def test_code_and_other_folders_in_experiments_are_refused(
    refused: Callable[..., str], subtests: pytest.Subtests, dry_run: str
) -> None:
    for name, (_, key) in SECTIONS.items():
        with subtests.test(name):
            experiment = f"experiment={name.replace(' ', '_')}".replace("'", "")
            err = refused("hydra.searchpath=[file://conf]", experiment, f"sweep.dry_run={dry_run}")
            assert err.startswith(f"sweep: {key} cannot be set: "), err
            assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("hydra.sweep.dir=elsewhere", "hydra.sweep.dir cannot be set: set sweep.dir instead."),
        ("hydra.run.dir=elsewhere", "hydra.run.dir cannot be set: set sweep.dir instead."),
        ("hydra/job_logging=default", "hydra.job_logging cannot be set: the log is sweep.log"),
        ("hydra/hydra_logging=default", "hydra.hydra_logging cannot be set: the log is sweep.log"),
        ("hydra.verbose=[hydra]", "hydra.verbose cannot be set: the log is sweep.log"),
        ("hydra.searchpath=[pkg://package]", "hydra.searchpath may name folders only"),
        ("+hydra.launcher.speed=1", "hydra.launcher: 'speed' is not an option. Available: workers, shards, gpus."),
        ("hydra.launcher=null", "hydra.launcher must be chosen by name: hydra/launcher=NAME."),
        ("--experimental-rerun=kept", "--experimental-rerun is not supported: run the same command again."),
    ],
)
def test_code_on_the_command_line_is_refused(refused: Callable[..., str], override: str, message: str) -> None:
    assert refused(override).startswith(f"sweep: {message}")


def test_help_is_guarded(refused: Callable[..., str]) -> None:
    assert "hydra.job_logging" in refused("--help", "hydra.searchpath=[file://conf]", "experiment=handler")


def test_hydra_logging_section_configures_no_logger(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if a later Hydra composes in a way that the check misses."""
    code_guard.install()
    section, _ = SECTIONS["log file"]
    before = logging.getLogger().handlers[:]
    hydra.core.utils.configure_log(OmegaConf.create({"version": 1, **section["hydra_logging"]}), True)
    assert logging.getLogger().handlers == before
    assert (folder / "kept").read_text() == "kept"


PROBE = """
import sys, warnings
warnings.simplefilter("ignore")
from hydra import __version__
assert __version__ == {version!r}, __version__
from sweep.app import sweep_app
from sweep.cli.main import main
code = None
for arguments in {commands!r}:
    sweep_app._current = None
    sys.argv = ["sweep", *arguments]
    try:
        main()
        print(0)
    except SystemExit as end:
        print(end.code)
"""


def test_code_guard_works_on_the_next_hydra(tmp_path_factory: pytest.TempPathFactory, tiny: Path, folder: Path) -> None:
    """Only the guard must work on the next Hydra; pyproject.toml does not allow it yet."""
    packages = tmp_path_factory.mktemp("next")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-compile", "--target", str(packages), NEXT]
    if subprocess.run(install, capture_output=True, timeout=300, check=False).returncode:
        pytest.skip(f"{NEXT} cannot be installed here")
    common = [f"model.id={tiny}", "prompts.items=[Hi,Ho]", "sweep.dry_run=true", "hydra.searchpath=[file://conf]"]
    names = ["callback", "handler", "factory", "log_file", "launchers_option", "launchers_class", "sweeps_folder"]
    commands = [common, *([*common, f"experiment={name}"] for name in names)]
    commands.append([*common[:-1], "hydra.searchpath=[pkg://package]"])
    probe = PROBE.format(version=NEXT.split("==")[1], commands=commands)
    paths = os.pathsep.join([str(packages), str(folder)])
    environment = os.environ | {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, timeout=300, check=True, env=environment
    )
    codes = [line for line in done.stdout.splitlines() if line.isdecimal()]
    assert codes == ["0"] + ["2"] * (len(commands) - 1), done.stderr
    assert not (folder / "ran").exists() and not (folder / "package" / "ran").exists()
    assert (folder / "kept").read_text() == "kept"
