"""Tests of the sweep's folder: when it is opened, and its number."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from scripted_sweeps import SCRIPTED
from sweep.app import sweep_app
from sweep.app.sweep_app import SweepApp
from sweep.app.sweep_folder import numbered

CommandLine = Callable[..., tuple[int, str, str]]


def test_first_restart_gets_number_2(tmp_path: Path) -> None:
    """Only a sweep with a number ignores the answers of other sweeps."""
    assert numbered("abc", tmp_path, restart=False) == "abc"
    assert numbered("abc", tmp_path, restart=True) == "abc.2"
    (tmp_path / "abc.2" / "lease").mkdir(parents=True)
    assert numbered("abc", tmp_path, restart=False) == "abc.2"
    assert numbered("abc", tmp_path, restart=True) == "abc.3"


def test_folders_without_a_lock_are_not_numbered(tmp_path: Path) -> None:
    (tmp_path / "abc.7").mkdir(parents=True)
    (tmp_path / "abc" / "lease").mkdir(parents=True)
    assert numbered("abc", tmp_path, restart=False) == "abc"
    assert numbered("abc", tmp_path, restart=True) == "abc.2"


def test_only_a_command_that_runs_something_opens_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command_line: CommandLine
) -> None:
    """The configuration can be shown, with the sweep's folder in it, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    code, out, _ = command_line("transform=scale", "--cfg=all", "--package=hydra.sweep", "--resolve")
    assert code == 0
    assert OmegaConf.create(out).dir == str(tmp_path / "outputs" / "sweeps" / "<id>")
    assert not list(tmp_path.iterdir()) and not sweep_app.current().id


def test_hydra_writes_to_the_folder_that_was_opened(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command_line: CommandLine
) -> None:
    opened: list[Path] = []
    open_folder = SweepApp.open_folder

    def record(self: SweepApp, config: DictConfig) -> None:
        open_folder(self, config)
        opened.append(self.folder)
        assert str(self.folder) == config.hydra.sweep.dir == config.hydra.run.dir
        assert not self.folder.exists()

    monkeypatch.setattr(SweepApp, "open_folder", record)
    arguments = [f"model.id={tiny}", "prompts.items=[Hi]", f"sweep.dir={tmp_path}", "sampling.max_tokens=2"]
    code, _, err = command_line(*arguments, "transform=scale", "transform.factor=1,2", *SCRIPTED)
    assert code == 0, err
    [folder] = opened
    assert (folder / "multirun.yaml").is_file()
    assert [path.name for path in (tmp_path / "sweeps").iterdir()] == [folder.name]


@pytest.mark.parametrize("folder", ["~nobody-of-that-name/x", "a\0b"])
def test_a_folder_that_cannot_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command_line: CommandLine, folder: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = command_line(f"sweep.dir='{folder}'", "transform=scale")
    assert code == 2
    assert " sweep.dir: " in err and " cannot be used: " in err
    assert not list(tmp_path.iterdir())
