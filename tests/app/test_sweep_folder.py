"""Tests of the sweep's folder: when it is opened, and its number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from scripted_sweeps import SCRIPTED
from sweep.app import sweep_app
from sweep.app.sweep_app import SweepApp
from sweep.app.sweep_folder import make_sweep_id, numbered
from sweep.config.schema import ADDED, SECTIONS
from sweep.config.scoring_config import SHOWN_ONLY
from sweep.engines import VLLMConfig

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


def test_keys_that_later_versions_added_keep_the_sweeps_of_unchanged_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """The id is that of a configuration without the keys, until one of them is set."""
    monkeypatch.setattr("sys.argv", ["sweep"])

    def sweep_id(scoring: dict[str, Any], prompts: dict[str, Any]) -> str:
        config = {"scoring": {"confidence": 0.95, **scoring}, "prompts": {"limit": 3, **prompts}}
        return make_sweep_id(OmegaConf.create(config), "folder")

    old = sweep_id({}, {})
    assert sweep_id(ADDED["scoring"] | dict.fromkeys(SHOWN_ONLY), ADDED["prompts"]) == old
    changed = [sweep_id({key: "other"}, {}) for key in ADDED["scoring"]] + [sweep_id({}, {"choices_key": "options"})]
    assert old not in changed and len(set(changed)) == len(ADDED["scoring"]) + 1


def test_added_keys_have_their_defaults() -> None:
    sections = SECTIONS | {"engine": VLLMConfig}
    for section, added in ADDED.items():
        defaults = {field.name: field for field in fields(sections[section])}
        for key, value in added.items():
            field = defaults[key]
            default = field.default_factory() if field.default_factory is not MISSING else field.default
            assert (asdict(default) if is_dataclass(default) else default) == value, f"{section}.{key}"
