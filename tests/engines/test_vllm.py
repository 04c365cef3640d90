"""vLLM engine; behaviour that all engines share is tested in `test_engine_conformance`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from sweep.engines import VLLMConfig
from sweep.engines.base import Engine, Failure, ModelFiles, Request, Sampling
from sweep.engines.vllm import failures, invariance, startup
from sweep.errors import EngineError, EngineOutOfMemory
from sweep.inputs.embedding_table import EmbeddingTable


@pytest.mark.parametrize("bad", ["nan", "width", "ids"])
def test_reasons_of_invalid_requests(engine: Engine, table: EmbeddingTable, bad: str) -> None:
    """vLLM itself rejects only the unknown token ids; the other requests would break it."""
    ids = tuple(range(5, 22))
    rows = table.rows(ids)
    embeds = {"nan": rows.clone().index_fill_(0, torch.tensor([2]), torch.nan), "width": rows[:, :1], "ids": None}[bad]
    request = Request("bad", ids if bad != "ids" else (10**6,), embeds, Sampling(max_tokens=8))
    [failure] = engine.generate([request])
    assert isinstance(failure, Failure)
    reasons = {
        "nan": "its embeddings are not finite in",
        "width": "its embeddings are (17, 1)",
        "ids": "vLLM rejected it: ",
    }
    assert failure.reason.startswith(reasons[bad])


SEEDED = """
import sys
from pathlib import Path
from sweep.engines import VLLMConfig
from sweep.engines.base import ModelFiles, Request, Sampling

ids = tuple(5 + i % 40 for i in range(99))
requests = [Request(i, ids, None, Sampling(2, temperature=1.0, seed=3, n=4)) for i in range(90)]
engine = VLLMConfig(in_process=True).open(ModelFiles(Path(sys.argv[1]), "float32", False), 128, Path(sys.argv[2]))
size = engine.llm.llm_engine.vllm_config.scheduler_config.max_num_batched_tokens
assert len(ids) * len(requests) * 4 > 2 * size, size
print("OUTPUT", len({answer.completions for answer in engine.generate(requests)}))
"""


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU, prompts may be split")
def test_more_seeded_prompts_than_fit_into_a_batch(tiny: Path, vllm_cache: Path) -> None:
    """On a CPU, vLLM 0.32 fails at a request with a seed whose prompt is split over two batches."""
    done = subprocess.run([sys.executable, "-c", SEEDED, tiny, vllm_cache], capture_output=True, text=True, timeout=300)
    assert "OUTPUT 1\n" in done.stdout, done.stderr[-3000:]


def test_the_error_without_vllm_names_an_alternative(tiny: Path, tmp_path: Path) -> None:
    code = """
import sys
sys.modules["vllm"] = None
from pathlib import Path
from sweep.engines import VLLMConfig
from sweep.engines.base import ModelFiles
VLLMConfig().open(ModelFiles(Path(sys.argv[1]), "float32", False), 64, Path(sys.argv[2]))
"""
    done = subprocess.run([sys.executable, "-c", code, tiny, tmp_path], capture_output=True, text=True, timeout=120)
    message = "sweep.errors.EngineError: vLLM is not installed. Install it, or set engine=transformers"
    assert message in done.stderr


def test_a_cache_folder_that_cannot_be_created(tiny: Path, tmp_path: Path) -> None:
    """For example, sweep.dir was replaced by a file during the sweep, and a crashed engine is restarted."""
    (tmp_path / "outputs").write_text("")
    cache = tmp_path / "outputs" / ".cache"
    message = f"{cache}: the folder for the engine's caches cannot be created: Not a dir"
    with pytest.raises(EngineError, match=re.escape(message)):
        VLLMConfig().open(ModelFiles(tiny, "float32", False), 64, cache)


def test_a_crash_is_reported_although_the_cache_folder_was_removed(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("")
    error_file = tmp_path / "outputs" / ".cache" / "last-words.txt"
    error = failures.start_error(RuntimeError("no device"), error_file)
    assert str(error) == "vLLM did not start: RuntimeError: no device"
    processes = failures.EngineProcesses(SimpleNamespace(engine_core=None), error_file)
    assert str(processes.crash_error(type("EngineDeadError", (Exception,), {})(), {})) == (
        "vLLM's core process died: see sweep.log"
    )
    processes.clear()


@pytest.mark.parametrize(
    ("text", "smaller_may_help"),
    [
        ("AcceleratorError: CUDA error: out of memory", False),
        ("OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", True),
        ("ValueError: Free memory on device cuda:0 (1.2/139.8 GiB) on startup is less than desired", True),
    ],
)
def test_a_full_gpu_is_not_tried_again_with_fewer_requests(tmp_path: Path, text: str, smaller_may_help: bool) -> None:
    error_file = tmp_path / "error"
    error_file.write_text(text)
    error = failures.start_error(RuntimeError("Engine core initialization failed"), error_file)
    assert isinstance(error, EngineOutOfMemory) == smaller_may_help
    assert ("other processes hold the GPU's memory" in str(error)) != smaller_may_help


@pytest.mark.parametrize("user", [None, "0", "1"])
def test_batch_invariance_applies_to_one_engine(
    user: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The setting of one engine does not affect the next one, and the user's variable is kept."""
    monkeypatch.setattr(os, "environ", {} if user is None else {invariance.INVARIANT: user})
    monkeypatch.setattr(invariance, "USER_INVARIANT", user)
    for batch_invariant, expected in ((False, user), (True, "1"), (False, user)):
        startup._set_environment(VLLMConfig(batch_invariant=batch_invariant), True, False, tmp_path)
        assert os.environ.get(invariance.INVARIANT) == expected


@pytest.mark.parametrize(("gpus", "expected"), [(1, None), (2, "nobind")])
def test_processes_that_share_a_model_need_no_numa_node_each(
    gpus: int, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {})
    startup._set_environment(VLLMConfig(tensor_parallel_size=gpus), False, False, tmp_path)
    assert os.environ.get("VLLM_CPU_OMP_THREADS_BIND") == expected
