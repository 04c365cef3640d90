"""Each configuration mistake of the corpus is refused with a short message, before an engine starts.

The corpus is `data/bad_configurations.yaml`, whose head describes the format of a case.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import create_config_search_path
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from conftest import missing
from hydra_plugins.sweep_launchers._compose import Composer
from sweep.app import sweep_app, sweep_folder
from sweep.app.sweep_runner import SweepRunner
from sweep.cli.messages import format_error
from sweep.config import arguments as _arguments
from sweep.config import code_guard, hydra_patches, loader
from sweep.console.terminal import Terminal
from sweep.engines import VLLMConfig
from sweep.errors import ConfigError
from sweep.inputs import checkpoint as checkpoints
from sweep.inputs.checkpoint import Checkpoint
from sweep.inputs.config import ModelConfig
from sweep.inputs.packaged_model import Packages
from sweep.points.point import make_points
from sweep.util.paths import conf_dir

DATA = Path(__file__).parents[1] / "data" / "bad_configurations.yaml"
CORPUS = yaml.load(DATA.read_text("utf-8"), yaml.CSafeLoader)
WHOLE = [case for case in CORPUS if case.get("whole")]
REST = [case for case in CORPUS if not case.get("whole")]
MAX_MESSAGE, MAX_LINES = 400, 3
SWEEP_ID = "0123456789ab"
Case = dict[str, Any]
Sweep = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def isolated(no_engine: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Import no engine, and unload the modules that cases import."""
    monkeypatch.setattr(VLLMConfig, "warm_up", lambda *_: None)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "path", list(sys.path))
    imported = set(sys.modules)
    yield
    for name in set(sys.modules) - imported:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def test_cases_are_many_and_distinct() -> None:
    assert len({case["name"] for case in CORPUS}) == len(CORPUS) >= 500 and len(WHOLE) >= 40
    assert len({json.dumps(case | {"name": ""}, sort_keys=True, default=repr) for case in CORPUS}) == len(CORPUS)


def test_the_command_line_refuses_mistakes_and_leaves_nothing_behind(
    command_line: Sweep, tiny: Path, tmp_path: Path, subtests: pytest.Subtests, monkeypatch: pytest.MonkeyPatch
) -> None:
    for case in WHOLE:
        with subtests.test(case["name"]):
            folder = prepared(tmp_path, case, tiny)
            monkeypatch.chdir(folder)
            before = below(folder)

            code, out, err = command_line(*command(folder, case, tiny))

            assert code == 2 and out == "" and "Traceback" not in err, err
            check_message(err[err.rfind("\nsweep: ") + 1 :], case, folder)
            logs = list((folder / "outputs" / "sweeps").glob("*/sweep.log"))
            assert len(logs) <= 1
            assert below(folder) - before <= {path for log in logs for path in (log, *log.parents)}
            assert secret_of(case) not in err + "".join(log.read_text() for log in logs)


def test_the_parser_and_the_plan_refuse_mistakes(
    tiny: Path, checkpoint: Checkpoint, tmp_path: Path, subtests: pytest.Subtests, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = checkpoints.find

    def find_once(model: ModelConfig, packages: Packages | None = None) -> Checkpoint:
        return checkpoint if model == checkpoint.model else find(model, packages)

    monkeypatch.setattr(checkpoints, "find", find_once)
    refusal = Refusal(tmp_path)
    for case in REST:
        with subtests.test(case["name"]):
            folder = prepared(tmp_path, case, tiny)
            monkeypatch.chdir(folder)
            before = below(folder)
            # Paths that the application object removes after a refusal.
            removed = below_of(sweep_folder.missing_paths(folder / "outputs" / "sweeps" / SWEEP_ID))

            message = refusal.of(command(folder, case, tiny))

            check_message(message, case, folder)
            assert below(folder) - before <= removed


class Refusal:
    """The command line without Hydra's application and without `SweepApp`, for messages of refused configurations."""

    def __init__(self, folder: Path) -> None:
        """Compose the base configuration that all command lines share.

        Args:
            folder: `sweep.dir` of the base configuration.
        """
        loader.register()
        code_guard.install()
        sweep_app.current()  # registers the resolver sweep_folder
        self._loader = ConfigLoaderImpl(create_config_search_path(str(conf_dir())))
        self._base = self._loader.load_configuration("config", [f"sweep.dir={folder}"], RunMode.MULTIRUN)
        self._composer = Composer(self._loader)

    def of(self, arguments: list[str]) -> str:
        """Return the error message of a refused command line."""
        try:
            self._run([*arguments, *missing(arguments, ["tracking.in_process=true", "sweep.helpers=0"])])
        except ConfigError as error:
            return format_error(str(error), ConfigError.exit_code)
        except (HydraException, OmegaConfBaseException) as error:
            return format_error(hydra_patches.explain(error, arguments), ConfigError.exit_code)
        pytest.fail("nothing was refused")

    def _run(self, arguments: list[str]) -> None:
        if plugins := _arguments.list_override("plugins", arguments):
            loader.register(plugins)
        arguments = _arguments.to_hydra_syntax(arguments)
        _arguments.check_values(arguments)
        [jobs] = BasicSweeper.split_arguments(OverridesParser.create(self._loader).parse_overrides(arguments), None)
        points = make_points([self._composer.compose(self._base, job) for job in jobs])
        with SweepRunner(points[0].config, SWEEP_ID, "sweep …", Terminal()) as runner:
            runner.run(points)


def check_message(message: str, case: Case, folder: Path) -> None:
    """Check that a message is short, names what is wrong, and shows no secret."""
    assert message.startswith("sweep: ")
    assert len(message) <= MAX_MESSAGE and len(message.splitlines()) <= MAX_LINES, message
    for text in as_list(case["says"]):
        assert text.replace("{folder}", str(folder)) in message
    assert secret_of(case) not in message


def secret_of(case: Case) -> str:
    return str(case.get("secret", "hunter2"))


def command(folder: Path, case: Case, tiny: Path) -> list[str]:
    overrides = [
        override.replace("{folder}", str(folder)).replace("{tiny}", str(tiny)) for override in case["overrides"]
    ]
    defaults = [f"sweep.dir={folder}/outputs", f"model.id={tiny}"]
    if not any(override.startswith("prompts.path=") for override in overrides):
        defaults.append("prompts.items=[Hi,Ho]")
    return [*overrides, *missing(overrides, defaults)]


def prepared(root: Path, case: Case, tiny: Path) -> Path:
    """Return a new folder with a case's files and models, which are damaged copies of the tiny model."""
    folder = root / str(CORPUS.index(case))
    folder.mkdir()
    for name, wrong in case.get("models", {}).items():
        shutil.copytree(tiny, folder / name)
        for file in as_list(wrong.get("without", [])):
            (folder / name / file).unlink()
        for file, changes in wrong.get("changed", {}).items():
            path = folder / name / file
            path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        for file, size in wrong.get("cut", {}).items():
            path = folder / name / file
            path.write_bytes(path.read_bytes()[:size])
    for name, content in case.get("files", {}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def below(folder: Path) -> set[Path]:
    return {folder, *folder.parents, *folder.rglob("*")}


def below_of(paths: list[Path]) -> set[Path]:
    """Return paths and their parent folders."""
    return {each for path in paths for each in (path, *path.parents)}


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
