"""Engines that break while they work, each in a process of its own: a clear error and an end, never a hang."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from mlflow import MlflowClient

from tiny_models import make_model

KILL_THE_CORE = """
import sys, time, threading
from pathlib import Path
import psutil
from sweep.checkpoint import find
from sweep.config import ModelConfig
from sweep.embedding import open_table
from sweep.engines import VLLMConfig
from sweep.engines.base import Request, Sampling
from sweep.errors import EngineError

if __name__ == "__main__":
    checkpoint = find(ModelConfig(id=sys.argv[1]))
    table, ids = open_table(checkpoint), tuple(range(5, 25))
    engine = VLLMConfig(in_process=False, max_num_seqs=4).open(checkpoint.files, 500, Path(sys.argv[2]))
    sampling = Sampling(max_tokens=400, ignore_eos=True)
    [core] = [c for c in psutil.Process().children(recursive=True) if "EngineCore" in " ".join(c.cmdline()) + c.name()]
    stream = engine.generate(Request(i, ids, table.rows(ids), sampling) for i in range(500))
    print("answered", next(stream).key)
    core.kill()
    killed = time.monotonic()
    try:
        for _ in stream: pass
    except EngineError as error:
        print("noticed", time.monotonic() - killed < 10, error)
    engine.close()
"""


def test_a_killed_core_is_noticed(tiny: Path, tmp_path: Path) -> None:
    script = tmp_path / "kill.py"
    script.write_text(KILL_THE_CORE)
    done = subprocess.run(
        [sys.executable, str(script), str(tiny), str(tmp_path / "cache")],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert "answered " in done.stdout, done.stderr[-3000:]
    assert "noticed True vLLM's core process died" in done.stdout, done.stdout + done.stderr[-3000:]


def test_non_finite_logits_end_the_sweep(tmp_path: Path) -> None:
    """A mean over rows of this size overflows in GPT-2's layer norm, though every entry that is sent is finite."""
    model = make_model(tmp_path / "gpt2", "gpt2")
    outputs = tmp_path / "outputs"
    overrides = ["model.dtype=float32", "prompts.items=[Hi,Ho]", "transform=scale", "transform.factor=1.5,2e38"]
    done = subprocess.run(
        [sys.executable, "-m", "sweep", f"model.id={model}", f"sweep.dir={outputs}", *overrides],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "sweep: The model computed non-finite logits" in done.stderr and "Traceback" not in done.stderr
    client = MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}")
    statuses = {run.info.run_name: run.info.status for run in client.search_runs(["1"])}
    assert statuses["factor=2e+38"] == "FAILED" and "RUNNING" not in statuses.values()
