"""vLLM with a model that two processes share: equal answers, and a killed process is replaced."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

SCRIPT = """
import json, sys, threading
from pathlib import Path
import psutil
from sweep.engines import VLLMConfig
from sweep.engines.base import Generation, Request, Sampling
from sweep.engines.supervisor import Supervisor
from sweep.inputs.checkpoint import find
from sweep.inputs.config import ModelConfig
from sweep.inputs.embedding_loader import open_table

def tokens(engine, requests, kill_after=0):
    found = {}
    for answer in engine.generate(requests):
        assert isinstance(answer, Generation), answer
        found[answer.key] = list(answer.completions[0].token_ids)
        if len(found) == kill_after:
            [rank] = [child for child in psutil.Process().children(recursive=True) if "Worker_TP1" in name(child)]
            rank.kill()
    return [found[key] for key in sorted(found)]

def name(process):
    try:
        return " ".join([process.name(), *process.cmdline()])
    except psutil.Error:
        return ""

if __name__ == "__main__":
    checkpoint = find(ModelConfig(id=sys.argv[1]))
    table = open_table(checkpoint)
    config = VLLMConfig(tensor_parallel_size=2, in_process=False, max_num_seqs=4, window=4, kv_cache_gib=0.1)
    engine = Supervisor(config, lambda chosen: chosen.open(checkpoint.files, 128, Path(sys.argv[2])))
    sampling = Sampling(24, ignore_eos=True)
    prompts = [tuple(range(5 + i, 15 + 2 * i)) for i in range(8)]
    by_ids = [Request(i, ids, None, sampling) for i, ids in enumerate(prompts)]
    by_rows = [Request(i, ids, table.rows(ids), sampling) for i, ids in enumerate(prompts)]
    output = {"ids": tokens(engine, by_ids), "rows": tokens(engine, by_rows), "killed": tokens(engine, by_rows, 1)}
    output |= {"starts": engine.starts, "crashes": engine.crashes}
    engine.close()
    output["left"] = [name(child) for child in psutil.Process().children() if "EngineCore" in name(child)]
    print("OUTPUT " + json.dumps(output), flush=True)
"""


def test_two_processes_share_a_model(tiny: Path, vllm_cache: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script), str(tiny), str(vllm_cache)], capture_output=True, text=True, timeout=400
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("OUTPUT ")]
    assert lines, done.stderr[-3000:]
    output: dict[str, Any] = json.loads(lines[0].removeprefix("OUTPUT "))
    assert len({tuple(answer) for answer in output["ids"]}) > 1
    assert output["rows"] == output["ids"]
    assert output["killed"] == output["ids"]
    assert (output["starts"], output["crashes"]) == (2, 1)
    assert not output["left"]
