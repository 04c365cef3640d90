"""Servers that the whole run of tests shares: each is started when it is first asked for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from servers import VLLMServer, mlflow_server, vllm_server
from sweep.tracking import template

VLLM_KEY = "only-for-these-tests-5d1c"


@pytest.fixture(scope="session")
def vllm_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder in which vLLM keeps what it has found out about models' classes, for all that start it."""
    return tmp_path_factory.mktemp("vllm-cache")


@pytest.fixture(scope="session")
def served(tiny: Path, vllm_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VLLMServer]:
    """vLLM's server on the tiny Llama; it takes embeddings and wants `VLLM_KEY`."""
    folder = tmp_path_factory.mktemp("server")
    with vllm_server(tiny, folder, vllm_cache, "--enable-prompt-embeds", key=VLLM_KEY) as running:
        yield running


@pytest.fixture(scope="session")
def tracking_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of MLflow's server, on a store of its own; tests use experiments of their own."""
    folder = tmp_path_factory.mktemp("mlflow")
    template.create(folder / "server.db", "mlflow-artifacts:")
    with mlflow_server(folder, folder / "server.db", folder / "files") as url:
        yield url


@pytest.fixture
def experiment(request: pytest.FixtureRequest) -> str:
    """Name of an experiment that no other test uses."""
    return str(request.node.name)
