"""What all tests share: one tiny model, and one start of the real engine on it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
from hypothesis import settings
from omegaconf import DictConfig, OmegaConf

os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" not in os.environ:
    # The first sweep of a run of tests leaves a template of an MLflow store there, which all others copy.
    os.environ["XDG_CACHE_HOME"] = mkdtemp(prefix="sweep-cache-")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models this small only wait for a second thread

from shards import SMOKE, arguments
from sweep.app import sweep_app
from sweep.cli import main
from sweep.config import loader
from sweep.config.schema import SweepConfig
from sweep.engines import VLLMConfig
from sweep.engines.base import Engine
from sweep.inputs import prompts
from sweep.inputs.checkpoint import Checkpoint, find
from sweep.inputs.config import ModelConfig, PromptsConfig
from sweep.inputs.embedding_loader import open_table
from sweep.inputs.embedding_table import EmbeddingTable
from sweep.inputs.prompt_set import PromptSet
from sweep.inputs.tokenization import encode
from sweep.tracking import template
from tiny_models import make_model

pytest_plugins = ["services"]  # servers of the whole run
settings.register_profile("sweep", deadline=None)  # no test fails for the machine's load
settings.load_profile("sweep")
MAX_MODEL_LEN = 256


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with files that have slow tests, so that no process is left alone with them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the cache folder of this run of tests."""
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama in fp32."""
    return make_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def checkpoint(tiny: Path) -> Checkpoint:
    return find(ModelConfig(id=str(tiny)))


@pytest.fixture(scope="session")
def table(checkpoint: Checkpoint) -> EmbeddingTable:
    return open_table(checkpoint)


@pytest.fixture(scope="session")
def corpus(checkpoint: Checkpoint, table: EmbeddingTable) -> PromptSet:
    """The three prompts, encoded for the tiny Llama."""
    return PromptSet(encode(prompts.load(PromptsConfig(items=PROMPTS)), checkpoint), table, checkpoint)


@pytest.fixture(scope="session")
def engine(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """The one engine of the whole run of tests: vLLM, on the tiny Llama."""
    cache = tmp_path_factory.mktemp("cache")
    config = VLLMConfig(max_num_seqs=8, window=16)
    started = config.open(checkpoint.files, MAX_MODEL_LEN, cache)
    yield started
    started.close()


@pytest.fixture
def on_shared_engine(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """Let whatever opens vLLM have the engine that is already running."""
    monkeypatch.setattr(VLLMConfig, "open", lambda *_: engine)
    monkeypatch.setattr(engine, "close", lambda: None)
    return engine


@pytest.fixture(scope="session")
def store_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an empty MLflow store, to be copied."""
    path = template.template_path()
    assert path is not None
    if not path.exists():
        template.create(tmp_path_factory.mktemp("store") / "mlflow.db", "file:///anywhere")
    return path


@pytest.fixture
def command_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process; return (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sweep_app, "_current", None)
        here = missing(arguments, ["tracking.in_process=true", "sweep.helpers=0"])  # where all is imported already
        monkeypatch.setattr(sys, "argv", ["sweep", *arguments, *here])
        try:
            main.main()
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def sweep_here(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command_line: Callable[..., tuple[int, str, str]]
) -> Callable[..., str]:
    """Run the sweep of `shards.arguments` in this process, in a folder of the test's; return what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides: str, code: int = 0) -> str:
        found, out, err = command_line(*arguments(tiny, tmp_path / "outputs", *overrides))
        assert found == code, out + err
        return out + err

    return run


@pytest.fixture(scope="session")
def whole_outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("whole")


@pytest.fixture
def whole(sweep_here: Callable[..., str], whole_outputs: Path) -> Path:
    """The outputs of the sweep of `shards.arguments` in one piece, made when it is first asked for."""
    return _made(whole_outputs / "scripted", sweep_here)


@pytest.fixture
def vllm_whole(sweep_here: Callable[..., str], whole_outputs: Path, on_shared_engine: Engine) -> Path:
    """The outputs of the sweep of `shards.SMOKE` in one piece, made when it is first asked for."""
    return _made(whole_outputs / "vllm", sweep_here, *SMOKE)


def _made(outputs: Path, sweep_here: Callable[..., str], *overrides: str) -> Path:
    if not outputs.exists():
        sweep_here(f"sweep.dir={outputs}", *overrides)
    return outputs


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a start of the engine noticed."""

    def refuse(*_: object) -> None:
        pytest.fail("the engine was started")

    monkeypatch.setattr(VLLMConfig, "open", refuse)


@pytest.fixture
def dry(
    tiny: Path, tmp_path: Path, no_engine: None, command_line: Callable[..., tuple[int, str, str]]
) -> Callable[..., tuple[int, str, str]]:
    """Run the command line as a dry run on the tiny model."""

    def run(*arguments: str) -> tuple[int, str, str]:
        defaults = [f"sweep.dir={tmp_path / 'outputs'}", f"model.id={tiny}", "sweep.dry_run=true"]
        return command_line(*arguments, *missing(arguments, [*defaults, "prompts.items=[Hi,Ho]"]))

    return run


def missing(arguments: Sequence[str], defaults: Sequence[str]) -> list[str]:
    """Return those of default arguments whose keys are not given."""
    given = {argument.split("=")[0] for argument in arguments}
    return [default for default in defaults if default.split("=")[0] not in given]


@pytest.fixture
def configure(tiny: Path, tmp_path: Path) -> Callable[..., SweepConfig]:
    """Make a configuration of the tiny model and three prompts, with whatever is given instead."""

    def make(**changes: Any) -> SweepConfig:
        return loader.parse(compose(tiny, tmp_path, **changes))

    return make


def compose(tiny: Path, folder: Path, **changes: Any) -> DictConfig:
    """Return what Hydra would compose, before it is parsed; `transform={"name": …}` replaces a whole section."""
    base: dict[str, Any] = {
        "model": {"id": str(tiny)},
        "prompts": {"items": PROMPTS},
        "transform": {"name": "identity"},
        "sampling": {"max_tokens": 8},
        "engine": {"name": "vllm"},
        "scoring": {},
        "seed": 0,
        "verbose": False,
        "plugins": [],
    }
    # In this process, where all is imported already.
    tracking = {"in_process": True} | changes.pop("tracking", {})
    settings = {"dir": str(folder / "outputs"), "helpers": 0} | changes.pop("sweep", {})
    return OmegaConf.create(base | {"tracking": tracking, "sweep": settings} | changes)


PROMPTS = [
    {"id": "hello", "prompt": "Hello there", "reference": "General"},
    {"id": "sky", "prompt": "Why is the sky blue?"},
    {"id": "two", "prompt": "1 + 1 =", "reference": ["2", "two"]},
]


@pytest.fixture
def registered() -> Iterator[None]:
    """Forget the measures that a test registers."""
    from sweep.scoring import registry

    before = {measure.name: measure for measure in registry.measures()}
    yield
    registry._measures.clear()
    registry._add(before.values())
