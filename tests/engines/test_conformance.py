"""Every registered engine holds to the contract: vLLM in this process and in one of its own, Transformers in any size."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from conftest import MAX_MODEL_LEN
from sweep.engines import ENGINES, EngineConfig, TransformersConfig, VLLMConfig
from sweep.engines.base import Engine
from sweep.inputs.checkpoint import Checkpoint
from sweep.testing import ENGINE_CHECKS, EngineBench, EngineCheck, Started
from sweep.testing.engines import check_death

SHARED = "vllm"  # the engine of all tests, which stays open
CONFIGS: dict[str, tuple[EngineConfig, int]] = {  # with the window of each
    SHARED: (VLLMConfig(), 16),
    "vllm-process": (VLLMConfig(max_num_seqs=8, window=16, kv_cache_gib=0.1, in_process=False), 16),
    "transformers": (TransformersConfig(max_batch_size=8), 8),
    "transformers-one": (TransformersConfig(max_batch_size=1), 1),
}


@pytest.fixture(scope="module", params=list(CONFIGS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def bench(
    name: str, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> EngineBench:
    (config, window), cache = CONFIGS[name], tmp_path_factory.mktemp("cache")

    def start() -> Engine:
        if name == SHARED:
            engine: Engine = request.getfixturevalue("engine")
            return engine
        return config.open(checkpoint.files, MAX_MODEL_LEN, cache)

    return EngineBench(start, checkpoint, MAX_MODEL_LEN, window)


@pytest.fixture(scope="module")
def started(bench: EngineBench, name: str) -> Iterator[Started]:
    started = bench.start()
    yield started
    if name != SHARED:
        started.close()


@pytest.mark.parametrize("check", ENGINE_CHECKS, ids=lambda check: check.__name__)
def test_registered_engines_conform(check: EngineCheck, bench: EngineBench, started: Started) -> None:
    check(bench, started.engine)


def test_closed_and_killed_engines_leave_nothing(bench: EngineBench, started: Started, name: str) -> None:
    if name == SHARED:
        pytest.skip("other tests need it")
    assert bool(started.processes) == (name == "vllm-process")
    started.close()
    check_death(bench)


def test_every_engine_is_tried() -> None:
    assert {config.name for config, _ in CONFIGS.values()} == set(ENGINES)


def test_knowing_the_engines_imports_none_of_their_libraries() -> None:
    code = "import sys, sweep.engines; print([m for m in ('torch', 'transformers', 'vllm') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
