"""What all tests share: one tiny model, and one start of the real engine on it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models this small only wait for a second thread

from sweep import cli, parsing, session
from sweep.config import ModelConfig, PromptsConfig, SweepConfig
from sweep.engines import VLLMConfig
from sweep.engines.base import Engine
from sweep.inputs import prompts
from sweep.inputs.checkpoint import Checkpoint, find
from sweep.inputs.corpus import Corpus
from sweep.inputs.embedding import EmbeddingTable, open_table
from sweep.inputs.encoding import encode
from tiny_models import make_model

MAX_MODEL_LEN = 256


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
def corpus(checkpoint: Checkpoint, table: EmbeddingTable) -> Corpus:
    """The three prompts, encoded for the tiny Llama."""
    return Corpus(encode(prompts.load(PromptsConfig(items=PROMPTS)), checkpoint), table, checkpoint)


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


@pytest.fixture
def command_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process; return (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(session, "_current", None)
        here = missing(arguments, ["tracking.in_process=true", "sweep.helpers=0"])  # where all is imported already
        monkeypatch.setattr(sys, "argv", ["sweep", *arguments, *here])
        try:
            cli.main()
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        return code, *capfd.readouterr()

    return run


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a start of the engine noticed."""

    def refuse(*_: object) -> None:
        pytest.fail("the engine was started")

    monkeypatch.setattr(VLLMConfig, "open", refuse)


def missing(arguments: Sequence[str], defaults: Sequence[str]) -> list[str]:
    """Return those of default arguments whose keys are not given."""
    given = {argument.split("=")[0] for argument in arguments}
    return [default for default in defaults if default.split("=")[0] not in given]


@pytest.fixture
def configure(tiny: Path, tmp_path: Path) -> Callable[..., SweepConfig]:
    """Make a configuration of the tiny model and three prompts, with whatever is given instead."""

    def make(**changes: Any) -> SweepConfig:
        return parsing.parse(compose(tiny, tmp_path, **changes))

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
