"""What is vLLM's own among engines; what it must do as all of them is in `test_engine_conformance`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sweep.engines import vllm_start
from sweep.engines.base import Engine, Failure, Request, Sampling
from sweep.inputs.embedding import EmbeddingTable


@pytest.mark.parametrize("bad", ["nan", "width", "ids"])
def test_a_refusal_says_who_refuses(engine: Engine, table: EmbeddingTable, bad: str) -> None:
    """The last is refused by vLLM, the others would be accepted and break it."""
    ids = tuple(range(5, 22))
    rows = table.rows(ids)
    embeds = {"nan": rows.clone().index_fill_(0, torch.tensor([2]), torch.nan), "width": rows[:, :1], "ids": None}[bad]
    request = Request("bad", ids if bad != "ids" else (10**6,), embeds, Sampling(max_tokens=8))
    [failure] = engine.generate([request])
    assert isinstance(failure, Failure)
    says = {
        "nan": "its embeddings are not finite in",
        "width": "its embeddings are (17, 1)",
        "ids": "vLLM refused it: ",
    }
    assert failure.reason.startswith(says[bad])


def test_where_it_is_not_installed_it_says_what_else_there_is(tiny: Path, tmp_path: Path) -> None:
    code = """
import sys
sys.modules["vllm"] = None
from pathlib import Path
from sweep.engines import VLLMConfig
from sweep.engines.base import ModelFiles
VLLMConfig().open(ModelFiles(Path(sys.argv[1]), "float32", False), 64, Path(sys.argv[2]))
"""
    done = subprocess.run([sys.executable, "-c", code, tiny, tmp_path], capture_output=True, text=True, timeout=120)
    assert "sweep.errors.EngineError: vLLM is not installed. engine=transformers does without it" in done.stderr


@pytest.mark.parametrize("users", [None, "0", "1"])
def test_batch_invariance_is_of_one_engine(users: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one engine is started with is not left to the next, and what the user has set is."""
    monkeypatch.setattr(os, "environ", {} if users is None else {vllm_start.INVARIANT: users})
    monkeypatch.setattr(vllm_start, "USERS_INVARIANT", users)
    for batch_invariant, expected in ((False, users), (True, "1"), (False, users)):
        vllm_start._set_environment(True, False, batch_invariant, tmp_path)
        assert os.environ.get(vllm_start.INVARIANT) == expected
